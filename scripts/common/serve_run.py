"""A service as a process: started, waited for, and its output kept."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from common.paths import ROOT

READY_S = 120
POLL_S = 0.2


class ServiceFailed(Exception):
    """The service doesn't start, recover or end; the message says so, and where its log is."""


class ServeRun:
    """A service of a config, as scripts/serve starts it.

    Args:
        config: the file.
        log: the file that gets the output of the command and of all replicas.
        url: where the service answers.
        new_session: whether the command has a session of its own, which the Ctrl-C of a terminal
            doesn't reach.
        haproxy: whether HAProxy is in front, where there is one; else it is started by `serve run`
            alone.

    Attributes:
        process: the command; None until it is launched.
    """

    def __init__(
        self, config: Path, log: Path, url: str, *, new_session: bool, haproxy: bool = True
    ) -> None:
        self.config = config
        self.log = log
        self.url = url
        self.process: subprocess.Popen | None = None
        self._new_session = new_session
        self._haproxy = haproxy

    def launch(self, *prefix: str, **environment: str) -> None:
        """Run the command, and return at once.

        Args:
            prefix: words to put before the command.
            environment: variables to add to the environment.
        """
        command: list[str | Path] = [Path(sys.executable).with_name("serve"), "run", self.config]
        if self._haproxy:
            command = [sys.executable, ROOT / "scripts" / "serve.py", self.config]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*prefix, *command],
                cwd=ROOT,
                env=os.environ | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=self._new_session,
            )

    def launched(self) -> subprocess.Popen:
        """Return the process of the command.

        Raises:
            ServiceFailed: it was never launched.
        """
        if self.process is None:
            raise ServiceFailed("The service was not launched.")
        return self.process

    def is_ready(self) -> bool:
        """Return whether `/healthz` says that every deployment answers."""
        try:
            return httpx.get(f"{self.url}/healthz", timeout=10).status_code == 200
        except httpx.TransportError:
            return False

    def wait_until_ready(
        self,
        is_ready: Callable[[], bool] | None = None,
        *,
        most_s: float = READY_S,
        every_s: float = POLL_S,
        while_waiting: Callable[[], object] = lambda: None,
    ) -> None:
        """Return when the service is ready.

        Args:
            is_ready: tells whether it is; this class's `is_ready` if left out.
            most_s: seconds to wait at most.
            every_s: seconds between two looks.
            while_waiting: called after each look that found it not ready.

        Raises:
            ServiceFailed: it has ended, or it takes too long.
        """
        deadline = time.monotonic() + most_s
        while not (is_ready or self.is_ready)():
            if self.launched().poll() is not None:
                raise ServiceFailed(f"The service has ended. {self._last_words()}")
            if time.monotonic() > deadline:
                raise ServiceFailed(
                    f"The service is not ready after {most_s:.0f} s. {self._last_words()}"
                )
            while_waiting()
            time.sleep(every_s)

    def output(self) -> str:
        """Return what the command and all replicas have printed."""
        return self.log.read_text(errors="replace")

    def _last_words(self) -> str:
        return f"The end of its log, {self.log}:\n{self.output()[-4000:]}"
