"""Faults that begin and end while a process runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from crash.shim import NoCompiler, Shim, compile_faults

# Carries out each line that it reads, and answers with what came of it.
OBEDIENT = """
import os, sys, time
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
beside = os.open(sys.argv[1] + " beside", os.O_RDWR | os.O_CREAT)
for line in sys.stdin:
    try:
        print(eval(line), flush=True)
    except OSError as error:
        print(error.strerror, flush=True)
"""
FULL, FAILED = os.strerror(28), os.strerror(5)


@pytest.fixture
def shim(tmp_path: Path) -> Shim:
    try:
        return Shim(tmp_path, tmp_path / "file")
    except NoCompiler as error:
        pytest.skip(str(error))


@pytest.fixture
def ask(shim: Shim, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Return what lets a process with the shim carry something out."""
    process = subprocess.Popen(
        [sys.executable, "-c", OBEDIENT, tmp_path / "file"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | shim.environment,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def ask(what: str) -> str:
        print(what, file=process.stdin, flush=True)
        return process.stdout.readline().strip()

    with process:
        yield ask
        process.stdin.close()


def test_a_disk_is_full_until_it_is_not(shim: Shim, ask: Callable[[str], str]) -> None:
    write, room = "os.pwrite(file, b'one', 0)", "os.statvfs(sys.argv[1]).f_bavail > 0"
    assert (ask(write), ask(room), shim.happened) == ("3", "True", 0)
    with shim.failing("full", 1):
        assert [ask(write) for _ in range(50)] == [FULL] * 50
        assert ask(room) == "False"
        assert ask("os.pwrite(beside, b'one', 0)") == "3"
        assert ask("os.pread(file, 9, 0)") == "b'one'"
    assert shim.happened == 50
    assert (ask(write), ask(room), shim.happened) == ("3", "True", 50)


def test_a_sync_that_fails_loses_what_was_written(
    shim: Shim, ask: Callable[[str], str], tmp_path: Path
) -> None:
    ask("os.pwrite(file, bytes(4096), 0)")
    assert ask("os.fsync(file)") == "None"
    with shim.failing("sync", 1):
        for block in range(64):
            assert ask(f"os.pwrite(file, b'new', {64 * block})") == "3"
        assert ask("os.fsync(file)") == FAILED
        assert ask("os.fsync(beside)") == "None"
    assert 0 < (tmp_path / "file").read_bytes().count(b"new") < 64
    assert ask("os.fsync(file)") == "None"


def test_the_time_of_day_jumps_and_comes_back(shim: Shim, ask: Callable[[str], str]) -> None:
    off = "time.time() - time.clock_gettime(5)"  # a clock that doesn't jump
    assert float(ask(off)) == pytest.approx(0, abs=1)
    with shim.failing("clock", 1):
        jumps = [float(ask(off)) for _ in range(20)]
        assert float(ask("time.monotonic() - time.clock_gettime(6)")) == pytest.approx(0, abs=1)
    assert min(jumps) < -86_000
    assert max(jumps) > 86_000
    assert float(ask(off)) == pytest.approx(0, abs=1)


def test_after_a_pause_the_clock_does_not_go_back(shim: Shim, ask: Callable[[str], str]) -> None:
    ahead = "time.monotonic() - time.clock_gettime(6)"  # a clock that doesn't jump
    with shim.failing("pause", 1):
        before = float(ask(ahead))
        during = float(ask(ahead))
    assert 0 <= before <= during
    assert during > 1
    assert float(ask(ahead)) >= during - 1


def test_without_a_compiler_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoCompiler, match="install gcc or clang"):
        compile_faults(tmp_path)
