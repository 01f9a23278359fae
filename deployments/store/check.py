"""Check a whole store: every value, and whether the values agree with each other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import lmdb
import numpy as np

from deployments.errors import CorruptRecord
from deployments.records import Record, content_hash
from deployments.store.format import (
    DELETE,
    PUT,
    Totals,
    count_chunks,
    decode_record,
    decode_vectors,
    is_intact,
    last_sequence,
    read_meta,
    read_totals,
    sequence_key,
    sequence_of,
)
from deployments.store.reader import StoreReader

# Vectors are normalised before they are rounded to float16.
NORM_TOLERANCE = 0.01


@dataclass(frozen=True, slots=True)
class Damage:
    """Something wrong in a store.

    Attributes:
        id: the photo; empty if no single photo is concerned.
        part: `record`, `original`, `vectors`, `boxes`, `thumbnail`, `preview`, `log` or
            `totals`.
        what: what is wrong with this part.
    """

    id: str
    part: str
    what: str


class StoreCheck:
    """A check of a whole store, in one snapshot and in bounded memory.

    Args:
        reader: the store.
        txn: the snapshot.

    Attributes:
        sequence: the last change in the snapshot.
        photos: number of photos.
        log_entries: number of log entries.
        digest: sum modulo 2**64 of `content_hash` over the photos checked so far.
    """

    def __init__(self, reader: StoreReader, txn: lmdb.Transaction[bytes]) -> None:
        self._txn = txn
        self._dbs = reader.dbs
        self._dimension = reader.encoder.dimension
        self.sequence = last_sequence(txn, self._dbs.log)
        self.photos = txn.stat(self._dbs.records)["entries"]
        self.log_entries = txn.stat(self._dbs.log)["entries"]
        self.digest = 0
        self._found = Totals()

    def photo_damage(self) -> Iterator[list[Damage]]:
        """Check each photo, in id order; yield a list for each, empty if nothing is wrong."""
        for key, value in self._txn.cursor(db=self._dbs.records):
            id = key.decode(errors="replace")
            damage = []
            data = self._txn.get(key, db=self._dbs.originals)
            vectors = self._txn.get(key, db=self._dbs.vectors)
            self._found.chunks += count_chunks(vectors or b"", self._dimension)
            self._found.original_bytes += len(data or b"")
            try:
                record = decode_record(id, value)
            except CorruptRecord:
                damage.append(Damage(id, "record", "its checksum is wrong"))
            else:
                damage += self._check_original(record, data)
                damage += self._check_vectors(record, vectors)
                damage += self._check_boxes(record)
                if self._txn.get(sequence_key(record.sequence), db=self._dbs.log) != PUT + key:
                    what = f"has no entry for the put with the sequence number {record.sequence}"
                    damage.append(Damage(id, "log", what))
            damage += self._check_pictures(id, key)
            yield damage

    def log_damage(self) -> Iterator[list[Damage]]:
        """Check each log entry, in order; yield a list for each, empty if nothing is wrong."""
        cut = read_meta(self._txn, self._dbs.meta, "cut")
        for key, entry in self._txn.cursor(db=self._dbs.log):
            sequence, id = sequence_of(key), entry[1:].decode(errors="replace")
            if entry[:1] == PUT:
                yield self._check_put(sequence, id)
            elif entry[:1] != DELETE:
                yield [Damage(id, "log", f"entry {sequence} is neither a put nor a deletion")]
            elif sequence <= cut:
                what = f"deletion {sequence} is still there, although the log was cut at {cut}"
                yield [Damage(id, "log", what)]
            else:
                yield []

    def other_damage(self) -> Iterator[Damage]:
        """Find values without a record, and totals that differ from the photos checked before."""
        for part, db in (
            ("original", self._dbs.originals),
            ("vectors", self._dbs.vectors),
            *self._pictures(),
        ):
            cursor = self._txn.cursor(db=db)
            for key in cursor.iternext(keys=True, values=False):
                if self._txn.get(key, db=self._dbs.records) is None:
                    id = key.decode(errors="replace")
                    yield Damage(id, part, "belongs to no photo")
        totals = read_totals(self._txn, self._dbs.meta)
        if totals != self._found:
            yield Damage("", "totals", f"they say {totals}, but there are {self._found}")

    def _check_original(self, record: Record, data: bytes | None) -> Iterator[Damage]:
        if data is None:
            yield Damage(record.id, "original", "is missing")
        elif hashlib.sha256(data).hexdigest() != record.sha256 or len(data) != record.bytes:
            yield Damage(record.id, "original", "isn't what was sent: its SHA-256 is wrong")

    def _check_vectors(self, record: Record, value: bytes | None) -> Iterator[Damage]:
        try:
            vectors = decode_vectors(record, value, self._dimension)
        except CorruptRecord:
            what = "are missing" if value is None else "their checksum or their size is wrong"
            yield Damage(record.id, "vectors", what)
            return
        self.digest = (self.digest + content_hash(record.id, vectors)) % 2**64
        norms = np.linalg.norm(vectors.astype(np.float32), axis=1)
        if not (abs(norms - 1) <= NORM_TOLERANCE).all():  # also if one isn't finite
            yield Damage(record.id, "vectors", f"their norms aren't 1: {norms.round(3).tolist()}")

    def _check_boxes(self, record: Record) -> Iterator[Damage]:
        for number, chunk in enumerate(record.chunks):
            x1, y1, x2, y2 = chunk.box
            if not (0 <= x1 < x2 <= record.width and 0 <= y1 < y2 <= record.height):
                size = f"{record.width} x {record.height}"
                what = f"chunk {number}: {x1},{y1},{x2},{y2} isn't within the photo, {size}"
                yield Damage(record.id, "boxes", what)

    def _check_pictures(self, id: str, key: bytes) -> Iterator[Damage]:
        for part, db in self._pictures():
            value = self._txn.get(key, db=db)
            # A photo of an older format may lack it.
            if value is not None and not is_intact(id, value):
                what = "its checksum is wrong; the service makes a new one on the next request"
                yield Damage(id, part, what)

    def _pictures(self) -> tuple[tuple[str, lmdb._Database], ...]:
        return ("thumbnail", self._dbs.thumbnails), ("preview", self._dbs.previews)

    def _check_put(self, sequence: int, id: str) -> list[Damage]:
        value = self._txn.get(id.encode(), db=self._dbs.records)
        if value is None:
            return [Damage(id, "log", f"put {sequence} is of a photo that isn't stored")]
        try:
            record = decode_record(id, value)
        except CorruptRecord:
            return []  # reported with the record
        if record.sequence != sequence:
            what = f"put {sequence} isn't the photo's: its record says {record.sequence}"
            return [Damage(id, "log", what)]
        return []
