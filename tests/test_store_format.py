"""The format of a store: what its hashes tell apart, and how a store of format 1 is upgraded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import lmdb
import numpy as np
import pytest
from conftest import ROOT
from stores import ENCODER, OLD, Replica, assert_counts, assert_whole, float16, make_format_1, put

from deployments.errors import StoreUnusable
from deployments.store import Delete, Store
from deployments.store_format import content_hash
from deployments.store_reader import StoreReader

pytest_plugins = ["stores"]  # for its fixtures


def test_content_hash_tells_ids_and_vectors() -> None:
    vectors = float16(b"one")
    hashes = {
        content_hash("a", vectors),
        content_hash("b", vectors),
        content_hash("a", -vectors),
        content_hash("a", vectors[:0]),
    }
    assert len(hashes) == 4
    assert all(0 <= number < 2**64 for number in hashes)
    assert content_hash("a", vectors.astype(np.float32)) == content_hash("a", vectors)


# Stores of format 1


def format_of(folder: Path) -> dict[str, object]:
    with lmdb.open(str(folder), max_dbs=5) as env:
        meta = env.open_db(b"meta", create=False)
        with env.begin() as txn:
            return {key.decode(): json.loads(value) for key, value in txn.cursor(db=meta)}


def test_a_store_of_format_1_is_upgraded(folder: Path) -> None:
    make_format_1(folder, OLD)
    for _ in range(2):  # the upgrade, and an opening afterwards
        store = Store(folder, ENCODER)
        for id, data in OLD.items():
            record, original = store.original(id)
            assert (original, record.metadata) == (data, {})
            np.testing.assert_array_equal(store.vectors(id), float16(data))
        assert_counts(store, OLD)
        assert (store.sequence, store.deletions) == (4, 1)
        assert set(Replica().catch_up(store)) == set(OLD)
        history = store.history
        store.close()
    assert format_of(folder)["format"] == 2
    assert format_of(folder)["history"] == history

    store = Store(folder, ENCODER)
    again, new, gone = store.apply([put("a", b"one"), put("c", b"three"), Delete("b")])
    assert not again.created
    assert (new.record.sequence, gone) == (5, 6)
    assert_whole(store, "c", b"three")
    assert_counts(store, {"a": b"one", "c": b"three"})
    assert store.cut_log(6) == 1
    store.close()


def test_a_reader_says_that_an_upgrade_is_due(folder: Path) -> None:
    make_format_1(folder, OLD)
    with pytest.raises(StoreUnusable, match=r"has format 1.*start the service once"):
        StoreReader(folder)
    assert format_of(folder)["format"] == 1


def test_a_full_store_of_format_1_is_upgraded(folder: Path) -> None:
    make_format_1(folder, OLD)
    size = (folder / "data.mdb").stat().st_size
    store = Store(folder, ENCODER, initial_bytes=size, max_bytes=size)
    assert store.original("b")[1] == OLD["b"]
    store.close()


KILLED = """
import os, signal, sys
import deployments.store as store
from tests.stores import ENCODER

upgrade = store.upgrade_store
def killed(txn, dbs):
    upgrade(txn, dbs)
    os.kill(os.getpid(), signal.SIGKILL)
store.upgrade_store = killed
store.Store(sys.argv[1], ENCODER)
"""


def test_a_killed_upgrade_leaves_the_old_store(folder: Path) -> None:
    make_format_1(folder, OLD)
    before = format_of(folder)
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder)], cwd=ROOT)
    assert done.returncode == -9
    assert format_of(folder) == before
    store = Store(folder, ENCODER)
    assert store.original("b")[1] == OLD["b"]
    store.close()
