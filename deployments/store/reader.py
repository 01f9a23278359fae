"""Reading a store: by its owner, and by tools in other processes while it is in use."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import lmdb
import numpy as np

from deployments.errors import CorruptRecord, StoreUnusable
from deployments.records import Change, Changes, EncoderIdentity, Position, Record, StoreState
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
    read_encoder,
    read_format,
    read_meta,
    read_totals,
    require_same_content,
    sequence_key,
    sequence_of,
    thumbnail_or_log,
    unknown,
)

logger = logging.getLogger(__name__)

# What a change costs in `StoreReader.changes` besides its vectors, so that deletions count as well.
CHANGE_OVERHEAD = 256
# How many ids are read at a time where all of them are.
IDS_AT_A_TIME = 1000


@dataclass(frozen=True, slots=True)
class StoreDetails:
    """What people who keep a store want to know besides its counts.

    Attributes:
        file_bytes: size of its file on disk, bytes.
        free_bytes: size of the pages in it that hold nothing; they are used again.
        thumbnails: how many photos have one; the others get theirs when it is asked for.
        thumbnail_bytes: size of the pages that hold them, bytes.
        log_entries: one for each photo, and one for each deletion since the log was cut.
        cut: deletions up to this change are no longer in the log.
        oldest, newest: when the photos that are stored were indexed, UTC, ISO 8601; None if there
            are none, or the record that says so is damaged.
    """

    file_bytes: int
    free_bytes: int
    thumbnails: int
    thumbnail_bytes: int
    log_entries: int
    cut: int
    oldest: str | None
    newest: str | None


class StoreReader:
    """A store to read, also while another process owns it. Every method may be called from any
    thread.

    Reads run beside each other and beside the one writer, each on its own snapshot.

    Args:
        path: folder of the store.

    Attributes:
        encoder: what made the vectors.
        history: which life of the store its sequence numbers belong to.
        dbs: LMDB's databases, for `reading`.

    Raises:
        StoreUnusable: not a store, of another format, unreadable, or being compacted.
    """

    encoder: EncoderIdentity
    history: str
    dbs: Databases

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._map_gate = MapGate()
        self._env: lmdb.Environment | None = None
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
        self._env = lmdb.open(
            str(self.path),
            readonly=True,
            create=False,
            max_dbs=len(Databases._fields),
            max_readers=MAX_READERS,
        )
        found = read_format(self._env, self.path)
        if found != FORMAT:
            raise StoreUnusable(
                f"The store in {self.path} has format {found}, this version reads format {FORMAT}: "
                "start the service once, which upgrades it."
            )
        self.dbs = open_databases(self._env)
        with self.reading() as txn:
            self.encoder = read_encoder(txn, self.dbs.meta)
            self.history = read_meta(txn, self.dbs.meta, "history")

    def close(self) -> None:
        """Wait for what is running, then let go of the files."""
        with self._map_gate.exclusive():
            if self._env is not None:
                self._env.close()
            # Lock files are not unlinked: a process already waiting for one would lock nothing.
            while self._locks:
                os.close(self._locks.pop())

    @contextmanager
    def reading(self) -> Iterator[lmdb.Transaction]:
        """One snapshot. As long as it is open, no space that it uses is used again by writers.

        Not reentrant: a thread that reads must call no other method of the store.
        """
        while True:
            with self._map_gate.shared():
                try:
                    txn = self._env.begin()
                except lmdb.MapResizedError:
                    pass
                else:
                    with txn:
                        yield txn
                    return
            # The owner has enlarged the map. Ours may follow when nobody reads.
            with self._map_gate.exclusive():
                self._env.set_mapsize(0)

    def record(self, id: str) -> Record:
        """What is known of a photo.

        Raises:
            BadParameter, UnknownId, CorruptRecord
        """
        key = key_of(id)
        with self.reading() as txn:
            value = txn.get(key, db=self.dbs.records)
        return decode_record(id, value)

    def find(self, id: str, sha256: str) -> Record | None:
        """The record if this content is stored under this id; None if the id is free.

        Raises:
            BadParameter, CorruptRecord
            IdTaken: other content is stored under it.
        """
        with self.reading() as txn:
            value = txn.get(key_of(id), db=self.dbs.records)
        return None if value is None else require_same_content(decode_record(id, value), sha256)

    def records(self, ids: Sequence[str]) -> list[bytes | None]:
        """The records of many photos as of one moment, as JSON.

        None for a photo that is gone. Also for one whose record is damaged, which is logged: it
        must not take away the answer about the others.
        """
        keys = [key_of(id) for id in ids]
        with self.reading() as txn:
            values = [txn.get(key, db=self.dbs.records) for key in keys]
        return [json_or_log(id, value) for id, value in zip(ids, values, strict=True)]

    def original(self, id: str) -> tuple[Record, bytes]:
        """A photo's record and its bytes as they were sent.

        Raises:
            BadParameter, UnknownId
            CorruptRecord: the bytes are not those that were sent.
        """
        key = key_of(id)
        with self.reading() as txn:
            value = txn.get(key, db=self.dbs.records)
            data = txn.get(key, db=self.dbs.originals)
        record = decode_record(id, value)
        if data is None or hashlib.sha256(data).hexdigest() != record.sha256:
            raise corrupt(id, "original")
        return record, data

    def thumbnail(self, id: str) -> bytes | None:
        """A photo's thumbnail; None if it was stored without one.

        Also if it is damaged, which is logged: the original is there to make another.

        Raises:
            BadParameter, UnknownId
        """
        key = key_of(id)
        with self.reading() as txn:
            is_there = txn.cursor(db=self.dbs.records).set_key(key)
            value = txn.get(key, db=self.dbs.thumbnails)
        if not is_there:
            raise unknown(id)
        return thumbnail_or_log(id, value)

    def vectors(self, id: str) -> np.ndarray:
        """A photo's vectors, float16 `[n, d]`, read-only; n is the number of its chunks.

        Raises:
            BadParameter, UnknownId, CorruptRecord
        """
        key = key_of(id)
        with self.reading() as txn:
            value = txn.get(key, db=self.dbs.records)
            vectors = txn.get(key, db=self.dbs.vectors)
        return decode_vectors(decode_record(id, value), vectors, self.encoder.dimension)

    def records_after(self, after: str | None, limit: int) -> list[Record]:
        """At most `limit` records in id order (ASCII), of the ids greater than `after`.

        A damaged record is left out, and logged. Fewer than `limit` records: there are no more.

        Raises:
            BadParameter: `after` is no id.
        """
        start = b"" if after is None else key_of(after) + b"\0"
        found: list[Record] = []
        with self.reading() as txn:
            cursor = txn.cursor(db=self.dbs.records)
            more = cursor.set_range(start)
            while more and len(found) < limit:
                record = decode_or_log(cursor.key().decode(), cursor.value())
                if record is not None:
                    found.append(record)
                more = cursor.next()
        return found

    def ids(self) -> Iterator[str]:
        """All ids in order (ASCII), read in portions: a photo put or removed meanwhile may be among
        them or not.
        """
        start = b""
        while start is not None:
            with self.reading() as txn:
                cursor = txn.cursor(db=self.dbs.records)
                more = cursor.set_range(start)
                keys = []
                while more and len(keys) < IDS_AT_A_TIME:
                    keys.append(cursor.key())
                    more = cursor.next()
            yield from (key.decode() for key in keys)
            start = keys[-1] + b"\0" if more else None

    def changes(self, position: Position | None, max_bytes: int) -> Changes:
        """The net changes after a position in the log, in order.

        A photo that has since been removed or replaced is skipped as a put: the later entry says
        what became of it. So from the beginning on, this is the whole content. A damaged photo
        comes as removed, and is logged: it must not keep the others from being found.

        Args:
            position: where the caller is; None: it knows nothing.
            max_bytes: stop after about so many bytes of vectors, but not before the first change.

        Returns:
            The next changes. They begin anew if the caller knows nothing, comes from another
            history, is beyond the last change of this store, or needs deletions that were cut.
        """
        found: list[Change] = []
        size = 0
        with self.reading() as txn:
            last = last_sequence(txn, self.dbs.log)
            anew = position is None or not self._can_follow(txn, position, last)
            if anew:
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

    def _can_follow(self, txn: lmdb.Transaction, position: Position, last: int) -> bool:
        known = max(position.sequence, position.base)
        cut = read_meta(txn, self.dbs.meta, "cut")
        return position.history == self.history and cut <= known <= last

    def _change(self, txn: lmdb.Transaction, sequence: int, entry: bytes) -> Change | None:
        """The change that a log entry stands for; None for a put that is no longer true."""
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
        """Counts and sizes, without a scan."""
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
        """What `stats` doesn't say; looks for the oldest and the newest photo in the log."""
        with self.reading() as txn:
            main, thumbnails = txn.stat(), txn.stat(self.dbs.thumbnails)
            used = sum(map(_page_bytes, [main, *map(txn.stat, self.dbs)]))
            # Two pages say where the newest transaction begins.
            pages = self._env.info()["last_pgno"] + 1 - 2
            return StoreDetails(
                file_bytes=(self.path / DATA).stat().st_size,
                free_bytes=max(0, pages * main["psize"] - used),
                thumbnails=thumbnails["entries"],
                thumbnail_bytes=_page_bytes(thumbnails),
                log_entries=txn.stat(self.dbs.log)["entries"],
                cut=read_meta(txn, self.dbs.meta, "cut"),
                oldest=self._indexed_at(txn, txn.cursor(db=self.dbs.log).iternext(keys=False)),
                newest=self._indexed_at(txn, txn.cursor(db=self.dbs.log).iterprev(keys=False)),
            )

    def _indexed_at(self, txn: lmdb.Transaction, entries: Iterator[bytes]) -> str | None:
        """When the first photo put in these log entries was indexed."""
        key = next((entry[1:] for entry in entries if entry[:1] == PUT), None)
        if key is None:
            return None
        record = decode_or_log(key.decode(), txn.get(key, db=self.dbs.records))
        return None if record is None else record.indexed_at

    @property
    def deletions(self) -> int:
        """How many deletions the log holds."""
        with self.reading() as txn:
            entries = txn.stat(self.dbs.log)["entries"]
            return entries - txn.stat(self.dbs.records)["entries"]

    def copy_to(self, descriptor: int) -> None:
        """Write a consistent copy without free pages to a file or pipe, while others go on.

        Raises:
            lmdb.Error: it can't be written.
        """
        with self.reading() as txn:
            self._env.copyfd(descriptor, compact=True, txn=txn)


def _page_bytes(stat: dict[str, int]) -> int:
    """Size of the pages of a database, bytes."""
    return stat["psize"] * (stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"])
