"""What lies where in a store, and how one transaction changes it.

Named databases, and what they hold:

    meta       "format", "encoder", "totals"          JSON
    originals  id                                     the bytes as they were sent
    records    id                                     checksum, `Record` as JSON
    vectors    id                                     checksum, float16 [chunks, d], little-endian
    log        sequence number, 8 bytes big-endian    operation (1 byte), id

The log has one entry for each stored photo and one for each deletion ever made; deleting a photo
takes away the entry that put it. Its last key is the store's sequence number.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import lmdb
import numpy as np

from deployments.errors import BadParameter, CorruptRecord, IdTaken, InsetError, UnknownId
from deployments.records import Record

logger = logging.getLogger(__name__)

FORMAT = 1
ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._~-]{0,199}$"  # an LMDB key has at most 511 bytes
VECTOR_DTYPE = np.dtype("<f2")
CHECKSUM_BYTES = 16
PUT, DELETE = b"P", b"D"


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a photo."""

    id: str


@dataclass(frozen=True, slots=True)
class Stored:
    """The answer to a `Put`.

    Attributes:
        created: False if the same bytes were already there under this id; nothing was written.
    """

    record: Record
    created: bool


@dataclass(frozen=True, slots=True)
class PreparedPut:
    """A checked `Put`.

    Attributes:
        record: complete but for its sequence number.
        vectors: float16 `[n, d]`, little-endian, as bytes.
    """

    record: Record
    data: bytes
    vectors: bytes


Prepared = PreparedPut | Delete | BadParameter
Result = Stored | int | InsetError


class Databases(NamedTuple):
    """LMDB's named databases, by their names."""

    meta: lmdb._Database
    originals: lmdb._Database
    records: lmdb._Database
    vectors: lmdb._Database
    log: lmdb._Database


@dataclass(slots=True)
class _Totals:
    """What LMDB doesn't count itself: chunks, and the size of all originals in bytes."""

    chunks: int = 0
    original_bytes: int = 0


class Writer:
    """The operations of one write transaction.

    An operation finds out what may be wrong with it before it writes anything, so one that
    raises an InsetError leaves no trace in the transaction.
    """

    def __init__(self, txn: lmdb.Transaction, dbs: Databases, dimension: int) -> None:
        self._txn = txn
        self._dbs = dbs
        self._row_bytes = dimension * VECTOR_DTYPE.itemsize
        self._totals = read_totals(txn, dbs.meta)
        self._sequence = last_sequence(txn, self._dbs.log)

    def carry_out(self, operations: Sequence[Prepared]) -> list[Result]:
        before = self._sequence
        results = [self._result(operation) for operation in operations]
        if self._sequence != before:
            totals = json.dumps(asdict(self._totals)).encode()
            self._txn.put(b"totals", totals, db=self._dbs.meta)
        return results

    def _result(self, operation: Prepared) -> Result:
        try:
            match operation:
                case PreparedPut():
                    return self._put(operation)
                case Delete():
                    return self._delete(operation.id)
                case _:
                    return operation
        except InsetError as error:
            return error

    def _put(self, put: PreparedPut) -> Stored:
        id, key = put.record.id, put.record.id.encode()
        value = self._txn.get(key, db=self._dbs.records)
        if value is not None:
            stored = require_same_content(decode_record(id, value), put.record.sha256)
            return Stored(stored, created=False)
        sequence = self._log(PUT, key)
        record = put.record.model_copy(update={"sequence": sequence})
        payload = record.model_dump_json().encode()
        self._txn.put(key, put.data, db=self._dbs.originals)
        self._txn.put(key, _checksum(id, payload) + payload, db=self._dbs.records)
        self._txn.put(key, _checksum(id, put.vectors) + put.vectors, db=self._dbs.vectors)
        self._totals.chunks += len(record.chunks)
        self._totals.original_bytes += len(put.data)
        return Stored(record, created=True)

    def _delete(self, id: str) -> int:
        """Remove a photo, damaged or not: so nothing here relies on what the values say."""
        key = id.encode()
        value = self._txn.pop(key, db=self._dbs.records)
        if value is None:
            raise unknown(id)
        data = self._txn.pop(key, db=self._dbs.originals) or b""
        vectors = self._txn.pop(key, db=self._dbs.vectors) or b""
        self._totals.chunks -= len(vectors) // self._row_bytes
        self._totals.original_bytes -= len(data)
        self._forget_put(id, value)
        return self._log(DELETE, key)

    def _forget_put(self, id: str, value: bytes) -> None:
        """Take the put out of the log; it can stay there if the record is too damaged to say."""
        try:
            sequence = decode_record(id, value).sequence
        except CorruptRecord:
            return
        self._txn.delete(sequence_key(sequence), db=self._dbs.log)

    def _log(self, operation: bytes, key: bytes) -> int:
        self._sequence += 1
        self._txn.put(sequence_key(self._sequence), operation + key, db=self._dbs.log)
        return self._sequence


def key_of(id: str) -> bytes:
    return check_id(id).encode()


def sequence_key(sequence: int) -> bytes:
    return sequence.to_bytes(8, "big")


def last_sequence(txn: lmdb.Transaction, log: lmdb._Database) -> int:
    cursor = txn.cursor(db=log)
    return int.from_bytes(cursor.key(), "big") if cursor.last() else 0


def read_totals(txn: lmdb.Transaction, meta: lmdb._Database) -> _Totals:
    return _Totals(**json.loads(txn.get(b"totals", b"{}", db=meta)))


def _checksum(id: str, payload: bytes | memoryview) -> bytes:
    """The id is part of it, so that a value filed under another id is found out too."""
    digest = hashlib.blake2b(id.encode() + b"\0", digest_size=CHECKSUM_BYTES)
    digest.update(payload)
    return digest.digest()


def is_intact(id: str, value: bytes) -> bool:
    return value[:CHECKSUM_BYTES] == _checksum(id, memoryview(value)[CHECKSUM_BYTES:])


def decode_record(id: str, value: bytes | None) -> Record:
    if value is None:
        raise unknown(id)
    if not is_intact(id, value):
        raise corrupt(id, "record")
    return Record.model_validate_json(value[CHECKSUM_BYTES:])


def decode_or_log(id: str, value: bytes | None) -> Record | None:
    try:
        return None if value is None else decode_record(id, value)
    except CorruptRecord as error:
        logger.error("%s", error.detail)
        return None


def require_same_content(stored: Record, sha256: str) -> Record:
    """Return the record of an id that is asked for with some content.

    Raises:
        IdTaken: it is not the content that is stored.
    """
    if stored.sha256 != sha256:
        raise IdTaken(
            f"The id {stored.id!r} belongs to a photo with other content: choose another id, or "
            "delete that photo first."
        )
    return stored


def unknown(id: str) -> UnknownId:
    return UnknownId(f"There is no photo with the id {id!r}.")


def corrupt(id: str, part: str) -> CorruptRecord:
    return CorruptRecord(
        f"The stored {part} of the photo {id!r} is damaged: delete the photo and index it again, "
        "and check the disk."
    )


def check_id(id: str) -> str:
    """Return the id.

    Raises:
        BadParameter: it can't be the id of a photo.
    """
    if not re.fullmatch(ID_PATTERN[1:-1], id):
        raise BadParameter(
            f"{id[:60]!r} can't be an id: use 1 to 200 ASCII letters, digits, '.', '_', '~' and "
            "'-', beginning with a letter or a digit."
        )
    return id
