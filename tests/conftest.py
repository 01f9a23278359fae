"""Photos, tiny models and a running service for the tests."""

from __future__ import annotations

import copy
import hashlib
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import skimage
import yaml
from PIL import Image

ROOT = Path(__file__).parent.parent
PHOTOS = Path(skimage.__file__).parent / "data"
READY_S = 120
# What can be refused is refused here early, so that the tests needn't send much.
LIMITS = {
    "max_image_bytes": 4 * 2**20,
    "max_request_bytes": 6 * 2**20,
    "max_pixels": 20_000_000,
    "timeout_s": 60,
}


class Service:
    """`serve run` with a Ray, a port and a store of its own.

    Args:
        folder: where its config, its log and its store lie.
        args: sections of the application's `args` that differ from `serve_config.yaml`.
        deployments: options of deployments that differ, by the deployment's name.
    """

    def __init__(
        self,
        folder: Path,
        args: dict[str, dict[str, Any]] | None = None,
        deployments: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        self.store = folder / "store"
        self.config = folder / "serve_config.yaml"
        self.log = folder / "serve.log"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None
        self._write_config(args or {}, deployments or {})

    def _write_config(self, args: dict, deployments: dict) -> None:
        config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
        config["http_options"]["port"] = self.port
        (application,) = config["applications"]
        for section, values in ({"store": {"path": str(self.store)}} | args).items():
            application["args"].setdefault(section, {}).update(copy.deepcopy(values))
        for deployment in application["deployments"]:
            deployment.update(deployments.get(deployment["name"], {}))
        self.config.write_text(yaml.safe_dump(config))

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
        """Run `serve run`, and return when the service is ready."""
        self.launch()
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Return when `/healthz` says so; fail with the end of the log when it doesn't."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline and self.process.poll() is None:
            with suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/healthz", timeout=10).status_code == 200:
                    return
            time.sleep(0.2)
        pytest.fail(f"the service is not ready. The end of its log:\n{self.output()[-4000:]}")

    def output(self) -> str:
        """What `serve run` and all of the replicas have printed."""
        return self.log.read_text(errors="replace")

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """The processes of a deployment's replicas."""
        title = f"ray::ServeReplica:inset:{deployment}"
        return [process for process in self._family() if command(process).split(".")[0] == title]

    def ray_address(self) -> str:
        """What `ray.init(address=...)` needs to connect to the Ray of this service."""
        words = [word for process in self._family() for word in command(process).split()]
        return next(word.split("=")[1] for word in words if word.startswith("--gcs-address="))

    def stop(self) -> None:
        """Stop it as Ctrl-C does; fails when anything is left of it."""
        family = self._family()
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)
        self._expect_the_end_of(family)

    def kill_everything(self) -> None:
        """SIGKILL `serve run`, Ray and all replicas, and return when they are gone."""
        family = self._family()
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        self._expect_the_end_of(family)

    def _family(self) -> list[psutil.Process]:
        """`serve run` and all that descends from it, parents first.

        Ray gives its workers sessions of their own, so there is no group to kill.
        """
        try:
            parent = psutil.Process(self.process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _expect_the_end_of(self, family: list[psutil.Process]) -> None:
        _, left = psutil.wait_procs(family, timeout=30)
        assert not left, f"still running: {[command(process)[:100] for process in left]}"


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


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 30) -> None:
    """Return when a condition holds; fail when it doesn't in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout_s} s in vain: {what}")
        time.sleep(0.05)


def encode(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(name: str, width: int = 96, height: int = 64) -> Image.Image:
    """A coarse pattern that follows from a name, so that each test has pictures of its own."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def picture(name: str) -> bytes:
    return encode(pixels(name))


def together(calls: list[Callable[[], Any]]) -> list[Any]:
    """Make calls at the same time; returns what they return, in order."""
    with ThreadPoolExecutor(len(calls)) as threads:
        return [future.result() for future in [threads.submit(call) for call in calls]]


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Let child processes heed SIGINT also where pytest runs in the background of a shell."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def photos() -> Path:
    """Folder of the free photos in scikit-image's wheel."""
    return PHOTOS


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service as configured by default, but for small limits; shared by all tests.

    Tests leave photos behind, so none may assume that the store is empty.
    """
    service = Service(tmp_path_factory.mktemp("service"), {"limits": LIMITS})
    try:
        service.start()
        yield service
    finally:
        service.kill_everything()


@pytest.fixture(scope="session")
def client(service: Service) -> Iterator[httpx.Client]:
    """A client of the shared service."""
    with httpx.Client(base_url=service.url, timeout=60) as client:
        yield client
