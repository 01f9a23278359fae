"""A service with a Ray of its own, to start, look into and kill: for tests and measurements."""

from __future__ import annotations

import copy
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from common.paths import ROOT
from common.ports import free_port
from common.serve_run import ServeRun, ServiceFailed

try:
    import psutil
except ImportError:
    sys.exit(
        "psutil is missing, which finds the processes of a service. It comes with the development "
        "dependencies: .venv/bin/python -m pip install --editable '.[dev]'"
    )


class OwnService(ServeRun):
    """A service with a Ray, a port and a store of its own; `with` kills it at the end.

    Args:
        folder: gets its config, its log and its store.
        args: sections of the application's `args` that differ from the config.
        deployments: options of deployments that differ, by the deployment's name.
        import_path: of the function that builds the application.
        haproxy: see `ServeRun`.
        base: the name of the config that it differs from, in the repository's root.

    Attributes:
        store: folder of its store.
        port: where it listens.
    """

    def __init__(
        self,
        folder: Path,
        args: dict[str, dict[str, Any]] | None = None,
        deployments: dict[str, dict[str, Any]] | None = None,
        import_path: str = "graph:build",
        haproxy: bool = True,
        base: str = "serve_config.yaml",
    ) -> None:
        self.store = folder / "store"
        self.port = free_port()
        super().__init__(
            folder / "serve_config.yaml",
            folder / "serve.log",
            f"http://127.0.0.1:{self.port}",
            new_session=True,
            haproxy=haproxy,
        )
        config = yaml.safe_load((ROOT / base).read_text())
        self._write_config(config, args or {}, deployments or {}, import_path)

    def _write_config(
        self,
        config: dict[str, Any],
        args: dict[str, dict[str, Any]],
        deployments: dict[str, dict[str, Any]],
        import_path: str,
    ) -> None:
        config["http_options"]["port"] = self.port
        (application,) = config["applications"]
        sections: dict[str, dict[str, Any]] = {"store": {"path": str(self.store)}}
        for section, values in (sections | args).items():
            application["args"].setdefault(section, {}).update(copy.deepcopy(values))
        for deployment in application["deployments"]:
            deployment.update(deployments.get(deployment["name"], {}))
        application["import_path"] = import_path
        self.config.write_text(yaml.safe_dump(config))

    def __enter__(self) -> OwnService:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process is not None:
            self.kill_everything()

    def start(self) -> None:
        """Run the command, and return when the service is ready.

        Raises:
            ServiceFailed: it ended, or isn't ready in time.
        """
        self.launch()
        self.wait_until_ready()

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """Return the processes of a deployment's replicas."""
        return self.workers(f"ServeReplica:inset:{deployment}")

    def workers(self, name: str) -> list[psutil.Process]:
        """Return the processes of the Ray actors of this name, e.g. `ProxyActor`."""
        return [
            process
            for process in self.processes()
            if command(process).partition(".")[0] == f"ray::{name}"
        ]

    def processes(self) -> list[psutil.Process]:
        """Return the command and all that descends from it, parents first.

        Ray gives its workers sessions of their own, so there is no group to kill.
        """
        try:
            parent = psutil.Process(self.launched().pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def ray_address(self) -> str:
        """Return what `ray.init(address=...)` needs to connect to the Ray of this service."""
        words = [word for process in self.processes() for word in command(process).split()]
        return next(word.split("=")[1] for word in words if word.startswith("--gcs-address="))

    def stop(self) -> None:
        """Stop it as Ctrl-C does.

        Raises:
            ServiceFailed: a process of it is still running.
        """
        family = self.processes()
        self.launched().send_signal(signal.SIGINT)
        _, running = psutil.wait_procs(family, timeout=60)
        self._expect_the_end_of(running)

    def kill_everything(self) -> None:
        """SIGKILL the command, Ray and all replicas, and return when they are gone.

        Raises:
            ServiceFailed: a process of it is still running.
        """
        family = self.processes()
        for process in family:
            kill(process)
        self.launched().wait()
        self._expect_the_end_of(family)

    def _expect_the_end_of(self, family: list[psutil.Process]) -> None:
        _, left = psutil.wait_procs(family, timeout=30)
        if left:
            raise ServiceFailed(f"Still running: {[command(process)[:100] for process in left]}")


def kill(process: psutil.Process) -> None:
    """SIGKILL a process, unless it has just ended by itself."""
    with suppress(psutil.NoSuchProcess):
        process.kill()


def command(process: psutil.Process) -> str:
    """Return the command line of a process; an empty string if it has just ended."""
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.Error:
        return ""
