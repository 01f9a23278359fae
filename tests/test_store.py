"""The store: against a dict as a model, through crashes, on full disks and on damaged ones."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import lmdb
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from deployments.errors import (
    BadParameter,
    CorruptRecord,
    EncoderMismatch,
    IdTaken,
    StoreFull,
    StoreUnusable,
    UnknownId,
)
from deployments.records import (
    Change,
    Chunk,
    EncodedPhoto,
    EncoderIdentity,
    Metadata,
    Position,
)
from deployments.store import Delete, Put, Store, Stored
from deployments.store_copies import backup, restore
from deployments.store_reader import StoreReader

DIMENSION = 16
ENCODER = EncoderIdentity("openai/clip-vit-base-patch32", DIMENSION, "ab" * 32)
ROOT = Path(__file__).parent.parent


def photo(data: bytes, chunks: int | None = None) -> EncodedPhoto:
    """A photo whose vectors follow from its bytes, so that a mix-up shows."""
    seed = int.from_bytes(hashlib.sha256(data).digest()[:4], "big")
    generator = np.random.default_rng(seed)
    chunks = 1 + seed % 4 if chunks is None else chunks
    vectors = generator.standard_normal((chunks, DIMENSION), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    whole = Chunk(box=(0, 0, 640, 480), source="whole")
    return EncodedPhoto(640, 480, "image/jpeg", False, [whole] * chunks, vectors)


def metadata(data: bytes) -> Metadata:
    """What the tests say of a photo; it follows from its bytes as well."""
    return {"size": len(data), "first": data[:1].hex(), "small": len(data) < 100, "half": 0.5}


def put(id: str, data: bytes) -> Put:
    return Put(id, data, f"{id}.jpg", photo(data), metadata(data))


def float16(data: bytes) -> np.ndarray:
    return photo(data).vectors.astype(np.float16)


def assert_whole(store: Store, id: str, data: bytes) -> None:
    record, original = store.original(id)
    assert original == data
    assert record == store.record(id)
    assert (record.id, record.bytes, record.metadata) == (id, len(data), metadata(data))
    assert record.sha256 == hashlib.sha256(data).hexdigest()
    np.testing.assert_array_equal(store.vectors(id), float16(data))


Content = dict[str, tuple[np.ndarray, Metadata]]


class Replica:
    """What an index does with changes: it holds what they say, and where it has got to."""

    def __init__(self) -> None:
        self.position: Position | None = None
        self.content: Content = {}

    def advance(self, store: StoreReader, max_bytes: int) -> bool:
        """Apply the next changes; returns whether there may be more."""
        before = self.position
        answer = store.changes(before, max_bytes)
        assert answer.last == store.sequence
        if answer.anew:
            self.content = {}
        self.content = replay(self.content, answer.changes)
        self.position = answer.position
        sequences = [change.sequence for change in answer.changes]
        assert sequences == sorted(set(sequences))
        assert not sequences or sequences[-1] <= answer.position.sequence <= answer.last
        return answer.position != before

    def catch_up(self, store: StoreReader, max_bytes: int = 2**20) -> Content:
        while self.advance(store, max_bytes):
            pass
        assert self.position.sequence == store.sequence
        return self.content


def at(store: Store, sequence: int) -> Position:
    """Where one is who has followed the store from its beginning."""
    return Position(store.history, sequence, base=0)


def replay(content: Content, changes: list[Change]) -> Content:
    content = dict(content)
    for change in changes:
        if change.vectors is None:
            assert change.metadata == {}
            content.pop(change.id, None)
        else:
            content[change.id] = change.vectors, change.metadata
    return content


def assert_same_content(content: Content, photos: dict[str, bytes]) -> None:
    assert set(content) == set(photos)
    for id, (vectors, said) in content.items():
        np.testing.assert_array_equal(vectors, float16(photos[id]))
        assert said == metadata(photos[id])


def assert_counts(store: Store, photos: dict[str, bytes]) -> None:
    stats = store.stats()
    assert stats.photos == len(photos)
    assert stats.chunks == sum(len(float16(data)) for data in photos.values())
    assert stats.original_bytes == sum(map(len, photos.values()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path):
    store = Store(folder, ENCODER)
    yield store
    store.close()


# Against a model

IDS = st.sampled_from(["a", "B", "a.1", "a~", "0-_", "z" * 200])
DATA = st.sampled_from([b"\0", b"one", b"two", b"3" * 5000, b"4" * 20_000])
PORTIONS = st.sampled_from([1, 600, 2**20])
OPERATIONS = st.one_of(st.builds(put, IDS, DATA), st.builds(Delete, IDS))


class StoreMachine(RuleBasedStateMachine):
    """The store must do what a dict does, and a replica that follows it must get there too."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp()
        self.lives = 0
        self.photos: dict[str, bytes] = {}
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
    def apply(self, operations: list[Put | Delete]) -> None:
        results = self.store.apply(operations)
        assert len(results) == len(operations)
        for operation, result in zip(operations, results, strict=True):
            self.check(operation, result)

    def check(self, operation: Put | Delete, result: object) -> None:
        held = self.photos.get(operation.id)
        if isinstance(operation, Delete) and held is None:
            assert isinstance(result, UnknownId)
        elif isinstance(operation, Delete):
            self.sequence += 1
            assert result == self.sequence
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
        assert [record and record.id for record in records] == [
            id if id in self.photos else None for id in ids
        ]

    @rule(after=st.none() | IDS, limit=st.integers(1, 4))
    def page(self, after: str | None, limit: int) -> None:
        found = [record.id for record in self.store.page(after, limit)]
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
    max_examples=100,
    stateful_step_count=20,
    deadline=None,
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


def test_unknown(store: Store) -> None:
    for read in (store.record, store.original, store.vectors):
        with pytest.raises(UnknownId, match="'nobody'"):
            read("nobody")
    assert store.records(["nobody"]) == [None]
    assert store.page(None, 10) == []
    changes = store.changes(None, 1)
    assert (changes.changes, changes.last) == ([], 0)
    assert store.apply([]) == []


@pytest.mark.parametrize(
    "id",
    [
        "", ".", "..", "-a", "~", "a/b", "../a", "a b", "a\n", "a\0", "é", "a" * 201, "\udcff",
        "a" * 5000,
    ],
)  # fmt: skip
def test_hostile_id(store: Store, id: str) -> None:
    bad_put, bad_delete, good = store.apply([put(id, b"x"), Delete(id), put("good", b"y")])
    assert isinstance(bad_put, BadParameter)
    assert isinstance(bad_delete, BadParameter)
    assert isinstance(good, Stored)
    for read in (store.record, store.original, store.vectors):
        with pytest.raises(BadParameter):
            read(id)
    with pytest.raises(BadParameter):
        store.page(id, 1)
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
    bad = EncodedPhoto(1, 1, "image/png", False, whole, vectors)
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
    with lmdb.open(str(folder), max_dbs=5) as env, env.begin() as txn:
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


# The map grows, the store fills


def test_map_grows_under_readers(folder: Path) -> None:
    store = Store(folder, ENCODER, initial_bytes=2**17)
    store.apply([put("first", b"1" * 10_000)])
    done = threading.Event()
    failures: list[BaseException] = []
    reads = [0] * 4

    def read(reader: int) -> None:
        try:
            while not done.is_set():
                assert_whole(store, "first", b"1" * 10_000)
                store.page(None, 5)
                store.changes(at(store, max(0, store.stats().sequence - 3)), 2**20)
                reads[reader] += 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(reader,)) for reader in range(len(reads))]
    for thread in threads:
        thread.start()
    try:
        for group in range(40):
            results = store.apply([put(f"{group}-{i}", os.urandom(50_000)) for i in range(8)])
            assert all(isinstance(result, Stored) for result in results)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert min(reads) > 0
    assert store.stats().map_bytes >= 16 * 2**20
    store.close()


def test_full_store(folder: Path) -> None:
    max_bytes = 2 * 2**20
    store = Store(folder, ENCODER, initial_bytes=2**17, max_bytes=max_bytes)
    photos = {f"{i:03}": bytes([i]) * 60_000 for i in range(60)}
    held: dict[str, bytes] = {}
    for id, data in photos.items():
        (result,) = store.apply([put(id, data)])
        if isinstance(result, StoreFull):
            assert "max_bytes" in result.detail
            assert "Nothing of this request was stored" in result.detail
            break
        held[id] = data
    assert 10 < len(held) < 40
    # Of a group, what fits is stored.
    big, small, again = store.apply(
        [put("big", b"b" * 500_000), put("small", b"s"), put("000", held["000"])]
    )
    assert isinstance(big, StoreFull)
    assert isinstance(small, Stored)
    assert isinstance(again, Stored)
    held["small"] = b"s"
    for id, data in held.items():
        assert_whole(store, id, data)
    # Deleting makes room, again and again, and the map doesn't creep.
    for round in range(30):
        id = next(iter(held))
        (deleted,) = store.apply([Delete(id)])
        assert isinstance(deleted, int)
        del held[id]
        (stored,) = store.apply([put(f"new{round}", b"n" * 50_000)])
        if isinstance(stored, Stored):
            held[f"new{round}"] = b"n" * 50_000
    assert sum(id.startswith("new") for id in held) > 5
    for id, data in held.items():
        assert_whole(store, id, data)
    assert_counts(store, held)
    assert (folder / "data.mdb").stat().st_size <= max_bytes + 2**18
    # Everything can be deleted from a full store.
    assert all(isinstance(result, int) for result in store.apply([Delete(id) for id in held]))
    store.close()
    # A store opened under a smaller max_bytes can be read and emptied.
    store = Store(folder, ENCODER, max_bytes=2**16)
    assert store.stats().photos == 0
    store.close()


def test_delete_after_max_bytes_was_lowered(folder: Path) -> None:
    store = Store(folder, ENCODER)
    store.apply([put(f"{i}", os.urandom(100_000)) for i in range(20)])
    store.close()
    store = Store(folder, ENCODER, max_bytes=2**20)
    (full,) = store.apply([put("new", b"x" * 100_000)])
    assert isinstance(full, StoreFull)
    map_bytes = store.stats().map_bytes
    for i in range(20):
        (deleted,) = store.apply([Delete(f"{i}")])
        assert isinstance(deleted, int)
        # What the deletion took beyond the limit is not left for puts.
        assert store.stats().map_bytes < map_bytes + 2**18
    (stored,) = store.apply([put("new", b"x" * 100_000)])
    assert isinstance(stored, Stored)
    store.close()


def test_file_may_not_grow(store: Store, folder: Path) -> None:
    """EFBIG and ENOSPC take the same way through LMDB; this one any user can provoke."""
    store.apply([put("a", b"a" * 100_000)])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (folder / "data.mdb").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        results = store.apply([put(f"b{i}", os.urandom(2**20)) for i in range(3)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    for result in results:
        assert isinstance(result, StoreFull)
        assert "disk" in result.detail
    assert_whole(store, "a", b"a" * 100_000)
    assert_counts(store, {"a": b"a" * 100_000})
    assert all(isinstance(result, Stored) for result in store.apply([put("c", b"c" * 2**20)]))


@pytest.mark.parametrize(
    ("code", "free", "is_full"),
    [
        (errno.ENOSPC, 10**12, True),
        (errno.EDQUOT, 10**12, True),
        (errno.EIO, 1000, True),
        (errno.EIO, 10**12, False),
    ],
)
def test_disk_errors(store, monkeypatch, code: int, free: int, is_full: bool) -> None:
    """What is a full disk, and what is a broken one."""

    class FailingWriter:
        def __init__(self, *_: object) -> None: ...

        def carry_out(self, _: object) -> list:
            error = lmdb.Error("mdb_txn_commit")
            error.code, error.reason = code, os.strerror(code)
            raise error

    disk = os.statvfs(store.path)
    with monkeypatch.context() as patch:
        patch.setattr("deployments.store.Writer", FailingWriter)
        full = os.statvfs_result((*disk[:4], free // disk.f_frsize, *disk[5:]))
        patch.setattr(os, "statvfs", lambda _: full)
        if is_full:
            (result,) = store.apply([put("a", b"x")])
            assert isinstance(result, StoreFull)
        else:
            with pytest.raises(lmdb.Error):
                store.apply([put("a", b"x")])
    assert isinstance(store.apply([put("a", b"x")])[0], Stored)


# Damage


def flip(folder: Path, database: bytes, id: bytes, position: int) -> None:
    """Flip a bit of a value behind the store's back."""
    env = lmdb.open(str(folder), max_dbs=5)
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

    readers = {"originals": [store.original], "vectors": [store.vectors]}
    for read in readers.get(database, [store.record, store.original, store.vectors]):
        with pytest.raises(CorruptRecord, match=r"'bad' is damaged: delete the photo"):
            read("bad")

    # The damage stays where it is: the other photo is listed, found and read.
    assert_whole(store, "good", good)
    is_record = database == "records"
    assert [record is None for record in store.records(["bad", "good"])] == [is_record, False]
    assert [record.id for record in store.page(None, 1)] == ["good" if is_record else "bad"]
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
    env = lmdb.open(str(folder), max_dbs=5)
    with env.begin(write=True) as txn:
        for name in (b"records", b"vectors"):
            db = env.open_db(name, txn=txn)
            txn.put(b"a", txn.get(b"b", db=db), db=db)
    env.close()
    store = Store(folder, ENCODER)
    with pytest.raises(CorruptRecord, match="record"):
        store.record("a")
    store.close()


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
        assert "configure the old encoder, or index into a new folder" in str(caught.value)
    Store(folder, EncoderIdentity("the/same/in/a/folder", DIMENSION, ENCODER.digest)).close()


def test_other_format(folder: Path) -> None:
    Store(folder, ENCODER).close()
    env = lmdb.open(str(folder), max_dbs=5)
    meta = env.open_db(b"meta")
    with env.begin(write=True) as txn:
        txn.put(b"format", b"99", db=meta)
    env.close()
    with pytest.raises(StoreUnusable, match="has format 99, this version reads format 2"):
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
    assert 0.2 <= time.monotonic() - start < 2


# Other processes

CHILD = """
import os, random, sys
from deployments.store import Put, Store
from tests.test_store import ENCODER, put

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
        threading.Timer(random.uniform(0.02, 0.4), child.send_signal, [signal.SIGKILL]).start()
        lines = child.stdout.read().splitlines(keepends=True)
        assert child.wait() == -signal.SIGKILL
        for line in lines:
            if line.endswith("\n"):  # the last may be torn
                id, size = line.split()
                expected[id] = id.encode() * (int(size) // len(id))

        store = Store(folder, ENCODER, lock_timeout_s=1)
        found = {}
        for record in store.page(None, 10**6):
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


FULL_DISK = """
import sys
from deployments.errors import StoreFull
from deployments.store import Delete, Store, Stored
from tests.test_store import ENCODER, assert_counts, assert_whole, put

store = Store(sys.argv[1], ENCODER)
held = {}
results = []
while not results or isinstance(results[-1], Stored):
    group = [put(f"{len(held) + i}", bytes([len(held) + i]) * 90_000) for i in range(3)]
    results = store.apply(group)
    held |= {p.id: p.data for p, r in zip(group, results) if isinstance(r, Stored)}
assert isinstance(results[-1], StoreFull), results
assert "disk" in results[-1].detail, results
assert len(held) > 10
for id, data in held.items():
    assert_whole(store, id, data)
for id in list(held)[:6]:
    (result,) = store.apply([Delete(id)])
    assert isinstance(result, int), result
    del held[id]
(result,) = store.apply([put("late", b"l" * 90_000)])
assert isinstance(result, Stored), result
held["late"] = b"l" * 90_000
store.close()
store = Store(sys.argv[1], ENCODER)
for id, data in held.items():
    assert_whole(store, id, data)
assert_counts(store, held)
"""


def test_full_disk(tmp_path: Path) -> None:
    """A real ENOSPC, on a file system of 3 MiB in a mount namespace of its own."""
    script = 'mount -t tmpfs -o size=3m none "$0" || exit 77; exec "$@"'
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    command = [*unshare, str(tmp_path), sys.executable, "-c", FULL_DISK, str(tmp_path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    except FileNotFoundError:
        pytest.skip("no unshare command here")
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip(f"no mount namespaces here: {done.stderr}")
    assert done.returncode == 0, done.stderr
