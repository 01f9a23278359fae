"""The store: against a dict as a model, one call, how it is opened, and killed while it writes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import lmdb
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from deployments.errors import BadParameter, EncoderMismatch, IdTaken, StoreUnusable, UnknownId
from deployments.records import Chunk, EncodedPhoto, EncoderIdentity, Record, Stored
from deployments.store.copies import backup, restore
from deployments.store.operations import Delete, Keep, KeepPreview, KeepThumbnail, Put
from deployments.store.store import Store
from tests.support.paths import ROOT
from tests.support.running.examples import examples
from tests.support.stored.stores import (
    DIMENSION,
    ENCODER,
    Replica,
    assert_counts,
    assert_same_content,
    assert_whole,
    at,
    keep,
    keep_preview,
    metadata,
    photo,
    preview_of,
    put,
)

# Against a model

IDS = st.sampled_from(["a", "B", "a.1", "a~", "0-_", "z" * 200])
DATA = st.sampled_from([b"\0", b"one", b"two", b"3" * 5000, b"4" * 20_000])
PORTIONS = st.sampled_from([1, 600, 2**20])
MAKERS = st.sampled_from([put, put, keep, keep_preview])
OPERATIONS = st.one_of(
    st.builds(lambda make, id, data: make(id, data), MAKERS, IDS, DATA), st.builds(Delete, IDS)
)


class StoreMachine(RuleBasedStateMachine):
    """The store must do what a dict does, and a replica that follows it must get there too."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp()
        self.lives = 0
        self.photos: dict[str, bytes] = {}
        self.deleted: dict[str, int] = {}  # the latest deletion of each id that the log has
        self.sequence = 0
        self.replicas = [Replica()]

    @property
    def path(self) -> Path:
        return Path(self.folder, str(self.lives))

    @initialize()
    def open(self) -> None:
        # So small that groups run into the end of the map.
        self.store = Store(self.path, ENCODER, initial_bytes=2**16)

    @rule()
    def reopen(self) -> None:
        history = self.store.history
        self.store.close()
        self.open()
        assert self.store.history == history

    @rule(operations=st.lists(OPERATIONS, min_size=1, max_size=6))
    def apply(self, operations: list[Put | Delete | Keep]) -> None:
        results = self.store.apply(operations)
        assert len(results) == len(operations)
        for operation, result in zip(operations, results, strict=True):
            self.check(operation, result)

    def check(self, operation: Put | Delete | Keep, result: object) -> None:
        held = self.photos.get(operation.id)
        if isinstance(operation, Keep):
            # Of another photo, or of one that is gone, it must leave no trace.
            make = keep if isinstance(operation, KeepThumbnail) else keep_preview
            assert result is (held is not None and operation == make(operation.id, held))
        elif isinstance(operation, Delete) and held is None:
            if operation.id in self.deleted:
                assert result == self.deleted[operation.id]
            else:
                assert isinstance(result, UnknownId)
        elif isinstance(operation, Delete):
            self.sequence += 1
            assert result == self.sequence
            self.deleted[operation.id] = self.sequence
            del self.photos[operation.id]
        elif held is None:
            self.sequence += 1
            assert isinstance(result, Stored)
            assert result.created
            assert result.record.sequence == self.sequence
            self.photos[operation.id] = operation.data
        elif held == operation.data:
            assert isinstance(result, Stored)
            assert not result.created
            assert result.record.sha256 == hashlib.sha256(operation.data).hexdigest()
            assert result.record.metadata == metadata(operation.data)
        else:
            assert isinstance(result, IdTaken)
            assert operation.id in result.detail

    @rule(which=st.integers(0), portions=st.integers(1, 3), max_bytes=PORTIONS)
    def a_replica_follows(self, which: int, portions: int, max_bytes: int) -> None:
        replica = self.replicas[which % len(self.replicas)]
        for _ in range(portions):
            replica.advance(self.store, max_bytes)

    @rule()
    def a_replica_begins(self) -> None:
        self.replicas.append(Replica())

    @rule(max_bytes=PORTIONS)
    def all_replicas_catch_up(self, max_bytes: int) -> None:
        for replica in self.replicas:
            assert_same_content(replica.catch_up(self.store, max_bytes), self.photos)

    @rule(part=st.floats(0, 1.2))
    def cut(self, part: float) -> None:
        before = self.store.deletions
        removed = self.store.cut_log(round(part * self.sequence))
        gone = min(round(part * self.sequence), self.sequence - 1)
        self.deleted = {id: sequence for id, sequence in self.deleted.items() if sequence > gone}
        assert self.store.deletions == before - removed
        if part >= 1:  # but for the last entry, which says what the last change was
            assert self.store.deletions <= 1

    @rule()
    def back_up_and_restore(self) -> None:
        file = Path(self.folder, "backup")
        backup(self.store, file, int)
        history = self.store.history
        self.store.close()
        self.lives += 1
        restore(file, self.path, int)
        self.open()
        assert self.store.history != history

    @rule(ids=st.lists(IDS, max_size=8))
    def records(self, ids: list[str]) -> None:
        records = self.store.records(ids)
        assert [record and json.loads(record)["id"] for record in records] == [
            id if id in self.photos else None for id in ids
        ]

    @rule(ids=st.lists(IDS, max_size=8))
    def previews(self, ids: list[str]) -> None:
        expected = [preview_of(self.photos[id]) if id in self.photos else None for id in ids]
        assert self.store.previews(ids) == expected

    @rule(after=st.none() | IDS, limit=st.integers(1, 4))
    def records_after(self, after: str | None, limit: int) -> None:
        found = [json.loads(record)["id"] for record in self.store.records_after(after, limit)]
        assert found == sorted(id for id in self.photos if id > (after or ""))[:limit]

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        if not hasattr(self, "store"):
            return
        for id, data in self.photos.items():
            assert_whole(self.store, id, data)
        assert_counts(self.store, self.photos)
        assert self.store.stats().sequence == self.sequence

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
        shutil.rmtree(self.folder)


TestAgainstModel = StoreMachine.TestCase
TestAgainstModel.settings = settings(
    max_examples=examples(100),
    stateful_step_count=20,
    suppress_health_check=[HealthCheck.too_slow],
)


# One call


def test_group_sees_its_own_effects(store: Store) -> None:
    results = store.apply(
        [put("a", b"1"), put("a", b"2"), Delete("a"), put("a", b"2"), put("a", b"2"), Delete("b")]
    )
    assert isinstance(results[0], Stored)
    assert isinstance(results[1], IdTaken)
    assert results[2] == 2
    assert isinstance(results[3], Stored)
    assert results[3].record.sequence == 3
    assert isinstance(results[4], Stored)
    assert results[4] == Stored(results[3].record, created=False)
    assert isinstance(results[5], UnknownId)
    assert_whole(store, "a", b"2")


def test_a_deletion_that_is_repeated_is_answered_with_its_change(
    store: Store, folder: Path
) -> None:
    """Whoever had no answer asks again. Nothing is written, whatever came in between."""
    assert store.apply([put("a", b"1"), put("b", b"2"), Delete("a"), Delete("a")])[2:] == [3, 3]
    assert isinstance(store.apply([Delete("never")])[0], UnknownId)
    store.close()
    store = Store(folder, ENCODER)
    assert store.apply([Delete("a")]) == [3]
    # Of several it is the latest.
    assert store.apply([put("a", b"3"), Delete("a"), Delete("b"), Delete("a")])[1:] == [5, 6, 5]
    assert (store.sequence, store.deletions) == (6, 3)
    # What was cut from the log is no longer known.
    store.cut_log(5)
    (unknown, known) = store.apply([Delete("a"), Delete("b")])
    assert isinstance(unknown, UnknownId)
    assert known == 6
    store.close()


def test_only_the_latest_changes_are_looked_through(store: Store, monkeypatch) -> None:
    """A deletion of an id that never was must not read a log of millions of entries."""
    monkeypatch.setattr("deployments.store.format.REPEATABLE", 3)
    store.apply([put("a", b"1"), Delete("a"), put("b", b"2"), put("c", b"3")])
    assert store.apply([Delete("a")]) == [2]
    store.apply([put("d", b"4")])
    assert isinstance(store.apply([Delete("a")])[0], UnknownId)


def test_a_thumbnail_goes_with_its_photo(store: Store) -> None:
    """And comes back with no other, nor alone."""
    one, two = put("a", b"one"), put("a", b"two")
    store.apply([one])
    assert store.thumbnail("a") == one.photo.thumbnail
    late = KeepThumbnail("a", hashlib.sha256(b"one").hexdigest(), b"late")
    results = store.apply([late, Delete("a"), late, two, late])
    assert [results[0], results[2], results[4]] == [True, False, False]
    assert store.thumbnail("a") == two.photo.thumbnail
    assert store.sequence == 3  # nobody who follows the log need know
    store.apply([Delete("a")])
    with store.reading() as txn:
        assert txn.stat(store.dbs.thumbnails)["entries"] == 0


def test_a_preview_goes_with_its_photo(store: Store) -> None:
    """And comes back with no other, nor alone. Its SHA-256 tells whose it is."""
    one, two = put("a", b"one"), put("a", b"two")
    store.apply([one])
    late = KeepPreview("a", hashlib.sha256(b"one").hexdigest(), b"late")
    assert store.apply([late]) == [True]
    assert store.previews(["a"]) == [replace(preview_of(b"one"), data=b"late")]
    results = store.apply([Delete("a"), late, two, late])
    assert [results[1], results[3]] == [False, False]
    assert store.previews(["a", "b", "a"]) == [preview_of(b"two"), None, preview_of(b"two")]
    assert store.thumbnail("a") == two.photo.thumbnail
    assert store.sequence == 3  # nobody who follows the log need know
    store.apply([Delete("a")])
    assert store.previews(["a"]) == [None]
    with store.reading() as txn:
        assert txn.stat(store.dbs.previews)["entries"] == 0


def test_a_list_says_what_is_stored_with_or_without_chunks(store: Store) -> None:
    """Metadata can't be taken for chunks."""
    odd = {"chunks": '[{"box":1}],"chunks":[', "box": True}
    store.apply([put("a", b"1"), Put("b", b"2", ',"chunks":[', photo(b"2"), odd)])
    records = [store.record(id) for id in ("a", "b")]
    assert [Record.model_validate_json(one) for one in store.records_after(None, 9)] == records
    assert store.records_after(None, 9) == store.records(["a", "b"])
    compact = [json.loads(one) for one in store.records_after(None, 9, compact=True)]
    assert compact == [record.model_dump(exclude={"chunks"}) for record in records]


def test_unknown(store: Store) -> None:
    for read in (store.record, store.original, store.thumbnail):
        with pytest.raises(UnknownId, match="'nobody'"):
            read("nobody")
    assert store.records(["nobody"]) == store.previews(["nobody"]) == [None]
    assert store.records_after(None, 10) == []
    changes = store.changes(None, 1)
    assert (changes.changes, changes.last) == ([], 0)
    assert store.apply([]) == []


@pytest.mark.parametrize(
    "id",
    [
        "",
        ".",
        "..",
        "-a",
        "~",
        "a/b",
        "../a",
        "a b",
        "a\n",
        "a\0",
        "é",
        "a" * 201,
        "\udcff",
        "a" * 5000,
    ],
)
def test_hostile_id(store: Store, id: str) -> None:
    bad_put, bad_delete, good = store.apply([put(id, b"x"), Delete(id), put("good", b"y")])
    assert isinstance(bad_put, BadParameter)
    assert isinstance(bad_delete, BadParameter)
    assert isinstance(good, Stored)
    for read in (store.record, store.original, store.thumbnail):
        with pytest.raises(BadParameter):
            read(id)
    for read_many in (store.records, store.previews):
        with pytest.raises(BadParameter):
            read_many(["good", id])
    with pytest.raises(BadParameter):
        store.records_after(id, 1)
    str(bad_put.detail).encode()  # it can be written into a response


def test_file_name_that_is_not_utf8(store: Store) -> None:
    (result,) = store.apply([Put("a", b"x", "caf\udce9\0\n\u202e.jpg", photo(b"x"))])
    assert isinstance(result, Stored)
    assert store.record("a").filename == "caf?\0\n\u202e.jpg"


@pytest.mark.parametrize(
    ("chunks", "vectors"),
    [
        (0, np.zeros((0, DIMENSION))),
        (1, np.zeros((2, DIMENSION))),
        (1, np.zeros((1, DIMENSION + 1))),
        (1, np.zeros(DIMENSION)),
        (1, np.full((1, DIMENSION), np.nan)),
        (1, np.full((1, DIMENSION), np.inf)),
    ],
)
def test_vectors_that_do_not_fit(store: Store, chunks: int, vectors: np.ndarray) -> None:
    whole = [Chunk(box=(0, 0, 1, 1), source="whole")] * chunks
    bad = EncodedPhoto(1, 1, "image/png", False, whole, vectors, b"", b"")
    with pytest.raises(ValueError, match="'bad'"):
        store.apply([put("good", b"x"), Put("bad", b"y", None, bad)])
    assert store.stats().photos == 0


def test_log_keeps_no_entry_of_what_is_gone(folder: Path) -> None:
    store = Store(folder, ENCODER)
    for _ in range(20):
        store.apply([put("a", b"x"), Delete("a")])
    changes = store.changes(None, 2**20)
    assert [change.vectors for change in changes.changes] == [None] * 20
    assert changes.position.sequence == 40
    assert store.deletions == 20
    store.close()
    with lmdb.open(str(folder), max_dbs=7) as env, env.begin() as txn:
        assert txn.stat(env.open_db(b"log", txn=txn, create=False))["entries"] == 20


def test_changes_come_in_portions(store: Store) -> None:
    store.apply([put(f"{i:02}", b"x") for i in range(20)])
    assert [change.sequence for change in store.changes(None, 1).changes] == [1]
    portion = store.changes(at(store, 5), 2**10)
    assert not portion.anew
    assert 1 < len(portion.changes) < 5
    reached = portion.position
    assert reached.sequence == portion.changes[-1].sequence == 5 + len(portion.changes)
    # Deletions have no vectors, but there may be millions of them.
    store.apply([Delete(f"{i:02}") for i in range(20)])
    assert 1 < len(store.changes(at(store, 20), 2**10).changes) < 10


def test_commits_are_synced(store: Store) -> None:
    flags = store._env.flags()
    assert flags["sync"]
    assert flags["metasync"]


# Metadata


@pytest.mark.parametrize(
    "bad",
    [
        {"a": float("nan")},
        {"a": float("-inf")},
        {"a": "\udcff"},
        {"\ud800": 1},
        {"a": None},
        {"a": [1]},
        {"a": {"b": 1}},
        {1: "a"},
    ],
)
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


# Opening


def test_encoder_mismatch(folder: Path) -> None:
    Store(folder, ENCODER).close()
    for other in (
        EncoderIdentity("models/compact", DIMENSION, "cd" * 32),
        EncoderIdentity("models/compact", 32, ENCODER.digest),
    ):
        with pytest.raises(EncoderMismatch) as caught:
            Store(folder, other)
        for encoder in (ENCODER, other):
            assert encoder.name in str(caught.value)
            assert f"dimension {encoder.dimension}" in str(caught.value)
            assert encoder.digest[:12] in str(caught.value)
        assert f"scripts/store.py reindex --path {folder}, or configure" in str(caught.value)
    Store(folder, EncoderIdentity("the/same/in/a/folder", DIMENSION, ENCODER.digest)).close()


def test_other_format(folder: Path) -> None:
    Store(folder, ENCODER).close()
    env = lmdb.open(str(folder), max_dbs=7)
    meta = env.open_db(b"meta")
    with env.begin(write=True) as txn:
        txn.put(b"format", b"99", db=meta)
    env.close()
    with pytest.raises(StoreUnusable, match="has format 99, but this version reads format 4"):
        Store(folder, ENCODER)


def test_not_a_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(StoreUnusable, match="file"):
        Store(tmp_path / "file", ENCODER)

    garbage = tmp_path / "garbage"
    garbage.mkdir()
    (garbage / "data.mdb").write_bytes(b"garbage" * 10_000)
    with pytest.raises(StoreUnusable, match="garbage"):
        Store(garbage, ENCODER)

    foreign = lmdb.open(str(tmp_path / "foreign"), max_dbs=1)
    with foreign.begin(write=True) as txn:
        txn.put(b"photo.jpg", b"a document")
    foreign.close()
    with pytest.raises(StoreUnusable, match="not a store of this service"):
        Store(tmp_path / "foreign", ENCODER)


def test_one_owner(store: Store, folder: Path) -> None:
    start = time.monotonic()
    with pytest.raises(StoreUnusable, match=rf"{folder} is in use by process {os.getpid()}"):
        Store(folder, ENCODER, lock_timeout_s=0.2)
    assert 0.2 <= time.monotonic() - start < 8  # of 10 by default


# Killed

CHILD = """
import os, random, sys
from deployments.store.store import Store
from deployments.store.operations import Put
from tests.support.stored.stores import ENCODER, put

folder, prefix = sys.argv[1:]
store = Store(folder, ENCODER, initial_bytes=2**18)
print("open", flush=True)
generator = random.Random(prefix)
for number in range(100_000):
    group = []
    for part in range(generator.choice([1, 1, 2, 8])):
        id = f"{prefix}.{number}.{part}"
        group.append(put(id, id.encode() * generator.choice([1, 100, 5000])))
    store.apply(group)
    print(*(f"{p.id} {len(p.data)}" for p in group), sep="\\n", flush=True)
"""


def start_child(folder: Path, prefix: str) -> subprocess.Popen:
    command = [sys.executable, "-c", CHILD, str(folder), prefix]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_killed_writer_loses_nothing_it_acknowledged(folder: Path) -> None:
    expected: dict[str, bytes] = {}
    for round in range(4):
        child = start_child(folder, f"r{round}")
        assert child.stdout.readline() == "open\n"
        with pytest.raises(StoreUnusable, match=f"process {child.pid}"):
            Store(folder, ENCODER, lock_timeout_s=0)
        # In the midst of its writing: it goes on while the last of these lines is on its way.
        lines = [child.stdout.readline() for _ in range(random.randint(6, 200))]
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.read().splitlines(keepends=True)
        assert child.wait() == -signal.SIGKILL
        for line in lines:
            if line.endswith("\n"):  # the last may be torn
                id, size = line.split()
                expected[id] = id.encode() * (int(size) // len(id))

        store = Store(folder, ENCODER, lock_timeout_s=1)
        found = {}
        for record in map(Record.model_validate_json, store.records_after(None, 10**6)):
            # Whole, whether it was acknowledged or not.
            data = record.id.encode() * (record.bytes // len(record.id))
            assert_whole(store, record.id, data)
            found[record.id] = data
        assert found.items() >= expected.items()
        assert len(found) <= len(expected) + 8 * (round + 1)
        assert_counts(store, found)
        assert_same_content(Replica().catch_up(store), found)
        assert store.stats().sequence == len(found)
        store.close()
        expected = found
    assert len(expected) > 20
