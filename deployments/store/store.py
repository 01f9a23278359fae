"""The store: the only owner of durable state.

One LMDB environment in one folder, owned by one process. A photo's bytes, record, vectors,
thumbnail and log entry are committed in one transaction, so after any crash a photo is either all
there or not at all. `store_format` says what lies where; `store_reader` reads it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import lmdb
import numpy as np

from deployments.errors import BadParameter, EncoderMismatch, StoreFull
from deployments.files import sync
from deployments.metadata import check_metadata
from deployments.records import (
    VECTOR_DTYPE,
    EncodedPhoto,
    EncoderIdentity,
    Metadata,
    Record,
    check_id,
)
from deployments.store.access import DISK_FULL, MAX_READERS, make_folder, take_ownership
from deployments.store.format import (
    FORMAT,
    Databases,
    Delete,
    KeepThumbnail,
    Prepared,
    PreparedPut,
    Result,
    Writer,
    cut_log,
    make_store,
    open_databases,
    read_encoder,
    read_format,
    read_meta,
    upgrade_store,
)
from deployments.store.reader import StoreReader

T = TypeVar("T")

# Deleting needs a few free pages before it gives any back (LMDB never overwrites a page in use),
# so what makes room may grow the map by this much beyond `max_bytes`; puts may not.
RESERVE = 4 * 2**20

# Most log entries that a transaction which cuts the log looks at, and how long writers then go
# first, seconds.
CUT_ENTRIES = 10_000
CUT_PAUSE_S = 0.01


@dataclass(frozen=True, slots=True)
class Put:
    """Store a photo.

    Attributes:
        data: the original, as it was sent.
        filename: as the client named it.
        photo: at least one chunk; its vectors are float32 `[len(chunks), d]`, all finite.
        metadata: as the client gave it.
    """

    id: str
    data: bytes
    filename: str | None
    photo: EncodedPhoto
    metadata: Metadata = field(default_factory=dict)


Operation = Put | Delete | KeepThumbnail


class Store(StoreReader):
    """Photos in LMDB. Every method may be called from any thread.

    Args:
        path: folder of the store; made if it is missing. A store of an older format is upgraded.
        encoder: what made the vectors. A new store remembers it, an existing one insists on it.
        initial_bytes: size of the map to begin with, bytes. It doubles when it is full.
        max_bytes: largest map for puts, bytes; None for as much as the disk holds.
        lock_timeout_s: how long to wait for another process to let go of the folder, seconds.

    Raises:
        StoreUnusable: in use by another process, not a store, of another format, or unreadable.
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
        """Wait for what is running, then let another process have the store."""
        with self._writing:
            super().close()

    # Writing

    def apply(self, operations: Sequence[Operation]) -> list[Result]:
        """Carry out operations in order, in one transaction with one sync to disk.

        An operation sees the effects of those before it. One that fails leaves the others alone.
        When the whole group doesn't fit, its operations are committed one by one.

        Returns:
            For each operation: `Stored` for a put, the sequence number of a deletion, whether a
            thumbnail was kept, or the error it met (BadParameter, IdTaken, UnknownId,
            CorruptRecord, StoreFull). Whatever isn't an error is on disk.

        Raises:
            ValueError: a photo without chunks, or with vectors that don't fit; nothing was stored.
        """
        prepared = [self._prepare(operation) for operation in operations]
        with self._writing:
            try:
                return self._commit(prepared)
            except StoreFull:
                return [self._commit_alone(operation) for operation in prepared]

    def cut_log(self, sequence: int) -> int:
        """Remove the deletions up to a change from the log, a portion at a time.

        Whoever follows the log from before that change must then begin anew. The log's last entry
        stays, for it says which change was the last.

        Returns:
            How many were removed.

        Raises:
            StoreFull: a portion doesn't fit on the disk; those before it are removed.
        """
        removed, more = 0, True
        while more:
            with self._writing:
                count, more = self._write(
                    lambda txn: cut_log(txn, self.dbs, sequence, CUT_ENTRIES), added_bytes=None
                )
            removed += count
            if more:
                time.sleep(CUT_PAUSE_S)  # or this thread would have the lock again at once
        return removed

    def _prepare(self, operation: Operation) -> Prepared:
        """All that can be done for an operation before the transaction."""
        try:
            check_id(operation.id)
            return self._prepare_put(operation) if isinstance(operation, Put) else operation
        except BadParameter as error:
            return error

    def _prepare_put(self, put: Put) -> PreparedPut:
        photo = put.photo
        expected = (len(photo.chunks), self.encoder.dimension)
        if not photo.chunks or photo.vectors.shape != expected:
            raise ValueError(
                f"photo {put.id!r}: vectors of shape {photo.vectors.shape}, must be {expected} "
                "with at least one chunk"
            )
        vectors = np.ascontiguousarray(photo.vectors, dtype=VECTOR_DTYPE)
        if not np.isfinite(vectors).all():
            raise ValueError(f"photo {put.id!r}: a vector is not finite")
        record = Record(
            id=put.id,
            filename=_printable(put.filename),
            media_type=photo.media_type,
            bytes=len(put.data),
            sha256=hashlib.sha256(put.data).hexdigest(),
            width=photo.width,
            height=photo.height,
            animated=photo.animated,
            indexed_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            sequence=0,
            metadata=check_metadata(put.metadata),
            chunks=photo.chunks,
        )
        return PreparedPut(record, put.data, vectors.tobytes(), photo.thumbnail)

    def _commit_alone(self, operation: Prepared) -> Result:
        try:
            return self._commit([operation])[0]
        except StoreFull as error:
            return error

    def _commit(self, operations: Sequence[Prepared]) -> list[Result]:
        adding = (PreparedPut, KeepThumbnail)
        sizes = [len(op.data) for op in operations if isinstance(op, adding)]
        return self._write(
            lambda txn: Writer(txn, self.dbs, self.encoder.dimension).carry_out(operations),
            added_bytes=sum(sizes) if sizes else None,
        )

    def _write(self, change: Callable[[lmdb.Transaction], T], added_bytes: int | None) -> T:
        """One transaction. On a full map: abort, double the map, do it all again.

        Args:
            change: writes, and returns what this returns.
            added_bytes: size of the pictures it adds; None if it adds none: then it may use the
                reserve.

        Raises:
            StoreFull: the map may not grow any more, or the disk is full; nothing was written.
        """
        size = self._map_size()
        limit = self._map_limit(adds=added_bytes is not None)
        try:
            while True:
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
            if not self._is_disk_full(error, added_bytes or 0):
                raise
            raise StoreFull(
                f"The disk of the store is full ({error.reason}). Nothing of this request was "
                "stored. Free space on the disk, or delete photos."
            ) from error
        finally:
            self._take_back_reserve(size)

    def _is_disk_full(self, error: lmdb.Error, added_bytes: int) -> bool:
        if error.code == errno.EIO:
            # LMDB's name for a write cut short, which is how a disk that fills up looks as well.
            disk = os.statvfs(self.path)
            return disk.f_bavail * disk.f_frsize < 2**20 + added_bytes
        return error.code in DISK_FULL

    # The map

    def _map_limit(self, adds: bool) -> int | None:
        """How large the map may become for a transaction, bytes; None for no limit."""
        if self._max_bytes is None or adds:
            return self._max_bytes
        # A store filled under a larger max_bytes has a map beyond it: that must not bar deleting.
        return max(self._max_bytes, self._map_size()) + RESERVE

    def _map_size(self) -> int:
        return self._env.info()["map_size"]

    def _grow_map(self, limit: int | None) -> bool:
        """Double the map, within the limit. False if it is at the limit already."""
        size = self._map_size()
        larger = 2 * size if limit is None else min(2 * size, limit)
        if larger <= size:
            return False
        self._set_map_size(larger)
        return True

    def _take_back_reserve(self, size_before: int) -> None:
        """Undo growth beyond `max_bytes`, which is for deletions; LMDB keeps the pages in use."""
        if self._max_bytes is None:
            return
        size = max(size_before, self._max_bytes)
        if self._map_size() > size:
            self._set_map_size(size)

    def _set_map_size(self, size: int) -> None:
        # LMDB moves the map under the feet of any open transaction, so there must be none.
        with self._map_gate.exclusive():
            self._env.set_mapsize(size)

    # Opening

    def _open(self) -> None:
        made = make_folder(self.path)
        self._locks.append(take_ownership(self.path, self._lock_timeout_s))
        size = min(self._initial_bytes, self._max_bytes or self._initial_bytes)
        self._env = lmdb.open(
            str(self.path),
            map_size=size,
            max_dbs=len(Databases._fields),
            max_readers=MAX_READERS,
        )
        found = read_format(self._env, self.path)
        if found is not None:
            self._check_encoder()
        # One transaction, so that a crash leaves either no store or a whole one, of one format.
        self.dbs = self._write(lambda txn: self._make_or_upgrade(txn, found), added_bytes=None)
        with self.reading() as txn:
            self.encoder = read_encoder(txn, self.dbs.meta)
            self.history = read_meta(txn, self.dbs.meta, "history")
        sync({self.path, *(folder.parent for folder in made)})

    def _make_or_upgrade(self, txn: lmdb.Transaction, found: int | None) -> Databases:
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
        # The same weights may lie under another name, e.g. in a local folder.
        if replace(stored, name=self._configured.name) != self._configured:
            raise EncoderMismatch(
                f"The store in {self.path} holds vectors of the encoder {_describe(stored)}, but "
                f"the encoder configured is {_describe(self._configured)}. Vectors of two encoders "
                "can't be compared: configure the old encoder, or index into a new folder."
            )


def _printable(filename: str | None) -> str | None:
    """Lone surrogates, as in file names that aren't UTF-8, can't be written as JSON."""
    return None if filename is None else filename.encode("utf-8", "replace").decode()


def _describe(encoder: EncoderIdentity) -> str:
    return f"{encoder.name} (dimension {encoder.dimension}, weights {encoder.digest[:12]})"
