"""The Store deployment without Ray."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import lmdb
import pytest

from deployments.errors import StoreUnusable
from deployments.records import CheckedPhoto
from deployments.settings import StoreSettings
from deployments.store import deployment as module
from deployments.store.deployment import GROUP_PIECES, Sized, StoreDeployment, count_pieces
from deployments.store.metrics import measure_store
from deployments.store.operations import Delete, Prepared, PreparedPut, Put, Result, SetFacts
from tests.support.metrics import watch
from tests.support.stored.stores import ENCODER, photo, put

SHA256 = hashlib.sha256(b"1").hexdigest()
READS = {
    "find": ([("a", SHA256)],),
    "record": ("a",),
    "records": (["a"],),
    "get": ("a",),
    "thumbnail": ("a",),
    "previews": (["a"],),
    "original": ("a",),
    "original_part": ("a", SHA256, 0, 1),
    "records_after": (None, 10, True),
    "changes": (None, 0, "follower", None),
    "stats": (),
}
# More than there are threads: reads that wait must not take the writer's.
READERS = 100


@pytest.fixture
def deployment(folder: Path) -> Iterator[StoreDeployment]:
    """A store with the photo `a`, whose writers don't share transactions: that takes Ray."""
    deployment = StoreDeployment.func_or_class(StoreSettings(path=str(folder)), ENCODER)

    async def commit_alone(operation: Sized) -> Result:
        (result,) = await deployment._commit_together([operation])
        return result

    deployment._commit = commit_alone
    deployment.store.apply([put("a", b"1")])
    yield deployment
    deployment.store.close()


@pytest.mark.parametrize("name", READS)
def test_a_cold_disk_holds_up_no_write(deployment, monkeypatch, name: str) -> None:
    """Who reads the memory map stands still until the disk has answered."""
    store = deployment.store
    begin, commit = store._snapshot, store.commit
    writing = threading.local()
    warm = threading.Event()
    held_up = []

    def read_slowly(*arguments: object) -> object:
        if not getattr(writing, "now", False) and not warm.wait(2):
            held_up.append(name)
            warm.set()
        return begin(*arguments)

    def write(operations: list[Prepared]) -> list[Result]:
        writing.now = True  # what was just written isn't cold
        return commit(operations)

    monkeypatch.setattr(store, "_snapshot", read_slowly)
    monkeypatch.setattr(store, "commit", write)

    async def scenario() -> None:
        read = getattr(deployment, name)
        reads = [asyncio.create_task(read(*READS[name])) for _ in range(READERS)]
        await asyncio.sleep(0.05)
        await deployment.put([CheckedPhoto("b", "", b"2", None, None, {})], [photo(b"2")])
        warm.set()
        await asyncio.gather(*reads)

    asyncio.run(scenario())
    assert held_up == []


def test_photos_are_made_ready_while_a_group_is_committed(deployment, monkeypatch) -> None:
    """What one thread does for them, the disk need not wait for."""
    store, prepare, commit = deployment.store, deployment.store.prepare, deployment.store.commit
    ready, committing = threading.Event(), threading.Event()

    def prepare_next(operation: Put) -> Prepared:
        if operation.id == "c":
            assert committing.wait(20)
            ready.set()
        return prepare(operation)

    def commit_first(operations: list[Prepared]) -> list[Result]:
        committing.set()
        assert ready.wait(20)
        return commit(operations)

    monkeypatch.setattr(store, "prepare", prepare_next)
    monkeypatch.setattr(store, "commit", commit_first)
    photos = [CheckedPhoto(id, "", id.encode(), None, None, {}) for id in "bc"]
    stored = asyncio.run(deployment.put(photos, [photo(b"b"), photo(b"c")]))
    assert [one.record.id for one in stored] == ["b", "c"]


@pytest.mark.usefixtures("batches_without_replicas")
def test_a_group_is_as_large_as_its_bytes(folder: Path, monkeypatch) -> None:
    """A photo that is larger goes alone."""
    monkeypatch.setattr(module, "GROUP_PIECES", 8)
    deployment = StoreDeployment.func_or_class(StoreSettings(path=str(folder)), ENCODER)
    groups = []
    commit = deployment.store.commit

    def note(operations: list[Prepared]) -> list[Result]:
        groups.append([len(op.data) for op in operations if isinstance(op, PreparedPut)])
        return commit(operations)

    monkeypatch.setattr(deployment.store, "commit", note)
    sizes = [400_000, 400_000, 400_000, 3_000_000, 400_000]
    photos = [
        CheckedPhoto(f"{n}", "", bytes([n]) * size, None, None, {}) for n, size in enumerate(sizes)
    ]
    stored = asyncio.run(deployment.put(photos, [photo(one.data) for one in photos]))
    assert [one.record.bytes for one in stored] == sizes
    assert sorted(size for group in groups for size in group) == sorted(sizes)
    assert [3_000_000] in groups
    assert all(sum(group) <= 2**20 for group in groups if group != [3_000_000])
    deployment.store.close()


def test_what_adds_nothing_takes_a_share_of_a_group_too() -> None:
    assert count_pieces(Delete("a")) == count_pieces(SetFacts("a", SHA256, {})) == 1
    half = PreparedPut(None, bytes(10 * 2**20), *(bytes(2 * 2**20),) * 3)
    assert count_pieces(half) == 1 + GROUP_PIECES // 2
    assert count_pieces(replace(half, data=bytes(100 * 2**20))) == GROUP_PIECES


def test_what_it_holds_is_measured(deployment: StoreDeployment, monkeypatch: pytest.MonkeyPatch):
    seen = watch(monkeypatch)
    gauges = measure_store(deployment.store)
    gauges.refresh()
    deployment.store.apply([put("b", b"22"), Delete("a"), put("c", b"3")])
    gauges.refresh()
    assert seen["inset_store_photos"].values == [1, 2]
    assert seen["inset_store_chunks"].values[1] == deployment.store.stats().chunks > 0
    assert seen["inset_store_sequence"].values == [1, 4]
    (used, more), (room, less) = (
        seen[name].values for name in ("inset_store_used_bytes", "inset_store_room_bytes")
    )
    assert used <= more <= seen["inset_store_map_bytes"].values[1]
    assert room > 0 < less


def test_while_its_disk_fails_it_waits_for_it(folder: Path, monkeypatch, caplog) -> None:
    """Serve, if it was restarted meanwhile, would give up after three replicas that don't start."""
    failure = lmdb.Error("msync: Input/output error")
    failure.code = errno.EIO
    failures = [failure] * 5
    real = lmdb.open

    def open_later(*arguments: object, **options: object) -> object:
        if failures:
            raise failures.pop()
        return real(*arguments, **options)

    monkeypatch.setattr(lmdb, "open", open_later)
    monkeypatch.setattr(module, "OPEN_AGAIN_S", 0)
    deployment = StoreDeployment.func_or_class(StoreSettings(path=str(folder)), ENCODER)
    deployment.store.close()
    assert failures == []
    assert caplog.text.count("can't be opened (msync: Input/output error)") == 5


def test_for_what_is_no_store_it_does_not_wait(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "data.mdb").write_bytes(b"no store" * 1000)
    with pytest.raises(StoreUnusable):
        StoreDeployment.func_or_class(StoreSettings(path=str(folder)), ENCODER)
