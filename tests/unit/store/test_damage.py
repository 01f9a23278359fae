"""Damage to what a store has on disk: it is found, and does no harm to the other photos."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import lmdb
import pytest

from deployments.errors import CorruptRecord
from deployments.records import Stored
from deployments.store.operations import Delete
from deployments.store.store import Store
from tests.support.stored.stores import (
    ENCODER,
    assert_counts,
    assert_same_content,
    assert_whole,
    float16,
    keep,
    keep_preview,
    preview_of,
    put,
    replay,
    vectors_of,
)


def flip(folder: Path, database: bytes, id: bytes, position: int) -> None:
    """Flip a bit of a value behind the store's back."""
    env = lmdb.open(str(folder), max_dbs=7)
    db = env.open_db(database)
    with env.begin(write=True) as txn:
        value = bytearray(txn.get(id, db=db))
        value[position] ^= 1
        txn.put(id, bytes(value), db=db)
    env.close()


@pytest.mark.parametrize("position", [0, 20, -1])
@pytest.mark.parametrize("database", ["records", "originals", "vectors"])
def test_damage_is_found(folder: Path, caplog, database: str, position: int) -> None:
    good, bad = b"g" * 100, b"b" * 100
    store = Store(folder, ENCODER)
    store.apply([put("bad", bad), put("good", good)])
    store.close()
    flip(folder, database.encode(), b"bad", position)
    store = Store(folder, ENCODER)

    vectors = partial(vectors_of, store)
    readers = {"originals": [store.original], "vectors": [vectors]}
    for read in readers.get(database, [store.record, store.original, vectors]):
        with pytest.raises(CorruptRecord, match=r"'bad' is damaged: delete the photo"):
            read("bad")

    # The damage stays where it is: the other photo is listed, found and read.
    assert_whole(store, "good", good)
    is_record = database == "records"
    assert [record is None for record in store.records(["bad", "good"])] == [is_record, False]
    assert [json.loads(record)["id"] for record in store.records_after(None, 1)] == [
        "good" if is_record else "bad"
    ]
    changes = store.changes(None, 2**20).changes
    content = replay({"bad": (float16(bad), {})}, changes)
    assert sorted(content) == (["bad", "good"] if database == "originals" else ["good"])
    assert ("'bad'" in caplog.text) == (database != "originals")

    # And what the error says to do helps.
    results = store.apply([Delete("bad"), put("bad", bad)])
    assert [type(result) for result in results] == [int, Stored]
    assert_whole(store, "bad", bad)
    assert_counts(store, {"bad": bad, "good": good})
    changes = store.changes(None, 2**20).changes
    assert [change.id for change in changes] == ["good", "bad", "bad"]  # put, removed, put
    assert store.deletions == 1  # the log keeps no entry of the damaged put
    assert_same_content(replay({}, changes), {"bad": bad, "good": good})
    store.close()


@pytest.mark.parametrize("position", [0, 20, -1])
def test_a_damaged_thumbnail_is_as_good_as_none(folder: Path, caplog, position: int) -> None:
    """The original is there to make another."""
    store = Store(folder, ENCODER)
    store.apply([put("bad", b"b" * 100), put("good", b"g" * 100)])
    store.close()
    flip(folder, b"thumbnails", b"bad", position)
    store = Store(folder, ENCODER)
    assert store.thumbnail("bad") is None
    assert "thumbnail of the photo 'bad' is damaged" in caplog.text
    assert_whole(store, "good", b"g" * 100)
    assert store.apply([keep("bad", b"b" * 100)]) == [True]
    assert_whole(store, "bad", b"b" * 100)
    store.close()


@pytest.mark.parametrize("position", [0, 20, -1])
def test_a_damaged_preview_is_as_good_as_none(folder: Path, caplog, position: int) -> None:
    good, bad = b"g" * 100, b"b" * 100
    store = Store(folder, ENCODER)
    store.apply([put("bad", bad), put("good", good)])
    store.close()
    flip(folder, b"previews", b"bad", position)
    store = Store(folder, ENCODER)
    assert store.previews(["good", "bad"]) == [preview_of(good), preview_of(bad, kept=False)]
    assert "preview of the photo 'bad' is damaged" in caplog.text
    assert store.apply([keep_preview("bad", bad)]) == [True]
    assert_whole(store, "bad", bad)
    store.close()


def test_the_preview_of_a_damaged_record_is_none(folder: Path, caplog) -> None:
    """Nobody knows of which original it was made."""
    store = Store(folder, ENCODER)
    store.apply([put("bad", b"b"), put("good", b"g")])
    store.close()
    flip(folder, b"records", b"bad", 30)
    store = Store(folder, ENCODER)
    assert store.previews(["bad", "good"]) == [None, preview_of(b"g")]
    assert "record of the photo 'bad' is damaged" in caplog.text
    (refused,) = store.apply([keep_preview("bad", b"b")])
    assert isinstance(refused, CorruptRecord)
    store.close()


def test_put_over_a_damaged_record(folder: Path) -> None:
    store = Store(folder, ENCODER)
    store.apply([put("a", b"x")])
    store.close()
    flip(folder, b"records", b"a", 30)
    store = Store(folder, ENCODER)
    damaged, other = store.apply([put("a", b"x"), put("b", b"y")])
    assert isinstance(damaged, CorruptRecord)
    assert isinstance(other, Stored)
    store.close()


def test_values_of_another_photo_are_found(folder: Path) -> None:
    store = Store(folder, ENCODER)
    store.apply([put("a", b"x"), put("b", b"x")])
    store.close()
    env = lmdb.open(str(folder), max_dbs=7)
    with env.begin(write=True) as txn:
        for name in (b"records", b"vectors"):
            db = env.open_db(name, txn=txn)
            txn.put(b"a", txn.get(b"b", db=db), db=db)
    env.close()
    store = Store(folder, ENCODER)
    with pytest.raises(CorruptRecord, match="record"):
        store.record("a")
    store.close()
