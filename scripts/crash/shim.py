"""Faults of the system that begin and end while a service runs.

`faults.c` is put between the Store's replica and the system (LD_PRELOAD). A small file, which both
have in memory, says which calls fail at the moment, and how many have failed.
"""

from __future__ import annotations

import mmap
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("faults.c")
CONTROL = struct.Struct("=56sQ")  # as in `faults.c`


class NoCompiler(Exception):
    """Faults can't be had here; the message says what is missing."""


def compile_faults(folder: Path) -> Path:
    """Compile what makes calls to the system fail, and return the library.

    Raises:
        NoCompiler
    """
    library = folder / "faults.so"
    options = ["-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl", "-lpthread"]
    try:
        subprocess.run(["cc", *options], check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise NoCompiler(
            "There is no C compiler (cc) here, and the faults need one: install gcc or clang."
        ) from None
    except subprocess.CalledProcessError as error:
        raise NoCompiler(f"{SOURCE} can't be compiled here:\n{error.stderr}") from None
    return library


class Shim:
    """What stands between a process and the system, and fails when it is told to.

    Args:
        folder: gets the compiled faults and the control file.
        file: whose writes and syncs fail.

    Raises:
        NoCompiler
    """

    def __init__(self, folder: Path, file: Path) -> None:
        control = folder / "faults.now"
        control.write_bytes(bytes(CONTROL.size))
        with control.open("r+b") as opened:
            self._control = mmap.mmap(opened.fileno(), CONTROL.size)
        self.environment = {
            "LD_PRELOAD": str(compile_faults(folder).resolve()),
            "FAULTS_FILE": str(file.resolve()),
            "FAULTS_CONTROL": str(control.resolve()),
        }

    def options(self) -> dict[str, Any]:
        """Return the options of a deployment whose replica is to fail."""
        return {"ray_actor_options": {"num_cpus": 0, "runtime_env": {"env_vars": self.environment}}}

    @property
    def happened(self) -> int:
        """How many faults have happened."""
        _, happened = CONTROL.unpack(self._control[:])
        return happened

    @contextmanager
    def failing(self, kinds: str, one_in: int) -> Iterator[None]:
        """Let about one call in `one_in` begin a fault of these kinds while the block runs."""
        now = f"{kinds} {one_in}".encode()
        # The first byte comes last, and goes first: only the whole is ever read.
        self._control[1 : len(now)] = now[1:]
        self._control[0:1] = now[0:1]
        try:
            yield
        finally:
            self._control[0:1] = b"\0"
            self._control[1 : len(now)] = bytes(len(now) - 1)
