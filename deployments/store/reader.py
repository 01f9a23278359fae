"""Read a store: in the process that owns it, and in other processes while it is in use."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import lmdb

from deployments.errors import CorruptRecord, InsetError, StoreUnusable, Unavailable
from deployments.outcomes import Outcome
from deployments.records import (
    Change,
    Changes,
    EncoderIdentity,
    Position,
    Preview,
    Record,
    StoreState,
)
from deployments.store.access import (
    DATA,
    MAX_READERS,
    MapGate,
    hold_files,
    opening,
    require_store,
)
from deployments.store.format import (
    DELETE,
    FORMAT,
    PUT,
    Databases,
    corrupt,
    decode_or_log,
    decode_record,
    decode_vectors,
    json_or_log,
    key_of,
    last_sequence,
    open_databases,
    picture_or_log,
    read_encoder,
    read_format,
    read_meta,
    read_totals,
    require_same_content,
    sequence_key,
    sequence_of,
    unknown,
)

logger = logging.getLogger(__name__)

TO_BE_OPENED_AGAIN = (
    "It takes no more changes until it is opened again, which the service does by itself. Check "
    "the disk, and try again in a while."
)

V = TypeVar("V", bytes, memoryview)  # what LMDB returns values as

# Bytes that `StoreReader.changes` counts for a change besides its vectors, so that deletions count.
CHANGE_OVERHEAD = 256
# Ids that `StoreReader.ids` reads in one transaction.
IDS_AT_A_TIME = 1000


@dataclass(frozen=True, slots=True)
class StoreDetails:
    """What the operator of a store wants to know besides `StoreState`.

    Attributes:
        file_bytes: size of the file on disk, bytes.
        free_bytes: size of the empty pages in the file, bytes; writers use them again.
        thumbnails, previews: number of photos that have one; the others get theirs on request.
        thumbnail_bytes, preview_bytes: size of the pages that hold them, bytes.
        log_entries: one for each photo, and one for each deletion since the log was cut.
        cut: deletions up to this change are no longer in the log.
        oldest, newest: when the first and the last of the stored photos were indexed, UTC, ISO
            8601; None if there are none, or that photo's record is damaged.
    """

    file_bytes: int
    free_bytes: int
    thumbnails: int
    thumbnail_bytes: int
    previews: int
    preview_bytes: int
    log_entries: int
    cut: int
    oldest: str | None
    newest: str | None


class StoreReader:
    """Read access to a store, also while another process owns it. All methods are thread-safe.

    Reads run in parallel with each other and with the writer, each on its own snapshot.

    Args:
        path: folder of the store.

    Attributes:
        encoder: the encoder that made the vectors.
        history: the history that its sequence numbers belong to, see `records.Position`.
        dbs: LMDB's databases, for use with `reading`.
        failed: its disk has failed, so it must be opened again.

    Raises:
        StoreUnusable: not a store, of another format, unreadable, or being compacted.
    """

    encoder: EncoderIdentity
    history: str
    dbs: Databases

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.failed = False
        self._map_gate = MapGate()
        self._opened: lmdb.Environment | None = None
        self._locks: list[int] = []  # descriptors
        try:
            with opening(self.path):
                self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        require_store(self.path)
        self._locks.append(hold_files(self.path, alone=False))
        self._opened = lmdb.open(
            str(self.path),
            readonly=True,
            create=False,
            max_dbs=len(Databases._fields),
            max_readers=MAX_READERS,
        )
        found = read_format(self._env, self.path)
        if found != FORMAT:
            raise StoreUnusable(
                f"The store in {self.path} has format {found}, but this version reads format "
                f"{FORMAT}: start the service once, which upgrades it."
            )
        self.dbs = open_databases(self._env)
        with self.reading() as txn:
            self.encoder = read_encoder(txn, self.dbs.meta)
            self.history = read_meta(txn, self.dbs.meta, "history")

    def close(self) -> None:
        """Wait for running calls, then close and unlock the files."""
        with self._map_gate.exclusive():
            if self._opened is not None:
                self._opened.close()
            # Lock files are not deleted: a process that waits for one would lock a deleted file.
            while self._locks:
                os.close(self._locks.pop())

    @property
    def _env(self) -> lmdb.Environment:
        assert self._opened is not None  # `_open` comes first
        return self._opened

    @contextmanager
    def reading(self) -> Iterator[lmdb.Transaction[bytes]]:
        """Open a snapshot. While it is open, writers can't use its space again.

        Not reentrant: a thread that has it open must not call other methods of the store.
        """
        with self._snapshot(lambda: self._env.begin()) as txn:
            yield txn

    @contextmanager
    def _viewing(self) -> Iterator[lmdb.Transaction[memoryview]]:
        """Like `reading`, but values are views of the file: only what is used of them is read.

        A view ends with the snapshot.
        """
        with self._snapshot(lambda: self._env.begin(buffers=True)) as txn:
            yield txn

    @contextmanager
    def _snapshot(self, begin: Callable[[], lmdb.Transaction[V]]) -> Iterator[lmdb.Transaction[V]]:
        while True:
            with self._map_gate.shared():
                try:
                    transaction = begin()
                except lmdb.MapResizedError:
                    pass
                except lmdb.PanicError as error:
                    self.failed = True
                    raise Unavailable(
                        f"The disk of the store failed. {TO_BE_OPENED_AGAIN}"
                    ) from error
                else:
                    with transaction as txn:
                        yield txn
                    return
            # The owner has enlarged the map. Ours can follow only while no thread reads.
            with self._map_gate.exclusive():
                self._env.set_mapsize(0)

    def record(self, id: str) -> Record:
        """Return the record of a photo.

        Raises:
            BadParameter, UnknownId, CorruptRecord
        """
        key = key_of(id)
        with self.reading() as txn:
            value = txn.get(key, db=self.dbs.records)
        return decode_record(id, value)

    def find(self, id: str, sha256: str) -> Record | None:
        """Return the record if this content is stored under this id; None if the id is free.

        Raises:
            BadParameter, CorruptRecord
            IdTaken: other content is stored under this id.
        """
        with self.reading() as txn:
            value = txn.get(key_of(id), db=self.dbs.records)
        return None if value is None else require_same_content(decode_record(id, value), sha256)

    def find_all(self, wanted: Sequence[tuple[str, str]]) -> list[Outcome[Record | None]]:
        """Look for photos by their ids and the SHA-256 of their contents.

        Returns:
            Of each what `find` returns, or the error.
        """
        found: list[Outcome[Record | None]] = []
        for id, sha256 in wanted:
            try:
                found.append(self.find(id, sha256))
            except InsetError as error:
                found.append(error)
        return found

    def records(self, ids: Sequence[str]) -> list[bytes | None]:
        """Return the records of many photos in one snapshot, as JSON.

        The record of a deleted photo is None. So is a damaged record, which is logged: the others
        are still returned.

        Raises:
            BadParameter
        """
        keys = [key_of(id) for id in ids]
        with self.reading() as txn:
            values = [txn.get(key, db=self.dbs.records) for key in keys]
        return [json_or_log(id, value) for id, value in zip(ids, values, strict=True)]

    def original(self, id: str) -> tuple[Record, bytes]:
        """Return a photo's record and the original bytes.

        Raises:
            BadParameter, UnknownId
            CorruptRecord: the record is damaged, or the bytes are not those that were sent.
        """
        key = key_of(id)
        with self.reading() as txn:
            value = txn.get(key, db=self.dbs.records)
            data = txn.get(key, db=self.dbs.originals)
        record = decode_record(id, value)
        if data is None or hashlib.sha256(data).hexdigest() != record.sha256:
            raise corrupt(id, "original")
        return record, data

    def original_part(self, id: str, sha256: str, start: int, stop: int) -> bytes | None:
        """Return the bytes from `start` to `stop` of an original; None if it is another by now.

        Only these bytes are read, so nothing is compared with the SHA-256: damage in a part goes
        unnoticed, unless bytes are missing.

        Args:
            sha256: of the original that the caller means.
            start, stop: within the size that the record says.

        Raises:
            BadParameter, UnknownId
            CorruptRecord: the record is damaged, or bytes are missing.
        """
        key = key_of(id)
        with self._viewing() as txn:
            value = txn.get(key, db=self.dbs.records)
            record = decode_record(id, None if value is None else bytes(value))
            if record.sha256 != sha256:
                return None
            data = txn.get(key, db=self.dbs.originals)
            if data is None or len(data) != record.bytes:
                raise corrupt(id, "original")
            return bytes(data[start:stop])

    def thumbnail(self, id: str) -> bytes | None:
        """Return a photo's thumbnail; None if it has none.

        Return None also if it is damaged, which is logged: another can be made of the original.

        Raises:
            BadParameter, UnknownId
        """
        key = key_of(id)
        with self.reading() as txn:
            is_there = txn.cursor(db=self.dbs.records).set_key(key)
            value = txn.get(key, db=self.dbs.thumbnails)
        if not is_there:
            raise unknown(id)
        return picture_or_log(id, "thumbnail", value)

    def previews(self, ids: Sequence[str]) -> list[Preview | None]:
        """Return the previews of many photos in one snapshot.

        If there is no such photo, or its record is damaged, there is None in its place. Damage is
        logged.

        Raises:
            BadParameter
        """
        keys = [key_of(id) for id in ids]
        with self.reading() as txn:
            found = [
                (txn.get(key, db=self.dbs.records), txn.get(key, db=self.dbs.previews))
                for key in keys
            ]
        return [_preview(id, *values) for id, values in zip(ids, found, strict=True)]

    def records_after(self, after: str | None, limit: int, compact: bool = False) -> list[bytes]:
        """Return at most `limit` records in id order (ASCII), of the ids greater than `after`.

        They are JSON, as in `records`. Damaged ones are left out and logged. If fewer than `limit`
        are returned, there are no more.

        Args:
            compact: leave out their chunks, which are nine tenths of them.

        Raises:
            BadParameter: `after` is not a valid id.
        """
        start = b"" if after is None else key_of(after) + b"\0"
        found: list[bytes] = []
        with self.reading() as txn:
            cursor = txn.cursor(db=self.dbs.records)
            more = cursor.set_range(start)
            while more and len(found) < limit:
                record = json_or_log(cursor.key().decode(), cursor.value())
                if record is not None:
                    found.append(record)
                more = cursor.next()
        return [_without_chunks(record) for record in found] if compact else found

    def ids(self) -> Iterator[str]:
        """Yield all ids in order (ASCII).

        They are read in portions, so a photo that is put or removed meanwhile may be among them or
        not.
        """
        start: bytes | None = b""
        while start is not None:
            keys: list[bytes] = []
            with self.reading() as txn:
                cursor = txn.cursor(db=self.dbs.records)
                more = cursor.set_range(start)
                while more and len(keys) < IDS_AT_A_TIME:
                    keys.append(cursor.key())
                    more = cursor.next()
            yield from (key.decode() for key in keys)
            start = keys[-1] + b"\0" if more else None

    def changes(self, position: Position | None, max_bytes: int) -> Changes:
        """Return the net changes after a position in the log, in order.

        The put of a photo that was removed or replaced later is left out, because a later entry
        covers it. So the changes from the beginning give the whole content. A damaged photo is
        returned as a removal, and logged, so that the others can still be found.

        Args:
            position: where the caller is; None if it knows nothing.
            max_bytes: stop after about this many bytes of vectors, but not before the first
                change.

        Returns:
            The next changes. They begin anew if the caller knows nothing, comes from another
            history, is beyond the last change of this store, or needs deletions that were cut.
        """
        found: list[Change] = []
        size = 0
        with self.reading() as txn:
            last = last_sequence(txn, self.dbs.log)
            anew = position is None or not self._can_follow(txn, position, last)
            if position is None or anew:
                position = Position(self.history, sequence=0, base=last)
            reached = position.sequence
            cursor = txn.cursor(db=self.dbs.log)
            more = cursor.set_range(sequence_key(reached + 1))
            while more and (size < max_bytes or not found):
                reached = sequence_of(cursor.key())
                change = self._change(txn, reached, cursor.value())
                if change is not None:
                    found.append(change)
                    size += CHANGE_OVERHEAD
                    size += change.vectors.nbytes if change.vectors is not None else 0
                more = cursor.next()
        return Changes(anew, found, replace(position, sequence=reached), last)

    def _can_follow(self, txn: lmdb.Transaction[bytes], position: Position, last: int) -> bool:
        known = max(position.sequence, position.base)
        cut = read_meta(txn, self.dbs.meta, "cut")
        return position.history == self.history and bool(cut <= known <= last)

    def _change(self, txn: lmdb.Transaction[bytes], sequence: int, entry: bytes) -> Change | None:
        """Return the change of a log entry; None for a put that a later entry covers."""
        id = entry[1:].decode()
        if entry[:1] == DELETE:
            return Change(sequence, id, None, {})
        value = txn.get(entry[1:], db=self.dbs.records)
        if value is None:
            return None
        try:
            record = decode_record(id, value)
            if record.sequence != sequence:
                return None
            stored = txn.get(entry[1:], db=self.dbs.vectors)
            vectors = decode_vectors(record, stored, self.encoder.dimension)
        except CorruptRecord as error:
            logger.error("%s", error.detail)
            return Change(sequence, id, None, {})
        return Change(sequence, id, vectors, record.metadata)

    def stats(self) -> StoreState:
        """Return counts and sizes. This needs no scan."""
        with self.reading() as txn:
            totals = read_totals(txn, self.dbs.meta)
            return StoreState(
                photos=txn.stat(self.dbs.records)["entries"],
                chunks=totals.chunks,
                original_bytes=totals.original_bytes,
                used_bytes=sum(_page_bytes(txn.stat(db)) for db in self.dbs),
                map_bytes=self._env.info()["map_size"],
                sequence=last_sequence(txn, self.dbs.log),
            )

    @property
    def sequence(self) -> int:
        """Number of the last change, 0 if there was none."""
        with self.reading() as txn:
            return last_sequence(txn, self.dbs.log)

    def details(self) -> StoreDetails:
        """Return what `stats` leaves out. This searches the log for the oldest and newest photo."""
        with self.reading() as txn:
            main, thumbnails = txn.stat(), txn.stat(self.dbs.thumbnails)
            previews = txn.stat(self.dbs.previews)
            used = sum(_page_bytes(stat) for stat in (main, *map(txn.stat, self.dbs)))
            # LMDB's two meta pages are neither used nor free.
            pages = self._env.info()["last_pgno"] + 1 - 2
            return StoreDetails(
                file_bytes=(self.path / DATA).stat().st_size,
                free_bytes=max(0, pages * main["psize"] - used),
                thumbnails=thumbnails["entries"],
                thumbnail_bytes=_page_bytes(thumbnails),
                previews=previews["entries"],
                preview_bytes=_page_bytes(previews),
                log_entries=txn.stat(self.dbs.log)["entries"],
                cut=read_meta(txn, self.dbs.meta, "cut"),
                oldest=self._indexed_at(txn, txn.cursor(db=self.dbs.log).iternext(keys=False)),
                newest=self._indexed_at(txn, txn.cursor(db=self.dbs.log).iterprev(keys=False)),
            )

    def _indexed_at(self, txn: lmdb.Transaction[bytes], entries: Iterator[bytes]) -> str | None:
        """Return when the first photo put in these log entries was indexed."""
        key = next((entry[1:] for entry in entries if entry[:1] == PUT), None)
        if key is None:
            return None
        record = decode_or_log(key.decode(), txn.get(key, db=self.dbs.records))
        return None if record is None else record.indexed_at

    @property
    def deletions(self) -> int:
        """Number of deletions in the log."""
        with self.reading() as txn:
            entries = txn.stat(self.dbs.log)["entries"]
            return entries - txn.stat(self.dbs.records)["entries"]

    def copy_to(self, descriptor: int) -> None:
        """Write a consistent copy without free pages to a file or pipe; writers needn't wait.

        Raises:
            lmdb.Error: the copy can't be written.
        """
        with self.reading() as txn:
            self._env.copyfd(descriptor, compact=True, txn=txn)


def _preview(id: str, record: bytes | None, value: bytes | None) -> Preview | None:
    described = json_or_log(id, record)
    if described is None:
        return None
    # A few numbers of it are needed, and a `Record` checks all chunks.
    fields = json.loads(described)
    data = picture_or_log(id, "preview", value)
    return Preview(fields["sha256"], fields["width"], fields["height"], data)


def _without_chunks(record: bytes) -> bytes:
    fields = json.loads(record)
    del fields["chunks"]
    return json.dumps(fields, separators=(",", ":")).encode()


def _page_bytes(stat: lmdb._StatDict) -> int:
    """Return the size of the pages of a database, bytes."""
    return stat["psize"] * (stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"])
