"""A service of one's own for tests: `serve run` with its own Ray, port, store and log, to kill."""

from __future__ import annotations

import copy
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import yaml

from common.paths import ROOT

try:
    import psutil
except ImportError:
    sys.exit(
        "psutil is missing, which finds the processes of a service. It comes with the development "
        "dependencies: .venv/bin/python -m pip install --editable '.[dev]'"
    )

READY_S = 120


class ServiceFailed(Exception):
    """The service doesn't start, recover or end; the message says which, and where its log is."""


class Service:
    """`serve run` with a Ray, a port and a store of its own; `with` kills it at the end.

    Args:
        folder: where its config, its log and its store lie.
        args: sections of the application's `args` that differ from `serve_config.yaml`.
        deployments: options of deployments that differ, by the deployment's name.
        import_path: of the function that builds the application.
    """

    def __init__(
        self,
        folder: Path,
        args: dict[str, dict[str, Any]] | None = None,
        deployments: dict[str, dict[str, Any]] | None = None,
        import_path: str = "graph:build",
    ) -> None:
        self.store = folder / "store"
        self.config = folder / "serve_config.yaml"
        self.log = folder / "serve.log"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None
        self._write_config(args or {}, deployments or {}, import_path)

    def _write_config(self, args: dict, deployments: dict, import_path: str) -> None:
        config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
        config["http_options"]["port"] = self.port
        (application,) = config["applications"]
        for section, values in ({"store": {"path": str(self.store)}} | args).items():
            application["args"].setdefault(section, {}).update(copy.deepcopy(values))
        for deployment in application["deployments"]:
            deployment.update(deployments.get(deployment["name"], {}))
        application["import_path"] = import_path
        self.config.write_text(yaml.safe_dump(config))

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process is not None:
            self.kill_everything()

    def launch(self, *prefix: str, **environment: str) -> None:
        """Run `serve run`, and return at once.

        Args:
            prefix: what to put before the command.
            environment: variables to add to the environment.
        """
        serve = Path(sys.executable).with_name("serve")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*prefix, serve, "run", self.config],
                cwd=ROOT,
                env=os.environ | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def start(self) -> None:
        """Run `serve run`, and return when the service is ready.

        Raises:
            ServiceFailed: it ended, or isn't ready in time.
        """
        self.launch()
        self.wait_until_ready()

    def is_ready(self) -> bool:
        """Whether `/healthz` says that every box answers."""
        try:
            return httpx.get(f"{self.url}/healthz", timeout=10).status_code == 200
        except httpx.TransportError:
            return False

    def wait_until_ready(self, is_ready: Callable[[], bool] | None = None) -> None:
        """Return when the service is ready.

        Args:
            is_ready: tells when it is; `is_ready` of the service if left out.

        Raises:
            ServiceFailed: `serve run` has ended, or it takes too long.
        """
        deadline = time.monotonic() + READY_S
        while not (is_ready or self.is_ready)():
            if self.process.poll() is not None:
                raise ServiceFailed(f"serve run has ended. {self._last_words()}")
            if time.monotonic() > deadline:
                raise ServiceFailed(
                    f"The service is not ready after {READY_S} s. {self._last_words()}"
                )
            time.sleep(0.2)

    def output(self) -> str:
        """What `serve run` and all of the replicas have printed."""
        return self.log.read_text(errors="replace")

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """The processes of a deployment's replicas."""
        return self.workers(f"ServeReplica:inset:{deployment}")

    def workers(self, name: str) -> list[psutil.Process]:
        """The processes of the Ray actors of this name, e.g. `ProxyActor`."""
        return [
            process
            for process in self.processes()
            if command(process).partition(".")[0] == f"ray::{name}"
        ]

    def processes(self) -> list[psutil.Process]:
        """`serve run` and all that descends from it, parents first.

        Ray gives its workers sessions of their own, so there is no group to kill.
        """
        try:
            parent = psutil.Process(self.process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def ray_address(self) -> str:
        """What `ray.init(address=...)` needs to connect to the Ray of this service."""
        words = [word for process in self.processes() for word in command(process).split()]
        return next(word.split("=")[1] for word in words if word.startswith("--gcs-address="))

    def stop(self) -> None:
        """Stop it as Ctrl-C does.

        Raises:
            ServiceFailed: something is left of it.
        """
        family = self.processes()
        self.process.send_signal(signal.SIGINT)
        _, running = psutil.wait_procs(family, timeout=60)
        self._expect_the_end_of(running)

    def kill_everything(self) -> None:
        """SIGKILL `serve run`, Ray and all replicas, and return when they are gone.

        Raises:
            ServiceFailed: something is left of it.
        """
        family = self.processes()
        for process in family:
            kill(process)
        self.process.wait()
        self._expect_the_end_of(family)

    def _expect_the_end_of(self, family: list[psutil.Process]) -> None:
        _, left = psutil.wait_procs(family, timeout=30)
        if left:
            raise ServiceFailed(f"Still running: {[command(process)[:100] for process in left]}")

    def _last_words(self) -> str:
        return f"The end of its log, {self.log}:\n{self.output()[-4000:]}"


def kill(process: psutil.Process) -> None:
    """SIGKILL a process, unless it has just ended by itself."""
    with suppress(psutil.NoSuchProcess):
        process.kill()


def command(process: psutil.Process) -> str:
    """What a process calls itself; nothing when it has just ended."""
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.Error:
        return ""


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
