"""The format of a store: what its hashes tell apart, and how older stores are upgraded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import lmdb
import numpy as np
import pytest

from deployments.errors import StoreUnusable
from deployments.records import content_hash
from deployments.store.format import FORMAT
from deployments.store.operations import Delete
from deployments.store.reader import StoreReader
from deployments.store.store import Store
from tests.support.paths import ROOT
from tests.support.stored.stores import (
    ENCODER,
    OLD,
    Replica,
    assert_counts,
    assert_whole,
    float16,
    keep,
    keep_preview,
    make_old,
    metadata,
    photo,
    preview_of,
    put,
    vectors_of,
)


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


# Stores of older formats


@pytest.fixture(params=[1, 2, 3])
def format(request: pytest.FixtureRequest) -> int:
    return request.param


def format_of(folder: Path) -> dict[str, object]:
    with lmdb.open(str(folder), max_dbs=7) as env:
        meta = env.open_db(b"meta", create=False)
        with env.begin() as txn:
            return {key.decode(): json.loads(value) for key, value in txn.cursor(db=meta)}


def test_an_old_store_is_upgraded(folder: Path, format: int) -> None:
    make_old(folder, OLD, format)
    before = format_of(folder)
    for _ in range(2):  # the upgrade, and an opening afterwards
        store = Store(folder, ENCODER)
        for id, data in OLD.items():
            record, original = store.original(id)
            assert (original, record.metadata) == (data, {} if format == 1 else metadata(data))
            np.testing.assert_array_equal(vectors_of(store, id), float16(data))
            assert store.thumbnail(id) == (photo(data).thumbnail if format > 2 else None)
            assert store.previews([id]) == [preview_of(data, kept=False)]
        assert_counts(store, OLD)
        assert (store.sequence, store.deletions) == (4, 1)
        assert set(Replica().catch_up(store)) == set(OLD)
        history = store.history
        store.close()
    assert format_of(folder)["format"] == FORMAT
    assert format_of(folder)["history"] == before.get("history", history) == history

    store = Store(folder, ENCODER)
    again, new, gone, late = store.apply(
        [put("a", b"one"), put("c", b"three"), Delete("b"), keep("b", OLD["b"])]
    )
    assert (again.created, late) == (False, False)
    assert (new.record.sequence, gone) == (5, 6)
    assert_whole(store, "c", b"three")
    assert_counts(store, {"a": b"one", "c": b"three"})
    assert store.cut_log(6) == 1
    store.close()


def test_a_photo_of_an_old_store_gets_its_thumbnail(folder: Path, format: int) -> None:
    make_old(folder, OLD, format)
    for _ in range(2):
        store = Store(folder, ENCODER)
        assert store.apply([keep("a", OLD["a"]), keep("a", b"other")]) == [True, False]
        assert store.thumbnail("a") == photo(OLD["a"]).thumbnail
        details = store.details()
        assert (details.thumbnails, store.sequence) == (1 if format < 3 else 2, 4)
        store.close()


def test_a_photo_of_an_old_store_gets_its_preview(folder: Path, format: int) -> None:
    make_old(folder, OLD, format)
    for _ in range(2):
        store = Store(folder, ENCODER)
        results = store.apply([keep_preview("a", OLD["a"]), keep_preview("a", b"other")])
        assert results == [True, False]
        assert store.previews(["a", "b"]) == [
            preview_of(OLD["a"]),
            preview_of(OLD["b"], kept=False),
        ]
        assert (store.details().previews, store.sequence) == (1, 4)
        store.close()


def test_a_reader_says_that_an_upgrade_is_due(folder: Path, format: int) -> None:
    make_old(folder, OLD, format)
    with pytest.raises(StoreUnusable, match=rf"has format {format}.*start the service once"):
        StoreReader(folder)
    assert format_of(folder)["format"] == format


def test_a_full_old_store_is_upgraded(folder: Path, format: int) -> None:
    make_old(folder, OLD, format)
    size = (folder / "data.mdb").stat().st_size
    store = Store(folder, ENCODER, initial_bytes=size, max_bytes=size)
    assert store.original("b")[1] == OLD["b"]
    store.close()


KILLED = """
import os, signal, sys
import deployments.store.store as store
from tests.support.stored.stores import ENCODER

upgrade = store.upgrade_store
def killed(*args):
    upgrade(*args)
    os.kill(os.getpid(), signal.SIGKILL)
store.upgrade_store = killed
store.Store(sys.argv[1], ENCODER)
"""


def test_a_killed_upgrade_leaves_the_old_store(folder: Path, format: int) -> None:
    make_old(folder, OLD, format)
    before = format_of(folder)
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder)], cwd=ROOT)
    assert done.returncode == -9
    assert format_of(folder) == before
    store = Store(folder, ENCODER)
    assert store.original("b")[1] == OLD["b"]
    store.close()
