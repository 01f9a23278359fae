"""The store: the only owner of durable state.

It is one LMDB environment in one folder, owned by one process. A photo's bytes, record, vectors,
thumbnail, preview and log entry are committed in one transaction, so after any crash a photo is
there completely or not at all. `format.py` describes the databases, `reader.py` reads them.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import lmdb

from deployments.errors import EncoderMismatch, StoreFull, Unavailable
from deployments.files import sync
from deployments.records import (
    EncoderIdentity,
)
from deployments.store.access import DISK_FULL, MAX_READERS, make_folder, take_ownership
from deployments.store.disks import require_own_disk
from deployments.store.format import (
    FORMAT,
    Databases,
    cut_log,
    make_store,
    open_databases,
    read_encoder,
    read_format,
    read_meta,
    upgrade_store,
)
from deployments.store.operations import (
    Operation,
    Prepared,
    Result,
    Writer,
    added_bytes,
    prepare,
)
from deployments.store.reader import TO_BE_OPENED_AGAIN, StoreReader

T = TypeVar("T")

# Deleting needs a few free pages before it gives any back (LMDB never overwrites a page in use).
# So deletions may grow the map by this many bytes beyond `max_bytes`; puts may not.
RESERVE = 4 * 2**20

# How many log entries one transaction of `cut_log` looks at, and the pause after it that lets other
# writers go first, seconds.
CUT_ENTRIES = 10_000
CUT_PAUSE_S = 0.01


class Store(StoreReader):
    """Photos in LMDB. All methods are thread-safe.

    Args:
        path: folder of the store; made if it is missing. A store of an older format is upgraded.
        encoder: the encoder of the vectors. A new store keeps it, an existing one must have it.
        initial_bytes: size of a new map, bytes. The map doubles when it is full.
        max_bytes: largest map for puts, bytes; None for as much as the disk holds.
        lock_timeout_s: how long to wait for another process to release the folder, seconds.

    Raises:
        StoreUnusable: in use by another process, not a store, of another format, unreadable, or on
            a network file system.
        EncoderMismatch: it holds vectors of another encoder.
    """

    def __init__(
        self,
        path: str | Path,
        encoder: EncoderIdentity,
        *,
        initial_bytes: int = 64 * 2**20,
        max_bytes: int | None = None,
        lock_timeout_s: float = 10,
    ) -> None:
        self._configured = encoder
        self._initial_bytes = initial_bytes
        self._max_bytes = max_bytes
        self._lock_timeout_s = lock_timeout_s
        self._writing = threading.Lock()
        super().__init__(path)

    def close(self) -> None:
        """Wait for running calls, then close the store and unlock it for other processes."""
        with self._writing:
            super().close()

    # Writing

    def apply(self, operations: Sequence[Operation]) -> list[Result]:
        """Carry out operations in order, in one transaction with one sync to disk.

        An operation sees the effects of those before it. If one fails, the others are still
        carried out. If the whole group doesn't fit, its operations are committed one by one.

        Returns:
            For each operation: `Stored` for a put, the sequence number for a deletion, whether a
            picture or facts were kept, or the error (BadParameter, IdTaken, UnknownId,
            CorruptRecord, StoreFull). If it isn't an error, the operation is on disk.

        Raises:
            ValueError: a photo has no chunks, or its vectors have a wrong shape or aren't finite;
                nothing was stored.
            Unavailable: the disk has failed, now or before. What was asked for may have been done.
        """
        return self.commit([self.prepare(operation) for operation in operations])

    def prepare(self, operation: Operation) -> Prepared:
        """Check an operation, and compute all that needs no transaction.

        This is the first half of `apply`. It waits for no disk and no other thread.

        Raises:
            ValueError: see `apply`.
        """
        return prepare(operation, self.encoder.dimension)

    def commit(self, operations: Sequence[Prepared]) -> list[Result]:
        """Carry out prepared operations: the second half of `apply`."""
        with self._writing:
            try:
                return self._commit(operations)
            except StoreFull:
                return [self._commit_alone(operation) for operation in operations]

    def cut_log(self, sequence: int) -> int:
        """Remove the deletions up to a change from the log, a portion at a time.

        A follower that is not yet at that change must then begin anew. The log's last entry is
        never removed, because its key is the store's sequence number.

        Returns:
            How many were removed.

        Raises:
            StoreFull: the disk has no room for a transaction; earlier portions stay removed.
            Unavailable: the disk has failed.
        """
        removed, more = 0, True
        while more:
            with self._writing:
                count, more = self._write(
                    lambda txn: cut_log(txn, self.dbs, sequence, CUT_ENTRIES), added_bytes=None
                )
            removed += count
            if more:
                time.sleep(CUT_PAUSE_S)  # otherwise this thread would take the lock again at once
        return removed

    def _commit_alone(self, operation: Prepared) -> Result:
        try:
            return self._commit([operation])[0]
        except StoreFull as error:
            return error

    def _commit(self, operations: Sequence[Prepared]) -> list[Result]:
        sizes = [size for op in operations if (size := added_bytes(op)) is not None]
        return self._write(
            lambda txn: Writer(txn, self.dbs, self.encoder.dimension).carry_out(operations),
            added_bytes=sum(sizes) if sizes else None,
        )

    def _write(self, change: Callable[[lmdb.Transaction[bytes]], T], added_bytes: int | None) -> T:
        """Run one transaction. If the map is full, abort it, double the map and run it again.

        Args:
            change: writes in the transaction; its result is returned.
            added_bytes: size of what it adds. None if it adds nothing; then it may use the reserve.

        Raises:
            StoreFull: the map has its largest size, or the disk is full; nothing was written.
            Unavailable: the disk has failed, now or before.
        """
        if self.failed:
            raise Unavailable(f"The disk of the store failed. {TO_BE_OPENED_AGAIN}")
        size = self._map_size()
        limit = self._map_limit(adds=added_bytes is not None)
        try:
            while True:
                # A process that was killed while it read leaves its snapshot behind, whose pages
                # would never be used again. To look for such takes some microseconds.
                self._env.reader_check()
                try:
                    with self._env.begin(write=True) as txn:
                        return change(txn)
                except lmdb.MapFullError as error:
                    if not self._grow_map(limit):
                        raise StoreFull(
                            f"The store has reached its largest size, {self._max_bytes:,} bytes. "
                            "Nothing of this request was stored. Delete photos or raise max_bytes."
                        ) from error
        except lmdb.Error as error:
            if self._is_disk_full(error, added_bytes or 0):
                raise StoreFull(
                    f"The disk of the store is full ({error.reason}). Nothing of this request was "
                    "stored. Free space on the disk, or delete photos."
                ) from error
            # The codes of the system are positive, LMDB's own are not.
            if error.code <= 0 and not isinstance(error, lmdb.PanicError):
                raise
            self.failed = True
            raise Unavailable(
                f"The disk of the store failed ({error.reason}). It is not known whether this "
                f"request was stored. {TO_BE_OPENED_AGAIN}"
            ) from error
        finally:
            self._take_back_reserve(size)

    def _is_disk_full(self, error: lmdb.Error, added_bytes: int) -> bool:
        if error.code == errno.EIO:
            # LMDB reports a short write as EIO, and a disk that fills up causes short writes.
            disk = os.statvfs(self.path)
            return disk.f_bavail * disk.f_frsize < 2**20 + added_bytes
        return error.code in DISK_FULL

    def room(self) -> int:
        """Return how many bytes can still be stored, as far as `max_bytes` and the disk allow."""
        details = self.details()
        disk = os.statvfs(self.path)
        growth = disk.f_bavail * disk.f_frsize
        if self._max_bytes is not None:
            growth = min(growth, max(0, self._max_bytes - details.file_bytes))
        return details.free_bytes + growth

    # The map

    def _map_limit(self, adds: bool) -> int | None:
        """Return how large the map may become for a transaction, bytes; None for no limit."""
        if self._max_bytes is None or adds:
            return self._max_bytes
        # Under an earlier, larger max_bytes the map may have grown beyond it. Deleting must work.
        return max(self._max_bytes, self._map_size()) + RESERVE

    def _map_size(self) -> int:
        return self._env.info()["map_size"]

    def _grow_map(self, limit: int | None) -> bool:
        """Double the map, within the limit; return False if it is at the limit already."""
        size = self._map_size()
        larger = 2 * size if limit is None else min(2 * size, limit)
        if larger <= size:
            return False
        self._set_map_size(larger)
        return True

    def _take_back_reserve(self, size_before: int) -> None:
        """Undo growth beyond `max_bytes`, so that puts can't use it; LMDB keeps pages in use."""
        if self._max_bytes is None:
            return
        size = max(size_before, self._max_bytes)
        if self._map_size() > size:
            self._set_map_size(size)

    def _set_map_size(self, size: int) -> None:
        # Resizing moves the map, so there must be no open transaction.
        with self._map_gate.exclusive():
            self._env.set_mapsize(size)

    # Opening

    def _open(self) -> None:
        require_own_disk(self.path)
        made = make_folder(self.path)
        self._locks.append(take_ownership(self.path, self._lock_timeout_s))
        size = min(self._initial_bytes, self._max_bytes or self._initial_bytes)
        self._opened = lmdb.open(
            str(self.path),
            map_size=size,
            max_dbs=len(Databases._fields),
            max_readers=MAX_READERS,
        )
        # Where a write failed, the file in the system's memory may not be what is on the disk.
        self._env.sync(True)
        found = read_format(self._env, self.path)
        if found is not None:
            self._check_encoder()
        # One transaction, so that a crash leaves either no store or a complete one of one format.
        self.dbs = self._write(lambda txn: self._make_or_upgrade(txn, found), added_bytes=None)
        with self.reading() as txn:
            self.encoder = read_encoder(txn, self.dbs.meta)
            self.history = read_meta(txn, self.dbs.meta, "history")
        sync({self.path, *(folder.parent for folder in made)})

    def _make_or_upgrade(self, txn: lmdb.Transaction[bytes], found: int | None) -> Databases:
        dbs = open_databases(self._env, txn)
        if found is None:
            make_store(txn, dbs, self._configured)
        elif found < FORMAT:
            upgrade_store(txn, dbs, found)
        return dbs

    def _check_encoder(self) -> None:
        meta = self._env.open_db(b"meta", create=False)
        with self._env.begin() as txn:
            stored = read_encoder(txn, meta)
        # The same weights may have another name, e.g. of a local folder.
        if replace(stored, name=self._configured.name) != self._configured:
            raise EncoderMismatch(
                f"The store in {self.path} holds vectors of the encoder {_describe(stored)}, but "
                f"the configured encoder is {_describe(self._configured)}. Vectors of two encoders "
                "can't be compared: encode the stored photos again with .venv/bin/python "
                f"scripts/store.py reindex --path {self.path}, or configure the old encoder."
            )


def _describe(encoder: EncoderIdentity) -> str:
    return f"{encoder.name} (dimension {encoder.dimension}, weights {encoder.digest[:12]})"
