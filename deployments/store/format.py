"""The format of a store, and how one transaction changes it.

A store has these named databases:

    meta       "format", "encoder", "history",        JSON
               "totals", "cut"
    originals  id                                     the bytes as they were sent
    records    id                                     checksum, `Record` as JSON
    vectors    id                                     checksum, float16 [chunks, d], little-endian
    thumbnails id                                     checksum, the bytes of a JPEG
    previews   id                                     checksum, the bytes of a JPEG
    log        sequence number, 8 bytes big-endian    operation (1 byte), id

The log has one entry for each stored photo, and one for each deletion after the change "cut".
Deleting a photo removes the entry of its put. The last key is the store's sequence number, so the
last entry is never cut.

A store of format 1 to 3 has no previews, and one of format 1 or 2 no thumbnails, so its photos lack
them until they are asked for. A store of format 1 has neither a history nor a cut, and its records
have no metadata.
"""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import numpy as np

from deployments.errors import (
    CorruptRecord,
    IdTaken,
    StoreUnusable,
    UnknownId,
)
from deployments.records import VECTOR_DTYPE, EncoderIdentity, Record, check_id

logger = logging.getLogger(__name__)

FORMAT = 4
READABLE_FORMATS = (1, 2, 3, FORMAT)
CHECKSUM_BYTES = 16
PUT, DELETE = b"P", b"D"

# A deletion that is repeated within so many changes is answered with its change.
REPEATABLE = 10_000


class Databases(NamedTuple):
    """LMDB's named databases."""

    meta: lmdb._Database
    originals: lmdb._Database
    records: lmdb._Database
    vectors: lmdb._Database
    thumbnails: lmdb._Database
    previews: lmdb._Database
    log: lmdb._Database


@dataclass(slots=True)
class Totals:
    """What LMDB doesn't count: chunks, and the size of all originals in bytes."""

    chunks: int = 0
    original_bytes: int = 0


def open_databases(env: lmdb.Environment, txn: lmdb.Transaction[bytes] | None = None) -> Databases:
    """Open the databases; given a write transaction, make those that are missing."""
    names = [name.encode() for name in Databases._fields]
    create = txn is not None
    return Databases(*(env.open_db(name, txn=txn, create=create) for name in names))


def make_store(txn: lmdb.Transaction[bytes], dbs: Databases, encoder: EncoderIdentity) -> None:
    """Make an empty store."""
    write_meta(txn, dbs.meta, "encoder", asdict(encoder))
    _begin_log(txn, dbs)
    write_meta(txn, dbs.meta, "format", FORMAT)


def upgrade_store(txn: lmdb.Transaction[bytes], dbs: Databases, found: int) -> None:
    """Upgrade a store of an older format to this one.

    The photos stay as they are. Records of format 1 are read as having no metadata, and thumbnails
    and previews are made on request.
    """
    if found == 1:
        _begin_log(txn, dbs)
    write_meta(txn, dbs.meta, "format", FORMAT)


def begin_history(txn: lmdb.Transaction[bytes], dbs: Databases) -> None:
    """Begin a new history, so that followers don't apply the sequence numbers of another one."""
    write_meta(txn, dbs.meta, "history", uuid.uuid4().hex)


def _begin_log(txn: lmdb.Transaction[bytes], dbs: Databases) -> None:
    begin_history(txn, dbs)
    write_meta(txn, dbs.meta, "cut", 0)


def read_format(env: lmdb.Environment, path: Path) -> int | None:
    """Return the format of the store in an environment; None if the environment is empty.

    Raises:
        StoreUnusable: it holds something else, or a store of a format that this version can't
            read.
    """
    with env.begin() as txn:
        if not txn.stat()["entries"]:
            return None
    found: int | None
    try:
        meta = env.open_db(b"meta", create=False)
        with env.begin() as txn:
            found = read_meta(txn, meta, "format")
    except (lmdb.Error, ValueError):
        found = None
    if found is None:
        raise StoreUnusable(
            f"{path} holds an LMDB database that is not a store of this service: choose another "
            "path."
        )
    if found not in READABLE_FORMATS:
        raise StoreUnusable(
            f"The store in {path} has format {found}, but this version reads format {FORMAT}: "
            "use the version that wrote it, or index into a new folder."
        )
    return found


def read_meta(
    txn: lmdb.Transaction[bytes], meta: lmdb._Database, key: str, default: Any = None
) -> Any:
    value = txn.get(key.encode(), db=meta)
    return default if value is None else json.loads(value)


def write_meta(txn: lmdb.Transaction[bytes], meta: lmdb._Database, key: str, value: Any) -> None:
    txn.put(key.encode(), json.dumps(value).encode(), db=meta)


def read_encoder(txn: lmdb.Transaction[bytes], meta: lmdb._Database) -> EncoderIdentity:
    return EncoderIdentity(**read_meta(txn, meta, "encoder"))


def cut_log(
    txn: lmdb.Transaction[bytes], dbs: Databases, sequence: int, most: int
) -> tuple[int, bool]:
    """Remove the deletions up to a change from the log, looking at `most` entries at most.

    Returns:
        How many were removed, and whether there are more entries to look at.
    """
    cut = reached = read_meta(txn, dbs.meta, "cut")
    end = min(sequence, last_sequence(txn, dbs.log) - 1)
    cursor = txn.cursor(db=dbs.log)
    cursor.set_range(sequence_key(cut + 1))
    removed = 0
    for _ in range(most):
        # The last entry is never cut, so the cursor is always at an entry here.
        if reached >= end or sequence_of(cursor.key()) > end:
            reached = max(cut, end)
            break
        reached = sequence_of(cursor.key())
        if cursor.value()[:1] == DELETE:
            cursor.delete()  # moves the cursor to the next entry
            removed += 1
        else:
            cursor.next()
    if reached > cut:
        write_meta(txn, dbs.meta, "cut", reached)
    return removed, reached < end


def key_of(id: str) -> bytes:
    return check_id(id).encode()


def sequence_key(sequence: int) -> bytes:
    return sequence.to_bytes(8, "big")


def sequence_of(key: bytes) -> int:
    return int.from_bytes(key, "big")


def last_sequence(txn: lmdb.Transaction[bytes], log: lmdb._Database) -> int:
    cursor = txn.cursor(db=log)
    return sequence_of(cursor.key()) if cursor.last() else 0


def find_deletion(txn: lmdb.Transaction[bytes], log: lmdb._Database, id: bytes) -> int | None:
    """Return the latest deletion of an id, if it is in the log and among the latest changes.

    Only these are looked through, which takes some milliseconds. The log may have millions.
    """
    entry, end = DELETE + id, last_sequence(txn, log) - REPEATABLE
    for key, value in txn.cursor(db=log).iterprev():
        sequence = sequence_of(key)
        if sequence <= end:
            break
        if value == entry:
            return sequence
    return None


def read_totals(txn: lmdb.Transaction[bytes], meta: lmdb._Database) -> Totals:
    return Totals(**read_meta(txn, meta, "totals", {}))


def checksum(id: str, payload: bytes | memoryview) -> bytes:
    """Return a checksum that includes the id, so that a value under a wrong id is detected."""
    digest = hashlib.blake2b(id.encode() + b"\0", digest_size=CHECKSUM_BYTES)
    digest.update(payload)
    return digest.digest()


def is_intact(id: str, value: bytes) -> bool:
    return value[:CHECKSUM_BYTES] == checksum(id, memoryview(value)[CHECKSUM_BYTES:])


def decode_record(id: str, value: bytes | None) -> Record:
    return Record.model_validate_json(_record_json(id, value))


def decode_or_log(id: str, value: bytes | None) -> Record | None:
    json = json_or_log(id, value)
    return None if json is None else Record.model_validate_json(json)


def json_or_log(id: str, value: bytes | None) -> bytes | None:
    """Return a record's JSON; None if it is missing, or damaged, which is logged."""
    try:
        return None if value is None else _record_json(id, value)
    except CorruptRecord as error:
        logger.error("%s", error.detail)
        return None


def _record_json(id: str, value: bytes | None) -> bytes:
    if value is None:
        raise unknown(id)
    if not is_intact(id, value):
        raise corrupt(id, "record")
    return value[CHECKSUM_BYTES:]


def picture_or_log(id: str, part: str, value: bytes | None) -> bytes | None:
    """Return a thumbnail or a preview; None if it is missing, or damaged, which is logged.

    Args:
        part: `thumbnail` or `preview`.
    """
    if value is not None and not is_intact(id, value):
        logger.error("The stored %s of the photo %r is damaged: check the disk.", part, id)
        return None
    return value and value[CHECKSUM_BYTES:]


def decode_vectors(record: Record, value: bytes | None, dimension: int) -> np.ndarray:
    """Return a photo's vectors, float16 `[chunks, dimension]`, read-only.

    Raises:
        CorruptRecord
    """
    rows = len(record.chunks)
    size = CHECKSUM_BYTES + rows * dimension * VECTOR_DTYPE.itemsize
    if value is None or len(value) != size or not is_intact(record.id, value):
        raise corrupt(record.id, "vectors")
    vectors = np.frombuffer(value, dtype=VECTOR_DTYPE, offset=CHECKSUM_BYTES)
    return vectors.reshape(rows, dimension)


def count_chunks(value: bytes, dimension: int) -> int:
    """Return how many vectors a stored value holds, whether or not it is damaged."""
    return max(0, len(value) - CHECKSUM_BYTES) // (dimension * VECTOR_DTYPE.itemsize)


def require_same_content(stored: Record, sha256: str) -> Record:
    """Return the stored record if it has this content.

    Raises:
        IdTaken: it has other content.
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
