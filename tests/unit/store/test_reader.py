"""Reading a store beside its owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.errors import StoreUnusable
from deployments.records import Stored
from deployments.store.operations import Delete
from deployments.store.reader import StoreReader
from deployments.store.store import Store
from tests.support.paths import ROOT
from tests.support.stored.stores import DIMENSION, ENCODER, put, vectors_of

READER = """
import sys
from deployments.store.reader import StoreReader

store = StoreReader(sys.argv[1])
for id in sys.stdin:
    record, data = store.original(id.strip())
    print(len(data), store.sequence, len(list(store.ids())), flush=True)
"""


def start(code: str, folder: Path) -> subprocess.Popen[str]:
    """Start another process that reads a store."""
    command = [sys.executable, "-c", code, str(folder)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT)


def ask(reader: subprocess.Popen[str], id: str) -> str:
    """Give READER the id of a photo; return what it says of it and of the store."""
    reader.stdin.write(f"{id}\n")
    reader.stdin.flush()
    return reader.stdout.readline()


def test_a_reader_follows_an_owner_whose_map_grows(folder: Path) -> None:
    store = Store(folder, ENCODER, initial_bytes=2**18)
    store.apply([put("0", b"0" * 1000)])
    with start(READER, folder) as child:
        for number in range(4):
            if number:
                store.apply([put(f"{number}", os.urandom(10**6))])
            size = 10**6 if number else 1000
            assert ask(child, f"{number}") == f"{size} {number + 1} {number + 1}\n"
        child.stdin.close()
        assert child.wait() == 0
    assert store.stats().map_bytes > 3 * 10**6
    store.close()


HOLDER = """
import sys
from deployments.store.reader import StoreReader

with StoreReader(sys.argv[1]).reading():
    print("reads", flush=True)
    sys.stdin.read()
"""


def leave_a_snapshot(folder: Path) -> None:
    """Kill a process while it reads a store: its snapshot stays in the lock file."""
    with start(HOLDER, folder) as child:
        assert child.stdout.readline() == "reads\n"
        child.kill()
        assert child.wait() == -signal.SIGKILL


def replace_often(store: Store) -> None:
    """Write three times as much as there is room for, and delete it again."""
    for number in range(25):
        results = store.apply([put("a", os.urandom(10**6)), Delete("a")])
        assert isinstance(results[0], Stored), (number, results)


def test_a_reader_that_was_killed_takes_no_space(folder: Path) -> None:
    store = Store(folder, ENCODER, max_bytes=8 * 2**20)
    store.apply([put("first", b"1" * 1000)])
    leave_a_snapshot(folder)
    replace_often(store)
    store.close()


def test_a_reader_that_was_killed_before_the_store_was_opened_takes_no_space(folder: Path) -> None:
    store = Store(folder, ENCODER)
    store.apply([put("first", b"1" * 1000)])
    store.close()
    # As long as somebody has it open, LMDB doesn't make the lock file anew.
    with start(READER, folder) as beside:
        ask(beside, "first")
        leave_a_snapshot(folder)
        store = Store(folder, ENCODER, max_bytes=8 * 2**20)
        replace_often(store)
        assert ask(beside, "first").startswith("1000 ")
        store.close()


def test_there_is_nothing_to_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(StoreUnusable, match="There is no store in"):
            StoreReader(path)
    assert list(tmp_path.iterdir()) == []


def test_dimension_is_read_from_the_store(store: Store, folder: Path) -> None:
    store.apply([put("a", b"one")])
    store.close()
    reader = StoreReader(folder)
    assert reader.encoder == ENCODER
    assert vectors_of(reader, "a").shape[1] == DIMENSION
    assert list(reader.ids()) == ["a"]
    reader.close()
