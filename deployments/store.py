"""The store: the only owner of durable state.

One LMDB environment in one folder, owned by one process. A photo's bytes, record, vectors and log
entry are committed in one transaction, so after any crash a photo is either all there or not at
all. `store_format` says what lies where.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from ray import serve

from deployments.errors import (
    BadParameter,
    CorruptRecord,
    EncoderMismatch,
    InsetError,
    StoreFull,
    StoreUnusable,
)
from deployments.records import EncodedPhoto, EncoderIdentity, Record, StoreState
from deployments.settings import StoreSettings
from deployments.startup import ending_serve_run
from deployments.store_access import MapGate, make_folder, sync_folders, take_ownership
from deployments.store_format import (
    CHECKSUM_BYTES,
    DELETE,
    FORMAT,
    VECTOR_DTYPE,
    Databases,
    Delete,
    Prepared,
    PreparedPut,
    Result,
    Stored,
    Writer,
    check_id,
    corrupt,
    decode_or_log,
    decode_record,
    is_intact,
    key_of,
    last_sequence,
    read_totals,
    require_same_content,
    sequence_key,
)

logger = logging.getLogger(__name__)

# Deleting needs a few free pages before it gives any back (LMDB never overwrites a page in use),
# so deletions may grow the map by this much beyond `max_bytes`; puts may not.
DELETE_RESERVE = 4 * 2**20
# What a change costs in `Store.changes` besides its vectors, so that deletions count as well.
CHANGE_OVERHEAD = 256

# Most requests in one transaction: larger groups were measured to be slower for each of them.
GROUP_SIZE = 16
# Vectors in one answer to a replica of the chunk index that loads or follows.
CHANGES_BYTES = 16 * 2**20

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True, slots=True)
class Put:
    """Store a photo.

    Attributes:
        data: the original, as it was sent.
        filename: as the client named it.
        photo: at least one chunk; its vectors are float32 `[len(chunks), d]`, all finite.
    """

    id: str
    data: bytes
    filename: str | None
    photo: EncodedPhoto


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to a photo.

    Attributes:
        sequence: sequence number of the change.
        vectors: float16 `[n, d]`, read-only, in the place of all this photo had before; None if
            the photo was removed.
    """

    sequence: int
    id: str
    vectors: np.ndarray | None


Operation = Put | Delete


class Store:
    """Photos in LMDB. Every method may be called from any thread.

    Reads run beside each other and beside the one writer, each on its own snapshot.

    Args:
        path: folder of the store; made if it is missing.
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
        self.path = Path(path)
        self._dimension = encoder.dimension
        self._max_bytes = max_bytes
        self._writing = threading.Lock()
        self._map_gate = MapGate()
        self._env: lmdb.Environment | None = None
        self._owner_lock: int | None = None
        size = initial_bytes if max_bytes is None else min(initial_bytes, max_bytes)
        try:
            made = make_folder(self.path)
            self._owner_lock = take_ownership(self.path, lock_timeout_s)
            try:
                self._env = lmdb.open(str(self.path), map_size=size, max_dbs=5, max_readers=1024)
                self._open_databases(encoder)
                sync_folders({self.path, *(folder.parent for folder in made)})
            except BaseException:
                self.close()
                raise
        except (lmdb.Error, OSError) as error:
            raise StoreUnusable(
                f"The store in {self.path} can't be opened ({error}). Check that the folder is a "
                "store, readable and writable, and that its disk is neither full nor broken."
            ) from error

    def close(self) -> None:
        """Wait for what is running, then let another process have the store."""
        with self._writing, self._map_gate.exclusive():
            if self._env is not None:
                self._env.close()
            # Not unlinked: a process already waiting for this very file would lock nothing.
            if self._owner_lock is not None:
                os.close(self._owner_lock)
            self._owner_lock = None

    # Writing

    def apply(self, operations: Sequence[Operation]) -> list[Result]:
        """Carry out operations in order, in one transaction with one sync to disk.

        An operation sees the effects of those before it. One that fails leaves the others alone.
        When the whole group doesn't fit, its operations are committed one by one.

        Returns:
            For each operation: `Stored` for a put, the sequence number of a deletion, or the error
            it met (BadParameter, IdTaken, UnknownId, CorruptRecord, StoreFull). Whatever isn't an
            error is on disk.

        Raises:
            ValueError: a photo without chunks, or with vectors that don't fit; nothing was stored.
        """
        prepared = [self._prepare(operation) for operation in operations]
        with self._writing:
            try:
                return self._commit(prepared)
            except _NoRoomError:
                return [self._commit_alone(operation) for operation in prepared]

    def _prepare(self, operation: Operation) -> PreparedPut | Delete | BadParameter:
        """All that can be done for an operation before the transaction."""
        try:
            check_id(operation.id)
        except BadParameter as error:
            return error
        return operation if isinstance(operation, Delete) else self._prepare_put(operation)

    def _prepare_put(self, put: Put) -> PreparedPut:
        photo = put.photo
        expected = (len(photo.chunks), self._dimension)
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
            chunks=photo.chunks,
        )
        return PreparedPut(record, put.data, vectors.tobytes())

    def _commit_alone(self, operation: Prepared) -> Result:
        try:
            return self._commit([operation])[0]
        except _NoRoomError as error:
            return StoreFull(f"{error.reason}. Nothing of this request was stored. {error.remedy}.")

    def _commit(self, operations: Sequence[Prepared]) -> list[Result]:
        """One transaction. On a full map: abort, double the map, do it all again.

        Raises:
            _NoRoomError: the map may not grow any more, or the disk is full; nothing was stored.
        """
        size = self._map_size()
        limit = self._map_limit(operations)
        try:
            while True:
                try:
                    with self._env.begin(write=True) as txn:
                        return Writer(txn, self._dbs, self._dimension).carry_out(operations)
                except lmdb.MapFullError as error:
                    if not self._grow_map(limit):
                        raise _NoRoomError(
                            f"The store has reached its largest size, {self._max_bytes:,} bytes",
                            "Delete photos or raise max_bytes",
                        ) from error
        except lmdb.Error as error:
            if not self._is_disk_full(error, operations):
                raise
            raise _NoRoomError(
                f"The disk of the store is full ({error.reason})",
                "Free space on the disk, or delete photos",
            ) from error
        finally:
            self._take_back_reserve(size)

    def _is_disk_full(self, error: lmdb.Error, operations: Sequence[Prepared]) -> bool:
        if error.code == errno.EIO:
            # LMDB's name for a write cut short, which is how a disk that fills up looks as well.
            needed = 2**20 + sum(len(op.data) for op in operations if isinstance(op, PreparedPut))
            disk = os.statvfs(self.path)
            return disk.f_bavail * disk.f_frsize < needed
        return error.code in DISK_FULL

    # The map

    def _map_limit(self, operations: Sequence[Prepared]) -> int | None:
        """How large the map may become for these operations, bytes; None for no limit."""
        if self._max_bytes is None or any(isinstance(op, PreparedPut) for op in operations):
            return self._max_bytes
        # A store filled under a larger max_bytes has a map beyond it: that must not bar deleting.
        return max(self._max_bytes, self._map_size()) + DELETE_RESERVE

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

    # Reading

    def record(self, id: str) -> Record:
        """What is known of a photo.

        Raises:
            BadParameter, UnknownId, CorruptRecord
        """
        key = key_of(id)
        with self._reading() as txn:
            value = txn.get(key, db=self._dbs.records)
        return decode_record(id, value)

    def find(self, id: str, sha256: str) -> Record | None:
        """The record if this content is stored under this id; None if the id is free.

        Raises:
            BadParameter, CorruptRecord
            IdTaken: other content is stored under it.
        """
        with self._reading() as txn:
            value = txn.get(key_of(id), db=self._dbs.records)
        return None if value is None else require_same_content(decode_record(id, value), sha256)

    def records(self, ids: Sequence[str]) -> list[Record | None]:
        """The records of many photos as of one moment.

        None for a photo that is gone. Also for one whose record is damaged, which is logged: it
        must not take away the answer about the others.
        """
        keys = [key_of(id) for id in ids]
        with self._reading() as txn:
            values = [txn.get(key, db=self._dbs.records) for key in keys]
        return [decode_or_log(id, value) for id, value in zip(ids, values, strict=True)]

    def original(self, id: str) -> tuple[Record, bytes]:
        """A photo's record and its bytes as they were sent.

        Raises:
            BadParameter, UnknownId
            CorruptRecord: the bytes are not those that were sent.
        """
        key = key_of(id)
        with self._reading() as txn:
            value = txn.get(key, db=self._dbs.records)
            data = txn.get(key, db=self._dbs.originals)
        record = decode_record(id, value)
        if data is None or hashlib.sha256(data).hexdigest() != record.sha256:
            raise corrupt(id, "original")
        return record, data

    def vectors(self, id: str) -> np.ndarray:
        """A photo's vectors, float16 `[n, d]`, read-only; n is the number of its chunks.

        Raises:
            BadParameter, UnknownId, CorruptRecord
        """
        key = key_of(id)
        with self._reading() as txn:
            value = txn.get(key, db=self._dbs.records)
            vectors = txn.get(key, db=self._dbs.vectors)
        return self._decode_vectors(decode_record(id, value), vectors)

    def page(self, after: str | None, limit: int) -> list[Record]:
        """At most `limit` records in id order (ASCII), of the ids greater than `after`.

        A damaged record is left out, and logged. Fewer than `limit` records: there are no more.

        Raises:
            BadParameter: `after` is no id.
        """
        start = b"" if after is None else key_of(after) + b"\0"
        found: list[Record] = []
        with self._reading() as txn:
            cursor = txn.cursor(db=self._dbs.records)
            more = cursor.set_range(start)
            while more and len(found) < limit:
                record = decode_or_log(cursor.key().decode(), cursor.value())
                if record is not None:
                    found.append(record)
                more = cursor.next()
        return found

    def changes(self, after: int, max_bytes: int) -> tuple[list[Change], int]:
        """The net changes after a sequence number, in order.

        A photo that has since been removed or replaced is skipped as a put: the later entry says
        what became of it. So from 0 on, this is the whole content. A damaged photo comes as
        removed, and is logged: it must not keep the others from being found.

        Args:
            after: the sequence number up to which the caller knows everything.
            max_bytes: stop after about so many bytes of vectors, but not before the first change.

        Returns:
            The changes, and the sequence number reached: the next `after`. It is smaller than
            `after` if this store never got that far, e.g. when it is an older copy; then start
            again from 0.
        """
        found: list[Change] = []
        size = 0
        with self._reading() as txn:
            reached = min(after, last_sequence(txn, self._dbs.log))
            cursor = txn.cursor(db=self._dbs.log)
            more = cursor.set_range(sequence_key(after + 1))
            while more and (size < max_bytes or not found):
                reached = int.from_bytes(cursor.key(), "big")
                change = self._change(txn, reached, cursor.value())
                if change is not None:
                    found.append(change)
                    size += CHANGE_OVERHEAD
                    size += change.vectors.nbytes if change.vectors is not None else 0
                more = cursor.next()
        return found, reached

    def _change(self, txn: lmdb.Transaction, sequence: int, entry: bytes) -> Change | None:
        """The change that a log entry stands for; None for a put that is no longer true."""
        id = entry[1:].decode()
        if entry[:1] == DELETE:
            return Change(sequence, id, None)
        value = txn.get(entry[1:], db=self._dbs.records)
        if value is None:
            return None
        try:
            record = decode_record(id, value)
            if record.sequence != sequence:
                return None
            vectors = self._decode_vectors(record, txn.get(entry[1:], db=self._dbs.vectors))
        except CorruptRecord as error:
            logger.error("%s", error.detail)
            return Change(sequence, id, None)
        return Change(sequence, id, vectors)

    def stats(self) -> StoreState:
        """Counts and sizes, without a scan."""
        with self._reading() as txn:
            totals = read_totals(txn, self._dbs.meta)
            pages = [txn.stat(db) for db in self._dbs]
            return StoreState(
                photos=txn.stat(self._dbs.records)["entries"],
                chunks=totals.chunks,
                original_bytes=totals.original_bytes,
                used_bytes=sum(
                    stat["psize"]
                    * (stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"])
                    for stat in pages
                ),
                map_bytes=self._map_size(),
                sequence=last_sequence(txn, self._dbs.log),
            )

    @property
    def sequence(self) -> int:
        """Number of the last change, 0 if there was none."""
        with self._reading() as txn:
            return last_sequence(txn, self._dbs.log)

    @contextmanager
    def _reading(self) -> Iterator[lmdb.Transaction]:
        with self._map_gate.shared(), self._env.begin() as txn:
            yield txn

    def _decode_vectors(self, record: Record, value: bytes | None) -> np.ndarray:
        rows = len(record.chunks)
        size = CHECKSUM_BYTES + rows * self._dimension * VECTOR_DTYPE.itemsize
        if value is None or len(value) != size or not is_intact(record.id, value):
            raise corrupt(record.id, "vectors")
        vectors = np.frombuffer(value, dtype=VECTOR_DTYPE, offset=CHECKSUM_BYTES)
        return vectors.reshape(rows, self._dimension)

    # Opening

    def _open_databases(self, encoder: EncoderIdentity) -> None:
        with self._env.begin() as txn:
            is_new = txn.stat()["entries"] == 0
        if not is_new:
            self._check_format()
        # One transaction, so that a crash leaves either no store or a whole one.
        with self._env.begin(write=True) as txn:
            self._dbs = Databases(
                *(self._env.open_db(name.encode(), txn=txn) for name in Databases._fields)
            )
            if is_new:
                txn.put(b"format", json.dumps(FORMAT).encode(), db=self._dbs.meta)
                txn.put(b"encoder", json.dumps(asdict(encoder)).encode(), db=self._dbs.meta)
        self._check_encoder(encoder)

    def _check_format(self) -> None:
        try:
            meta = self._env.open_db(b"meta", create=False)
            with self._env.begin() as txn:
                found = json.loads(txn.get(b"format", b"null", db=meta))
        except (lmdb.Error, ValueError):
            found = None
        if found is None:
            raise StoreUnusable(
                f"{self.path} holds an LMDB database that is not a store of this service: "
                "configure another folder."
            )
        if found != FORMAT:
            raise StoreUnusable(
                f"The store in {self.path} has format {found}, this version reads format {FORMAT}: "
                "use the version that wrote it, or index into a new folder."
            )

    def _check_encoder(self, configured: EncoderIdentity) -> None:
        with self._env.begin() as txn:
            stored = EncoderIdentity(**json.loads(txn.get(b"encoder", db=self._dbs.meta)))
        # The same weights may lie under another name, e.g. in a local folder.
        if replace(stored, name=configured.name) != configured:
            raise EncoderMismatch(
                f"The store in {self.path} holds vectors of the encoder {_describe(stored)}, but "
                f"the encoder configured is {_describe(configured)}. Vectors of two encoders can't "
                "be compared: configure the old encoder, or index into a new folder."
            )


class _NoRoomError(Exception):
    """A transaction doesn't fit: why, and what a person can do."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


def _printable(filename: str | None) -> str | None:
    """Lone surrogates, as in file names that aren't UTF-8, can't be written as JSON."""
    return None if filename is None else filename.encode("utf-8", "replace").decode()


def _describe(encoder: EncoderIdentity) -> str:
    return f"{encoder.name} (dimension {encoder.dimension}, weights {encoder.digest[:12]})"


@serve.deployment(name="Store", max_ongoing_requests=512, ray_actor_options={"num_cpus": 0})
class StoreDeployment:
    """A `Store` whose writers share transactions: while one syncs, the next group gathers."""

    def __init__(self, settings: StoreSettings, encoder: EncoderIdentity) -> None:
        with ending_serve_run(EncoderMismatch):
            self.store = Store(settings.path, encoder, max_bytes=settings.max_bytes)
        self._sequence = self.store.sequence
        self._changed = asyncio.Condition()

    async def put(self, id: str, data: bytes, filename: str | None, photo: EncodedPhoto) -> Stored:
        """Store a photo; when this returns it is on disk.

        Raises:
            IdTaken, StoreFull, CorruptRecord
        """
        return await self._apply_one(Put(id, data, filename, photo))

    async def delete(self, id: str) -> int:
        """Remove a photo; returns the sequence number of the change.

        Raises:
            UnknownId, StoreFull, CorruptRecord
        """
        return await self._apply_one(Delete(id))

    async def find(self, id: str, sha256: str) -> Record | None:
        """Return the record if this content is stored under this id, None if the id is free.

        Raises:
            IdTaken, CorruptRecord
        """
        return self.store.find(id, sha256)

    async def record(self, id: str) -> Record:
        """See `Store.record`."""
        return self.store.record(id)

    async def records(self, ids: list[str]) -> tuple[list[Record | None], int]:
        """Return records, and the sequence number as of which one that is missing is gone."""
        return self.store.records(ids), self.store.sequence

    async def get(self, id: str) -> tuple[Record, bytes]:
        """See `Store.original`."""
        return await asyncio.to_thread(self.store.original, id)

    async def original(self, id: str) -> bytes:
        """Return the bytes alone: what the encoder needs to search by a stored photo."""
        _, data = await self.get(id)
        return data

    async def page(self, after: str | None, limit: int) -> list[Record]:
        """See `Store.page`."""
        return await asyncio.to_thread(self.store.page, after, limit)

    async def changes(self, after: int, wait_s: float) -> tuple[list[Change], int]:
        """See `Store.changes`; when there are none, wait for one, but no longer than `wait_s`."""
        changes, reached = await asyncio.to_thread(self.store.changes, after, CHANGES_BYTES)
        if reached == after and wait_s > 0:
            async with self._changed:
                with suppress(TimeoutError):
                    await asyncio.wait_for(
                        self._changed.wait_for(lambda: self._sequence > after), wait_s
                    )
            changes, reached = await asyncio.to_thread(self.store.changes, after, CHANGES_BYTES)
        return changes, reached

    async def stats(self) -> StoreState:
        """See `Store.stats`."""
        return self.store.stats()

    async def ping(self) -> None:
        """Answer, to show that it can."""

    async def _apply_one(self, operation: Operation) -> Any:
        result = await self._apply(operation)
        if isinstance(result, InsetError):
            raise result
        return result

    @serve.batch(max_batch_size=GROUP_SIZE, batch_wait_timeout_s=0)
    async def _apply(self, operations: list[Operation]) -> list[Result]:
        results = await asyncio.to_thread(self.store.apply, operations)
        async with self._changed:
            self._sequence = self.store.sequence
            self._changed.notify_all()
        return results
