"""A store that grows and fills: its map, its limit, and its disk."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import lmdb
import pytest

from deployments.errors import StoreDiskFailed, StoreFull, StoreUnusable, Unavailable
from deployments.records import Stored
from deployments.settings import StoreSettings
from deployments.store.deployment import StoreDeployment
from deployments.store.operations import Delete, KeepPreview, KeepThumbnail
from deployments.store.store import Store
from tests.support.paths import ROOT
from tests.support.stored.stores import ENCODER, assert_counts, assert_whole, at, put


def test_the_room_is_what_can_be_stored(folder: Path) -> None:
    """Within `max_bytes`: nearly so much more fits, and not more. Deletions make room."""
    store = Store(folder, ENCODER, initial_bytes=2**17, max_bytes=4 * 2**20)
    before = store.room()
    assert 3.5 * 2**20 < before <= 4 * 2**20
    sizes = [100_000] * 50
    results = [store.apply([put(f"{n}", os.urandom(size))])[0] for n, size in enumerate(sizes)]
    fitted = sum(isinstance(result, Stored) for result in results)
    assert 0.8 * before < fitted * 100_000 <= before
    full = store.room()
    assert full < 400_000
    store.apply([Delete(f"{n}") for n in range(10)])
    assert store.room() > full + 900_000


def test_the_room_is_that_of_the_disk(folder: Path) -> None:
    store = Store(folder, ENCODER)
    disk = shutil.disk_usage(folder).free
    assert store.room() == pytest.approx(disk, rel=0.1)


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
                store.records_after(None, 5)
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
    # A small picture is no reason to go beyond the limit, as a deletion is.
    for kind in (KeepThumbnail, KeepPreview):
        (full,) = store.apply([kind("small", hashlib.sha256(b"s").hexdigest(), b"t" * 500_000)])
        assert isinstance(full, StoreFull)
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
        patch.setattr("deployments.store.store.Writer", FailingWriter)
        full = os.statvfs_result((*disk[:4], free // disk.f_frsize, *disk[5:]))
        patch.setattr(os, "statvfs", lambda _: full)
        if is_full:
            (result,) = store.apply([put("a", b"x")])
            assert isinstance(result, StoreFull)
        else:
            with pytest.raises(Unavailable, match="Input/output error"):
                store.apply([put("a", b"x")])
    if is_full:
        assert isinstance(store.apply([put("a", b"x")])[0], Stored)


def test_a_broken_disk_gets_no_more_changes_until_the_store_is_opened_again(
    store: Store, folder: Path, monkeypatch
) -> None:
    """After a failed sync nobody knows what is on the disk, and the next sync may say nothing."""
    store.apply([put("a", b"x")])

    def fail(*_: object) -> list:
        error = lmdb.Error("mdb_txn_commit")
        error.code, error.reason = errno.EIO, os.strerror(errno.EIO)
        raise error

    deployment = StoreDeployment.func_or_class(StoreSettings(path=str(folder / "other")), ENCODER)
    deployment.store.close()
    deployment.store = store
    asyncio.run(deployment.check_health())
    with monkeypatch.context() as patch:
        patch.setattr("deployments.store.store.Writer.carry_out", fail)
        with pytest.raises(Unavailable, match="It is not known whether"):
            store.apply([put("b", b"y")])
    for change in (lambda: store.apply([put("c", b"z")]), lambda: store.cut_log(1)):
        with pytest.raises(Unavailable, match="opened again"):
            change()
    assert_whole(store, "a", b"x")
    with pytest.raises(RuntimeError, match="opened again"):  # so Serve replaces the replica
        asyncio.run(deployment.check_health())
    store.close()
    again = Store(folder, ENCODER)
    assert isinstance(again.apply([put("c", b"z")])[0], Stored)
    again.close()


class Instead:
    """An LMDB environment but for one method."""

    def __init__(self, environment: lmdb.Environment, name: str, method: Callable) -> None:
        self._environment = environment
        setattr(self, name, method)

    def __getattr__(self, name: str) -> object:
        return getattr(self._environment, name)


def test_what_lmdb_gives_up_is_unavailable(store: Store, monkeypatch) -> None:
    """After a failed write of a meta page LMDB begins no more transactions, not even to read."""
    store.apply([put("a", b"x")])

    def panic(**_: object) -> object:
        error = lmdb.PanicError("mdb_txn_begin")
        error.code, error.reason = -30795, "MDB_PANIC"
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(store, "_opened", Instead(store._env, "begin", panic))
        with pytest.raises(Unavailable, match="opened again"):
            store.record("a")
        assert store.failed
        store.failed = False
        with pytest.raises(Unavailable, match="opened again"):
            store.apply([put("b", b"y")])
        assert store.failed


@pytest.mark.parametrize("method", ["sync", "begin"])
def test_opening_makes_sure_of_what_is_on_the_disk(folder: Path, monkeypatch, method: str) -> None:
    """Whatever an owner before this one left in the memory of the system."""
    Store(folder, ENCODER).close()
    real = lmdb.open

    def open_broken(*arguments: object, **options: object) -> object:
        def fail(*_: object, write: bool = False) -> object:
            if method == "begin" and not write:
                return environment.begin()
            error = lmdb.Error(f"{method}: Input/output error")
            error.code, error.reason = errno.EIO, os.strerror(errno.EIO)
            raise error

        environment = real(*arguments, **options)
        return Instead(environment, method, fail)

    with monkeypatch.context() as patch:
        patch.setattr(lmdb, "open", open_broken)
        with pytest.raises(StoreDiskFailed, match="Input/output error"):
            Store(folder, ENCODER)
    Store(folder, ENCODER).close()


def test_a_store_is_opened_though_its_owner_can_not_be_written_down(
    folder: Path, monkeypatch
) -> None:
    """On a full disk another program may take the block that the old process id had."""
    store = Store(folder, ENCODER)
    store.apply([put("a", b"1")])
    store.close()
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, "pwrite", Mock(side_effect=full))
    store = Store(folder, ENCODER)
    assert_whole(store, "a", b"1")
    with pytest.raises(StoreUnusable, match="in use by process unknown"):
        Store(folder, ENCODER, lock_timeout_s=0)
    store.close()


FULL_DISK = """
import sys
from deployments.errors import StoreFull
from deployments.store.store import Store
from deployments.store.operations import Delete
from deployments.records import Stored
from tests.support.stored.stores import ENCODER, assert_counts, assert_whole, put

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


OPENED_ON_A_FULL_DISK = """
import sys
from pathlib import Path
from unittest.mock import Mock
from deployments.errors import StoreFull
from deployments.store.store import Store
from deployments.records import Stored
from tests.support.stored.stores import ENCODER, assert_whole, put

folder = Path(sys.argv[1]) / "store"
store = Store(folder, ENCODER)
store.apply([put("a", b"a" * 90_000)])
store.close()
others = folder.parent / "others"
try:
    with others.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
except OSError as error:
    assert "space" in str(error), error
store = Store(folder, ENCODER)
assert_whole(store, "a", b"a" * 90_000)
(result,) = store.apply([put("b", b"b" * 400_000)])
assert isinstance(result, StoreFull), result
others.unlink()
(result,) = store.apply([put("b", b"b" * 400_000)])
assert isinstance(result, Stored), result
"""


@pytest.mark.parametrize("program", [FULL_DISK, OPENED_ON_A_FULL_DISK], ids=["fills", "was full"])
def test_full_disk(tmp_path: Path, program: str) -> None:
    """A real ENOSPC, on a file system of 3 MiB in a mount namespace of its own."""
    script = 'mount -t tmpfs -o size=3m none "$0" || exit 77; exec "$@"'
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    command = [*unshare, str(tmp_path), sys.executable, "-c", program, str(tmp_path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    except FileNotFoundError:
        pytest.skip("no unshare command here")
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip(f"no mount namespaces here: {done.stderr}")
    assert done.returncode == 0, done.stderr
