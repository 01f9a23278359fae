"""The store's log and its formats: following, cutting, histories, and stores of before."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import lmdb
import numpy as np
import pytest
from test_store import (
    DIMENSION,
    ENCODER,
    ROOT,
    Replica,
    assert_counts,
    assert_same_content,
    assert_whole,
    at,
    float16,
    photo,
    put,
)

from deployments import store as store_module
from deployments.errors import BadParameter, StoreFull, StoreUnusable
from deployments.records import Position
from deployments.settings import StoreSettings
from deployments.store import Delete, Put, Store, Stored, StoreDeployment
from deployments.store_followers import CUT_EVERY_S, FORGET_S, Followers
from deployments.store_format import _checksum, content_hash
from deployments.store_reader import StoreReader


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path):
    store = Store(folder, ENCODER)
    yield store
    store.close()


def with_deletions(store: Store, count: int) -> None:
    """Three photos; between the first and the others, photos that come and go."""
    store.apply([put("first", b"1")])
    store.apply([op for i in range(count) for op in (put(f"{i}", b"x"), Delete(f"{i}"))])
    store.apply([put("second", b"2"), put("third", b"3")])


# Where a follower goes on


def test_who_has_followed_goes_on_and_others_begin_anew(store: Store) -> None:
    store.apply([put("a", b"1"), put("b", b"2"), Delete("a")])
    here = at(store, 2)
    assert not store.changes(here, 1).anew
    assert not store.changes(at(store, 3), 1).anew
    for position in (
        None,
        replace(here, history="0" * 32),
        replace(here, sequence=4),
        replace(here, base=4),
    ):
        changes = store.changes(position, 2**20)
        assert changes.anew
        assert changes.position == Position(store.history, sequence=3, base=3)
        assert [change.id for change in changes.changes] == ["b", "a"]


def test_who_needs_what_was_cut_begins_anew(store: Store) -> None:
    with_deletions(store, 3)
    assert store.cut_log(5) == 2  # deletions are 3, 5 and 7
    assert store.changes(at(store, 4), 2**20).anew
    assert not store.changes(at(store, 5), 2**20).anew
    # Who began with nothing at change 6 needs no word of what was removed before that.
    late = Position(store.history, sequence=1, base=6)
    changes = store.changes(late, 2**20)
    assert not changes.anew
    assert [(change.sequence, change.vectors is None) for change in changes.changes] == [
        (7, True), (8, False), (9, False),
    ]  # fmt: skip


# Cutting


def test_a_cut_goes_portion_by_portion(store: Store, monkeypatch) -> None:
    monkeypatch.setattr(store_module, "CUT_ENTRIES", 3)
    with_deletions(store, 10)
    assert store.cut_log(0) == 0
    assert store.cut_log(12) == 5
    assert store.details().cut == 12
    assert store.cut_log(6) == 0  # nothing is ever uncut
    assert store.details().cut == 12
    assert store.cut_log(10**9) == 5
    assert (store.deletions, store.details().log_entries) == (0, 3)
    assert store.cut_log(10**9) == 0
    photos = {"first": b"1", "second": b"2", "third": b"3"}
    assert_same_content(Replica().catch_up(store), photos)


def test_the_last_change_stays_known_when_all_was_cut(store: Store, folder: Path) -> None:
    store.apply([put("a", b"x"), Delete("a")])
    assert store.cut_log(2) == 0
    store.apply([put("a", b"x"), Delete("a")])
    assert store.cut_log(4) == 1
    store.close()
    store = Store(folder, ENCODER)
    assert store.sequence == 4
    assert store.apply([put("b", b"y")])[0].record.sequence == 5
    assert store.cut_log(5) == 1
    store.close()


def test_a_cut_that_ends_in_the_middle_is_no_harm(store: Store, monkeypatch) -> None:
    """What a crash between two portions leaves."""
    monkeypatch.setattr(store_module, "CUT_ENTRIES", 4)
    with_deletions(store, 10)
    replica = Replica()
    replica.catch_up(store)
    stale = at(store, 3)

    def stop(_: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store_module.time, "sleep", stop)
        with pytest.raises(KeyboardInterrupt):
            store.cut_log(20)
    assert 0 < store.details().cut < 20
    assert store.changes(stale, 1).anew
    assert not store.changes(replica.position, 1).anew
    store.cut_log(20)
    assert store.deletions == 1


def test_a_full_store_can_be_cut(folder: Path) -> None:
    store = Store(folder, ENCODER, initial_bytes=2**18, max_bytes=2**20)
    store.apply([op for i in range(500) for op in (put(f"{i}", b"x"), Delete(f"{i}"))])
    number = 0
    while isinstance(store.apply([put(f"full{number}", b"x" * 5000)])[0], Stored):
        number += 1
    assert store.cut_log(1000) == 500
    assert store.deletions == 0
    assert store.stats().photos == number
    store.close()
    # And where the limit is raised it goes on.
    store = Store(folder, ENCODER, max_bytes=2 * 2**20)
    assert isinstance(store.apply([put(f"full{number}", b"x" * 5000)])[0], Stored)
    store.close()


def test_a_refused_put_leaves_no_trace(folder: Path) -> None:
    store = Store(folder, ENCODER, initial_bytes=2**20, max_bytes=2**20)
    store.apply([put("a", b"a")])
    before = store.stats(), store.details().log_entries
    (full,) = store.apply([put("big", b"b" * 2**20)])
    assert isinstance(full, StoreFull)
    assert full.status == 507
    assert (store.stats(), store.details().log_entries) == before
    assert isinstance(store.apply([put("big", b"b")])[0], Stored)
    store.close()


# Followers


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_followers_hold_back_the_cut() -> None:
    clock = Clock()
    followers = Followers(clock)

    def known(sequence: int, base: int = 0) -> Position:
        return Position("h", sequence, base)

    followers.heard("a", known(50), None)
    assert followers.cut_now() is None  # the others may not have been heard yet
    clock.now += FORGET_S
    followers.heard("a", known(60), None)
    assert followers.cut_now() == 60
    assert followers.cut_now() is None  # not so soon again
    for heard, floor in [
        (("b", known(90), known(40)), 40),  # its snapshot lies before
        (("b", known(90), known(10, base=55)), 55),  # and knows no more than 55 anyway
        (("b", known(90), Position("other", 3, 3)), 60),  # worth nothing: it would begin anew
        (("b", known(30, base=70), None), 60),  # still loading what there was at 70
        (("c", known(20), None), 20),
        (("c", known(95), None), 60),
    ]:
        clock.now += CUT_EVERY_S
        followers.heard("a", known(60), None)
        followers.heard(*heard)
        assert followers.cut_now() == floor
    # "a" and "b" are no longer heard, so they are forgotten.
    clock.now += FORGET_S
    followers.heard("c", known(99), known(97))
    assert followers.cut_now() == 97
    clock.now += FORGET_S
    assert followers.cut_now() is None


def test_the_deployment_cuts_what_its_followers_have_seen(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(store_module, "CUT_WORTH", 3)
    deployment = StoreDeployment.func_or_class(StoreSettings(path=str(folder)), ENCODER)
    store, clock = deployment.store, Clock()
    deployment._followers = Followers(clock)

    async def scenario() -> None:
        with_deletions(store, 2)
        deployment._sequence = store.sequence
        first = await deployment.changes(None, 0, "a", None)
        assert first.anew
        clock.now += FORGET_S
        here = first.position
        again = await deployment.changes(here, 0, "a", here)
        await deployment._cutting
        assert (again.changes, again.position) == ([], here)
        assert store.deletions == 2  # too few to be worth it
        store.apply([put("x", b"x"), Delete("x"), put("y", b"y"), Delete("y"), put("z", b"z")])
        deployment._sequence = store.sequence
        clock.now += CUT_EVERY_S
        followed = await deployment.changes(here, 0, "a", here)
        await deployment._cutting
        assert store.deletions == 2  # those it has not applied yet, and its snapshot neither
        clock.now += CUT_EVERY_S
        assert not (await deployment.changes(followed.position, 0, "a", followed.position)).anew
        await deployment._cutting
        assert store.deletions == 2  # too few again
        # A poll waits for a change, and returns with it.
        poll = asyncio.create_task(deployment.changes(followed.position, 30, "a", None))
        await asyncio.sleep(0.05)
        assert not poll.done()
        await asyncio.to_thread(store.apply, [put("new", b"n")])
        async with deployment._changed:
            deployment._sequence = store.sequence
            deployment._changed.notify_all()
        assert [change.id for change in (await poll).changes] == ["new"]

    asyncio.run(scenario())
    store.close()


# Metadata


@pytest.mark.parametrize(
    "bad",
    [
        {"a": float("nan")}, {"a": float("-inf")}, {"a": "\udcff"}, {"\ud800": 1}, {"a": None},
        {"a": [1]}, {"a": {"b": 1}}, {1: "a"},
    ],
)  # fmt: skip
def test_metadata_that_would_not_come_back_is_refused(store: Store, bad: dict) -> None:
    refused, good = store.apply([Put("bad", b"x", None, photo(b"x"), bad), put("good", b"y")])
    assert isinstance(refused, BadParameter)
    assert "metadata" in refused.detail
    assert isinstance(good, Stored)


def test_metadata_comes_back_as_it_was(store: Store) -> None:
    said = {"x": "", "e": "é \0 \U0001f600", "i": -(2**53), "f": 1e-300, "t": True, "zero": 0}
    store.apply([Put("a", b"x", None, photo(b"x"), said)])
    found = store.record("a").metadata
    assert found == said
    assert {key: type(value) for key, value in found.items()} == {
        key: type(value) for key, value in said.items()
    }
    (again,) = store.apply([Put("a", b"x", None, photo(b"x"), {"other": 1})])
    assert not again.created
    assert store.record("a").metadata == said


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


def make_format_1(folder: Path, photos: dict[str, bytes], map_size: int = 2**20) -> None:
    """A store as the first version wrote it: `photos`, after one that was put and deleted."""
    folder.mkdir()
    with lmdb.open(str(folder), max_dbs=5, map_size=map_size) as env:
        names = (b"meta", b"originals", b"records", b"vectors", b"log")
        with env.begin(write=True) as txn:
            meta, originals, records, vectors, log = (env.open_db(n, txn=txn) for n in names)
            txn.put(b"format", b"1", db=meta)
            txn.put(b"encoder", json.dumps(asdict(ENCODER)).encode(), db=meta)
            totals = {
                "chunks": sum(len(float16(data)) for data in photos.values()),
                "original_bytes": sum(map(len, photos.values())),
            }
            txn.put(b"totals", json.dumps(totals).encode(), db=meta)
            txn.put((2).to_bytes(8, "big"), b"Dgone", db=log)
            for sequence, (id, data) in enumerate(photos.items(), 3):
                key, described = id.encode(), photo(data)
                record = {
                    "id": id,
                    "filename": f"{id}.jpg",
                    "media_type": "image/jpeg",
                    "bytes": len(data),
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "width": 640,
                    "height": 480,
                    "animated": False,
                    "indexed_at": "2026-01-01T00:00:00.000+00:00",
                    "sequence": sequence,
                    "chunks": [chunk.model_dump() for chunk in described.chunks],
                }
                payload, rows = json.dumps(record).encode(), float16(data).tobytes()
                txn.put(key, data, db=originals)
                txn.put(key, _checksum(id, payload) + payload, db=records)
                txn.put(key, _checksum(id, rows) + rows, db=vectors)
                txn.put(sequence.to_bytes(8, "big"), b"P" + key, db=log)


OLD = {"a": b"one", "b": b"2" * 5000}


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
from tests.test_store import ENCODER

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


# Reading beside the owner

READER = """
import sys
from deployments.store_reader import StoreReader

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
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
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
    assert reader.vectors("a").shape[1] == DIMENSION
    assert list(reader.ids()) == ["a"]
    reader.close()
