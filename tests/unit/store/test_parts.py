"""Parts of originals: they are slices, of the right photo, and nothing else is read."""

from __future__ import annotations

import hashlib
import os
import tracemalloc
from pathlib import Path

import lmdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.errors import CorruptRecord, UnknownId
from deployments.store.operations import Delete
from deployments.store.store import Store
from tests.support.stored.stores import ENCODER, put


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@given(size=st.integers(1, 20_000), data=st.data())
def test_a_part_is_the_slice(
    tmp_path_factory: pytest.TempPathFactory, size: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start, size))
    content = os.urandom(size)
    store = Store(tmp_path_factory.mktemp("store"), ENCODER)
    try:
        store.apply([put("a", content), put("b", b"other")])
        assert store.original_part("a", sha256(content), start, stop) == content[start:stop]
    finally:
        store.close()


def test_no_more_than_the_part_is_copied(store: Store) -> None:
    content = os.urandom(8 * 2**20)
    store.apply([put("a", content)])
    tracemalloc.start()
    try:
        part = store.original_part("a", sha256(content), 2**20, 2**20 + 1000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert part == content[2**20 : 2**20 + 1000]
    assert peak < 2**20


def test_a_part_of_another_photo_is_none(store: Store) -> None:
    store.apply([put("a", b"before")])
    known = sha256(b"before")
    assert store.original_part("a", known, 0, 3) == b"bef"
    store.apply([Delete("a"), put("a", b"afterwards")])
    assert store.original_part("a", known, 0, 3) is None
    store.apply([Delete("a")])
    with pytest.raises(UnknownId, match="'a'"):
        store.original_part("a", known, 0, 3)


def test_a_part_outlives_what_it_was_read_from(store: Store) -> None:
    """It is a copy: writers may use the space again."""
    content = os.urandom(50_000)
    store.apply([put("a", content)])
    part = store.original_part("a", sha256(content), 10, 40_000)
    store.apply([Delete("a")])
    for number in range(5):
        store.apply([put(f"{number}", b"\0" * 50_000)])
    assert part == content[10:40_000]


def test_missing_bytes_are_noticed(folder: Path) -> None:
    """Others are not: a part is not compared with the SHA-256."""
    store = Store(folder, ENCODER)
    store.apply([put("cut", b"content"), put("damaged", b"content")])
    store.close()
    with lmdb.open(str(folder), max_dbs=7) as env:
        originals = env.open_db(b"originals")
        with env.begin(write=True, db=originals) as txn:
            txn.put(b"cut", b"cont")
            txn.put(b"damaged", b"cONTENT")
    store = Store(folder, ENCODER)
    with pytest.raises(CorruptRecord, match="'cut'"):
        store.original_part("cut", sha256(b"content"), 0, 2)
    assert store.original_part("damaged", sha256(b"content"), 0, 2) == b"cO"
    store.close()
