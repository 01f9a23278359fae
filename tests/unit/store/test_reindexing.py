"""A store that is built again for another encoder, while the old one is in use."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import lmdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.errors import BrokenImage, InsetError, StoreFull, StoreUnusable
from deployments.records import EncodedPhoto, EncoderIdentity, Record
from deployments.store import reindexing as module
from deployments.store.check import StoreCheck
from deployments.store.copies import restore
from deployments.store.operations import Delete, Put
from deployments.store.reader import StoreReader
from deployments.store.reindexing import Reindexing, Replaced, StoreInUse, needs_reindexing
from deployments.store.store import Store
from tests.support.paths import ROOT
from tests.support.stored.stores import (
    ENCODER,
    OLD,
    assert_whole,
    make_old,
    metadata,
    photo,
    put,
    vectors_of,
)

DIMENSION = 24
OTHER = EncoderIdentity("models/new", DIMENSION, "cd" * 32)
BROKEN = b"broken"
PHOTOS = {"a": b"one", "b.1": b"2" * 5000, "c~": b"", "d": os.urandom(300_000)}


def encoded(data: bytes) -> EncodedPhoto:
    """What the new encoder makes of a photo; it follows from its bytes."""
    chunks = photo(data).chunks
    random = np.random.default_rng(len(data))
    vectors = random.standard_normal((len(chunks), DIMENSION), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return replace(photo(data), vectors=vectors, thumbnail=b"new " + data[:100], preview=b"grey")


class Encoding:
    """Encodes; counts how often it was asked for a photo."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.seen: list[bytes] = []
        self.fail_after = fail_after

    def __call__(self, images: Sequence[bytes]) -> list[EncodedPhoto | InsetError]:
        if self.fail_after is not None and len(self.seen) >= self.fail_after:
            raise KeyboardInterrupt
        self.seen += images
        return [
            BrokenImage("It ends early.") if data.startswith(BROKEN) else encoded(data)
            for data in images
        ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make(tmp_path / "store", PHOTOS)
    return tmp_path / "store"


def make(folder: Path, photos: dict[str, bytes]) -> None:
    with closing(Store(folder, ENCODER)) as store:
        for id, data in photos.items():
            put_at = replace(put(id, data), indexed_at=f"2026-01-01T00:00:00.{len(id):03}+00:00")
            store.apply([put("gone", b"x"), put_at, Delete("gone")])


def opened(folder: Path, encode: Encoding, batch: int = 2, **made_by: object) -> Reindexing:
    return Reindexing(folder, OTHER, encode, made_by={"tiles": [2, 3]} | made_by, batch=batch)


def reindex(folder: Path, encode: Encoding | None = None, *, keep: bool = True) -> Replaced:
    with closing(opened(folder, encode or Encoding())) as work:
        for _ in work.catch_up():
            pass
        return work.swap(keep=keep)


def records(store: StoreReader) -> dict[str, Record]:
    """What must stay as it was; sequence numbers and chunks may change."""
    found = map(Record.model_validate_json, store.records_after(None, 1000))
    return {record.id: record.model_copy(update={"sequence": 0, "chunks": []}) for record in found}


def records_of_old(folder: Path) -> dict[str, Record]:
    with closing(StoreReader(folder)) as store:
        assert store.encoder == ENCODER
        return records(store)


def assert_reindexed(folder: Path, photos: dict[str, bytes]) -> None:
    with closing(Store(folder, OTHER, lock_timeout_s=0)) as store:
        assert set(store.ids()) == set(photos)
        for id, data in photos.items():
            record, original = store.original(id)
            assert original == data
            assert record.filename == f"{id}.jpg"
            expected = encoded(data).vectors.astype(np.float16)
            np.testing.assert_array_equal(vectors_of(store, id), expected)
            assert store.thumbnail(id) == encoded(data).thumbnail
            assert store.previews([id])[0].data == encoded(data).preview
        with store.reading() as txn:
            check = StoreCheck(store, txn)
            found = [*check.photo_damage(), *check.log_damage(), list(check.other_damage())]
        assert not any(found)


def test_everything_but_chunks_and_vectors_stays(folder: Path, tmp_path: Path) -> None:
    before = records_of_old(folder)
    done = reindex(folder)
    assert done.photos == len(PHOTOS)
    assert_reindexed(folder, PHOTOS)
    with closing(StoreReader(folder)) as store:
        assert records(store) == before
        assert store.stats().sequence == len(PHOTOS)
        order = [store.record(id).sequence for id in PHOTOS]
    assert order == sorted(order)
    assert {file.name for file in folder.iterdir()} == {
        "data.mdb",
        "lock.mdb",
        "owner.lock",
        done.kept.name,
    }
    # The old store can be had again.
    restore(done.kept, tmp_path / "old", lambda count: None)
    with closing(Store(tmp_path / "old", ENCODER)) as store:
        for id, data in PHOTOS.items():
            assert_whole(store, id, data)


def test_the_old_store_is_removed_on_request(folder: Path) -> None:
    assert reindex(folder, keep=False).kept is None
    assert not list(folder.glob("before*"))


def test_nothing_that_was_kept_is_written_over(folder: Path) -> None:
    kept = folder / f"before-reindexing-{ENCODER.digest[:12]}.mdb"
    kept.write_bytes(b"of an earlier time")
    assert reindex(folder).kept.name == f"before-reindexing-{ENCODER.digest[:12]}-2.mdb"
    assert kept.read_bytes() == b"of an earlier time"


def test_what_can_not_be_indexed_is_named_and_kept(folder: Path) -> None:
    with closing(Store(folder, ENCODER)) as store:
        store.apply([put("bad", BROKEN), put("rotten", b"rotten")])
    with lmdb.open(str(folder), max_dbs=16) as env:
        originals = env.open_db(b"originals")
        with env.begin(write=True) as txn:
            txn.put(b"rotten", b"other", db=originals)
    with closing(opened(folder, Encoding())) as work:
        for _ in work.catch_up():
            pass
        assert work.left_out == {
            "bad": ("bad.jpg", "It ends early."),
            "rotten": (None, work.left_out["rotten"][1]),
        }
        assert "original of the photo 'rotten' is damaged" in work.left_out["rotten"][1]
        assert work.done == work.photos == len(PHOTOS) + 2
        done = work.swap(keep=False)
    assert done.photos == len(PHOTOS)
    assert done.kept.exists()  # whatever was asked for
    assert_reindexed(folder, PHOTOS)


def test_what_could_not_be_indexed_is_tried_again(folder: Path) -> None:
    with closing(Store(folder, ENCODER)) as store:
        store.apply([put("bad", BROKEN)])
    with closing(opened(folder, Encoding())) as work:
        list(work.catch_up())
    with closing(opened(folder, lambda images: list(map(encoded, images)))) as work:
        list(work.catch_up())
        assert not work.left_out
        work.swap(keep=True)
    assert_reindexed(folder, PHOTOS | {"bad": BROKEN})


@pytest.mark.parametrize("fail_after", [0, 1, 2, 3])
def test_an_interrupted_reindexing_goes_on(folder: Path, fail_after: int) -> None:
    first, second = Encoding(fail_after), Encoding()
    with closing(opened(folder, first, batch=1)) as work, pytest.raises(KeyboardInterrupt):
        list(work.catch_up())
    for id, data in PHOTOS.items():
        with closing(Store(folder, ENCODER)) as store:
            assert_whole(store, id, data)
    reindex(folder, second)
    assert [*first.seen, *second.seen] == list(PHOTOS.values())
    assert_reindexed(folder, PHOTOS)


def test_what_other_settings_made_is_thrown_away(folder: Path) -> None:
    with closing(opened(folder, Encoding(), tiles=[2])) as work:
        list(work.catch_up())
        assert work.done == 4
    encode = Encoding()
    with closing(opened(folder, encode)) as work:
        assert work.done == 0
        list(work.catch_up())
        work.swap(keep=True)
    assert len(encode.seen) == 4
    assert_reindexed(folder, PHOTOS)


def test_two_at_once(folder: Path) -> None:
    command = "from tests.unit.store.test_reindexing import *\n"
    command += "opened(Path(sys.argv[1]), Encoding()); print('open', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", command, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as child:
        assert child.stdout.readline() == "open\n"
        for tiles in ([2, 3], [2]):
            with pytest.raises(StoreUnusable, match=f"in use by process {child.pid}"):
                opened(folder, Encoding(), tiles=tiles)
        child.stdin.close()


# While it is in use

OWNER = """
import json, sys
from deployments.store.operations import Delete
from deployments.store.store import Store
from tests.support.stored.stores import ENCODER, put

store = Store(sys.argv[1], ENCODER)
print("open", flush=True)
for line in sys.stdin:
    operations = [Delete(id) if text is None else put(id, text.encode())
                  for id, text in json.loads(line)]
    print([type(result).__name__ for result in store.apply(operations)], flush=True)
store.close()
"""


class Owner:
    """A process that has a store open."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert self.process.stdout.readline() == "open\n"

    def apply(self, *operations: tuple[str, str | None]) -> None:
        print(json.dumps(operations), file=self.process.stdin, flush=True)
        assert "Error" not in self.process.stdout.readline()

    def stop(self) -> None:
        self.process.stdin.close()
        assert self.process.wait() == 0
        self.process.stdout.close()


@pytest.fixture
def owner(folder: Path) -> Iterator[Owner]:
    owner = Owner(folder)
    yield owner
    if owner.process.poll() is None:
        owner.stop()


def test_the_old_store_stays_in_use(folder: Path, owner: Owner) -> None:
    encode = Encoding()
    with closing(opened(folder, encode)) as work:
        steps = work.catch_up()
        next(steps)  # it has "a"
        owner.apply(("a", None), ("new", "first"), ("later", "x" * 100_000))
        owner.apply(("new", None), ("new", "second"))
        list(steps)
        assert work.done == work.photos == len(PHOTOS) + 1
        with pytest.raises(StoreInUse, match=f"in use by process {owner.process.pid}"):
            work.swap(keep=True)
    assert b"first" not in encode.seen
    owner.apply(("d", None), ("a", "again"))
    owner.stop()
    encode = Encoding()
    with closing(opened(folder, encode)) as work:
        work.swap(keep=True)
    assert encode.seen == [b"again"]
    expected = {"a": b"again", "new": b"second", "later": b"x" * 100_000}
    assert_reindexed(folder, {id: PHOTOS[id] for id in ("b.1", "c~")} | expected)


def test_a_reader_keeps_the_old_store_in_its_place(folder: Path) -> None:
    lock = os.open(folder, os.O_RDONLY)
    import fcntl

    fcntl.flock(lock, fcntl.LOCK_SH)
    try:
        with pytest.raises(StoreInUse, match="being read by another process"):
            reindex(folder)
        assert len(records_of_old(folder)) == len(PHOTOS)
    finally:
        os.close(lock)
    reindex(folder)
    assert_reindexed(folder, PHOTOS)


def test_deletions_that_were_cut_from_the_log(folder: Path) -> None:
    with closing(opened(folder, Encoding())) as work:
        list(work.catch_up())
    with closing(Store(folder, ENCODER)) as store:
        store.apply([Delete("a"), Delete("d"), put("d", b"another"), put("e", b"e")])
        assert store.cut_log(store.sequence)
    reindex(folder)
    expected = {"d": b"another", "e": b"e"}
    assert_reindexed(folder, {id: PHOTOS[id] for id in ("b.1", "c~")} | expected)


def test_a_photo_that_the_log_lacks(folder: Path) -> None:
    with lmdb.open(str(folder), max_dbs=16) as env:
        log = env.open_db(b"log")
        with env.begin(write=True) as txn:
            (key,) = (key for key, entry in txn.cursor(db=log) if entry == b"Pa")
            txn.delete(key, db=log)
    reindex(folder)
    assert_reindexed(folder, PHOTOS)


def test_the_old_store_was_restored_in_between(folder: Path, tmp_path: Path) -> None:
    """Its numbers begin again where they mean something else."""
    with closing(opened(folder, Encoding())) as work:
        list(work.catch_up())
    for file in ("data.mdb", "lock.mdb"):
        (folder / file).unlink()
    others = {"a": b"another a", "b.1": PHOTOS["b.1"], "e": b"e"}
    make(folder, others)
    encode = Encoding()
    reindex(folder, encode)
    assert_reindexed(folder, others)
    assert encode.seen == [b"another a", b"e"]  # the record of b.1 is the same


def test_the_same_photo_with_other_metadata(folder: Path) -> None:
    with closing(opened(folder, Encoding())) as work:
        list(work.catch_up())
    with closing(Store(folder, ENCODER)) as store:
        again = Put("a", PHOTOS["a"], "other.jpg", photo(PHOTOS["a"]), {"said": "later"})
        store.apply([Delete("a"), again])
    reindex(folder)
    with closing(StoreReader(folder)) as store:
        record = store.record("a")
    assert (record.filename, record.metadata) == ("other.jpg", {"said": "later"})


def test_photos_are_asked_about_themselves_once_more(folder: Path) -> None:
    """Those that were not asked, too; and what their clients say stays."""
    said = {"camera": "mine"}
    with closing(Store(folder, ENCODER)) as store:
        before = replace(photo(b"new"), facts={"camera": "X", "lens": "old", "latitude": 1.5})
        store.apply([Put("new", b"new", None, before, said)])
    facts = {"camera": "X-T3", "lens": "35mm", "date_taken": None}

    class Asking(Encoding):
        def __call__(self, images: Sequence[bytes]) -> list[EncodedPhoto | InsetError]:
            return [replace(one, facts=facts, skipped=2) for one in super().__call__(images)]

    first, second = Asking(fail_after=2), Asking()
    with closing(opened(folder, first)) as work, pytest.raises(KeyboardInterrupt):
        list(work.catch_up())
    reindex(folder, second)
    assert len(first.seen) + len(second.seen) == len(PHOTOS) + 1
    with closing(StoreReader(folder)) as store:
        for id, data in PHOTOS.items():
            record = store.record(id)
            assert record.metadata == metadata(data) | {"camera": "X-T3", "lens": "35mm"}
            assert (record.asked, record.skipped) == (list(facts), 2)
        assert store.record("new").metadata == {"camera": "mine", "lens": "35mm"}


@pytest.mark.parametrize("format", [1, 2, 3])
def test_a_store_of_an_older_format_is_reindexed_as_it_is(tmp_path: Path, format: int) -> None:
    """A newer version can't open it to upgrade it: its encoder is another one."""
    make_old(tmp_path / "old", OLD, format)
    assert needs_reindexing(tmp_path / "old", OTHER)
    reindex(tmp_path / "old")
    assert_reindexed(tmp_path / "old", OLD)
    with closing(StoreReader(tmp_path / "old")) as store:
        assert {store.record(id).indexed_at for id in OLD} == {"2026-01-01T00:00:00.000+00:00"}


def test_a_full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apply = Store.apply
    full = StoreFull("The disk is full.")
    with closing(opened(folder, Encoding(), batch=1)) as work:
        steps = work.catch_up()
        next(steps)
        monkeypatch.setattr(Store, "apply", lambda self, operations: [full] * len(operations))
        with pytest.raises(StoreFull):
            list(steps)
    monkeypatch.setattr(Store, "apply", apply)
    reindex(folder)
    assert_reindexed(folder, PHOTOS)


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreUnusable, match="There is no store"):
        opened(tmp_path, Encoding())
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
from pathlib import Path
from deployments.store import reindexing
from tests.unit.store.test_reindexing import reindex

moment, folder = sys.argv[1:]
def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)
replace, link = os.replace, os.link
def replace_of_store(source, target):
    of_store = Path(target) == Path(folder) / "data.mdb"
    if moment == "before" and of_store:
        kill()
    replace(source, target)
    if moment == "after" and of_store:
        kill()
os.replace = replace_of_store
if moment == "building":
    reindexing.Reindexing._reconcile = kill
reindex(Path(folder))
"""


@pytest.mark.parametrize("moment", ["building", "before", "after"])
def test_a_killed_reindexing_loses_nothing(folder: Path, moment: str) -> None:
    command = [sys.executable, "-c", KILLED, moment, str(folder)]
    assert subprocess.run(command, cwd=ROOT).returncode == -signal.SIGKILL
    if moment == "after":
        assert_reindexed(folder, PHOTOS)
        assert not needs_reindexing(folder, OTHER)
        assert not (folder / module.FOLDER).exists()
        return
    with closing(Store(folder, ENCODER)) as store:
        for id, data in PHOTOS.items():
            assert_whole(store, id, data)
    encode = Encoding()
    reindex(folder, encode)
    assert not encode.seen
    assert_reindexed(folder, PHOTOS)


IDS = st.sampled_from("abcd")
STEPS = st.one_of(
    st.tuples(st.just("put"), IDS, st.sampled_from([b"1", b"22", b"333", BROKEN])),
    st.tuples(st.just("delete"), IDS),
    st.tuples(st.just("cut")),
    st.tuples(st.just("reindex"), st.integers(0, 3)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, max_size=20))
def test_whatever_happens_meanwhile(steps: list[tuple]) -> None:
    """Puts, deletions, cuts of the log and interrupted reindexings, in any order."""
    photos: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "store"
        Store(folder, ENCODER).close()
        for what, *words in steps:
            if what == "reindex":
                with closing(opened(folder, Encoding())) as work:
                    for _, _ in zip(range(words[0]), work.catch_up(), strict=False):
                        pass
                continue
            with closing(Store(folder, ENCODER)) as store:
                if what == "put":
                    store.apply([put(*words)])
                    photos.setdefault(*words)
                elif what == "delete":
                    store.apply([Delete(*words)])
                    photos.pop(*words, None)
                else:
                    store.cut_log(store.sequence)
        before = records_of_old(folder)
        reindex(folder)
        good = {id: data for id, data in photos.items() if data != BROKEN}
        assert_reindexed(folder, good)
        with closing(StoreReader(folder)) as store:
            assert records(store) == {id: before[id] for id in good}
