"""What only tests marked as slow may do: everything else is in the fast run, and has to stay fast.

They start Ray, a service or a browser, or load a trained network. So are tests marked that run a
program which loads torch: this takes seconds, and can't be seen from here.

A fixture that starts something asks for the fixture `slow`; that marks all tests which use it. A
test that starts something by itself is marked by hand, with `@pytest.mark.slow`.
"""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors

from deployments.compute.weights import default_cache
from tests.support.paths import ROOT

TRAINED = (str(ROOT / "models") + os.sep, str(default_cache()) + os.sep)
SERVE = str(Path(sys.executable).with_name("serve"))
PROGRAMS = {"gcs_server": "starts Ray", "raylet": "starts Ray", "chromium": "starts a browser"}


class Guard:
    """Fails tests that do what only slow ones may.

    Attributes:
        is_on: whether the test that runs now is a fast one.
    """

    def __init__(self) -> None:
        self.is_on = False

    def install(self) -> None:
        """Watch from now on which programs and which networks this process starts and loads.

        A checkpoint is a zip file: looking for one opens it, and loading it reads its members.
        """
        sys.addaudithook(self._hear)
        safetensors.safe_open = self._reading(safetensors.safe_open, lambda path: path)
        zipfile.ZipFile.open = self._reading(zipfile.ZipFile.open, lambda file: file.filename)

    def _hear(self, event: str, details: tuple) -> None:
        if not self.is_on:
            return
        if event == "subprocess.Popen":
            self._check_command([os.fsdecode(word) for word in _words(details[1])])

    def _reading(
        self, read: Callable[..., Any], path_of: Callable[[Any], Any]
    ) -> Callable[..., Any]:
        """Return a function that checks what is read before it reads it."""

        def checked(what: Any, *args: Any, **kwargs: Any) -> Any:
            if self.is_on and (path := path_of(what)) is not None:
                self._check_weights(path)
            return read(what, *args, **kwargs)

        return checked

    def _check_command(self, words: list[str]) -> None:
        if SERVE in words:
            self._refuse("starts a service")
        for word in words:
            if (deed := PROGRAMS.get(Path(word).name)) is not None:
                self._refuse(deed)
        if "run-driver" in words:
            self._refuse("starts a browser")

    def _check_weights(self, path: Any) -> None:
        if os.path.realpath(path).startswith(TRAINED):
            self._refuse("loads a trained network")

    def _refuse(self, deed: str) -> None:
        self.is_on = False  # what follows in the same test says no more
        pytest.fail(f"Mark this test as slow: it {deed}. See tests/support/running/slow.py.")


def _words(command: Any) -> Sequence[Any]:
    return [command] if isinstance(command, str | bytes | os.PathLike) else list(command)
