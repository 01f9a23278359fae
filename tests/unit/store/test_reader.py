"""Reading a store beside its owner."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.errors import StoreUnusable
from deployments.store.reader import StoreReader
from deployments.store.store import Store
from tests.support.paths import ROOT
from tests.support.stores import DIMENSION, ENCODER, put, vectors_of

READER = """
import sys
from deployments.store.reader import StoreReader

store = StoreReader(sys.argv[1])
for id in sys.stdin:
    record, data = store.original(id.strip())
    print(len(data), store.sequence, len(list(store.ids())), flush=True)
"""


def test_a_reader_follows_an_owner_whose_map_grows(folder: Path) -> None:
    store = Store(folder, ENCODER, initial_bytes=2**18)
    store.apply([put("0", b"0" * 1000)])
    child = subprocess.Popen(
        [sys.executable, "-c", READER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    with child:
        for number in range(4):
            if number:
                store.apply([put(f"{number}", os.urandom(10**6))])
            child.stdin.write(f"{number}\n")
            child.stdin.flush()
            size = 10**6 if number else 1000
            assert child.stdout.readline() == f"{size} {number + 1} {number + 1}\n"
        child.stdin.close()
        assert child.wait() == 0
    assert store.stats().map_bytes > 3 * 10**6
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
