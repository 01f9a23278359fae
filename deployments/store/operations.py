"""Operations on photos: what is asked, and how one transaction carries it out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import lmdb
import numpy as np

from deployments.errors import BadParameter, CorruptRecord, InsetError
from deployments.metadata import add_facts, check_metadata
from deployments.records import (
    VECTOR_DTYPE,
    EncodedPhoto,
    Facts,
    Metadata,
    Record,
    Stored,
    check_id,
)
from deployments.store.format import (
    DELETE,
    PUT,
    Databases,
    checksum,
    count_chunks,
    decode_record,
    find_deletion,
    last_sequence,
    read_totals,
    require_same_content,
    sequence_key,
    unknown,
    write_meta,
)


@dataclass(frozen=True, slots=True)
class Put:
    """Store a photo.

    Attributes:
        data: the original bytes.
        filename: as the client named it.
        photo: at least one chunk; its vectors are float32 `[len(chunks), d]`, all finite.
        metadata: as the client gave it; what the photo says of itself is added to it.
        indexed_at: UTC, ISO 8601; None for now.
    """

    id: str
    data: bytes
    filename: str | None
    photo: EncodedPhoto
    metadata: Metadata = field(default_factory=dict)
    indexed_at: str | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a photo.

    If it was removed before, and that is one of the latest changes (`format.REPEATABLE`), nothing
    is written, and the result is the same sequence number again. So whoever had no answer can ask
    again.
    """

    id: str


@dataclass(frozen=True, slots=True)
class Keep:
    """Store a small picture of a photo that was stored without it.

    Attributes:
        sha256: of the original that it was made from. If the id has another original by now, or
            none, the picture is not stored.
    """

    id: str
    sha256: str
    data: bytes


@dataclass(frozen=True, slots=True)
class KeepThumbnail(Keep):
    """Store the thumbnail of a photo."""


@dataclass(frozen=True, slots=True)
class KeepPreview(Keep):
    """Store the preview of a photo."""


@dataclass(frozen=True, slots=True)
class SetFacts:
    """Make the metadata of a stored photo what its client said, and these facts.

    Attributes:
        sha256: of the original that says them, as in `Keep`.
        facts: what the photo was asked about itself, and its answers.
    """

    id: str
    sha256: str
    facts: Facts


Operation = Put | Delete | KeepThumbnail | KeepPreview | SetFacts


@dataclass(frozen=True, slots=True)
class PreparedPut:
    """A checked `Put`.

    Attributes:
        record: complete except for its sequence number.
        vectors, thumbnail, preview: as they are stored, with their checksums.
    """

    record: Record
    data: bytes
    vectors: bytes
    thumbnail: bytes
    preview: bytes


Prepared = PreparedPut | Delete | KeepThumbnail | KeepPreview | SetFacts | BadParameter
Result = Stored | int | bool | InsetError


def prepare(operation: Operation, dimension: int) -> Prepared:
    """Do all that can be done before the transaction."""
    try:
        check_id(operation.id)
        return _prepare_put(operation, dimension) if isinstance(operation, Put) else operation
    except BadParameter as error:
        return error


def added_bytes(operation: Prepared) -> int | None:
    """Return how many bytes an operation writes besides the record; None if it adds nothing."""
    match operation:
        case PreparedPut(_, data, vectors, thumbnail, preview):
            return len(data) + len(vectors) + len(thumbnail) + len(preview)
        case Keep():
            return len(operation.data)
        case SetFacts():
            return 0
    return None


def _prepare_put(put: Put, dimension: int) -> PreparedPut:
    photo = put.photo
    expected = (len(photo.chunks), dimension)
    if not photo.chunks or photo.vectors.shape != expected:
        raise ValueError(
            f"photo {put.id!r}: vectors of shape {photo.vectors.shape}, must be {expected} "
            "with at least one chunk"
        )
    vectors = np.ascontiguousarray(photo.vectors, dtype=VECTOR_DTYPE)
    if not np.isfinite(vectors).all():
        raise ValueError(f"photo {put.id!r}: a vector is not finite")
    metadata = check_metadata(put.metadata)
    record = Record(
        id=put.id,
        filename=_printable(put.filename),
        media_type=photo.media_type,
        bytes=len(put.data),
        sha256=hashlib.sha256(put.data).hexdigest(),
        width=photo.width,
        height=photo.height,
        animated=photo.animated,
        skipped=photo.skipped,
        indexed_at=put.indexed_at or datetime.now(UTC).isoformat(timespec="milliseconds"),
        sequence=0,
        chunks=photo.chunks,
        **_said(metadata, photo.facts),
    )
    values = (vectors.tobytes(), photo.thumbnail, photo.preview)
    return PreparedPut(record, put.data, *(checksum(put.id, value) + value for value in values))


def _said(metadata: Metadata, facts: Facts) -> dict[str, Any]:
    """Return the fields of a record that tell what its client says and what the photo says."""
    return {
        "metadata": add_facts(metadata, facts),
        "asked": [name for name in facts if name not in metadata],
    }


def _printable(filename: str | None) -> str | None:
    """Replace lone surrogates, which can't be written as JSON; file names may contain them."""
    return None if filename is None else filename.encode("utf-8", "replace").decode()


class Writer:
    """The operations of one write transaction.

    An operation checks everything before it writes anything, so an operation that raises an
    InsetError leaves no trace in the transaction.
    """

    def __init__(self, txn: lmdb.Transaction[bytes], dbs: Databases, dimension: int) -> None:
        self._txn = txn
        self._dbs = dbs
        self._dimension = dimension
        self._totals = read_totals(txn, dbs.meta)
        self._sequence = last_sequence(txn, self._dbs.log)

    def carry_out(self, operations: Sequence[Prepared]) -> list[Result]:
        """Carry out operations in order; return the result of each, or the error that it met."""
        before = self._sequence
        results = [self._result(operation) for operation in operations]
        if self._sequence != before:
            write_meta(self._txn, self._dbs.meta, "totals", asdict(self._totals))
        return results

    def _result(self, operation: Prepared) -> Result:
        try:
            match operation:
                case PreparedPut():
                    return self._put(operation)
                case Delete():
                    return self._delete(operation.id)
                case KeepThumbnail():
                    return self._keep(operation, self._dbs.thumbnails)
                case KeepPreview():
                    return self._keep(operation, self._dbs.previews)
                case SetFacts():
                    return self._set_facts(operation)
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
        self._txn.put(key, put.data, db=self._dbs.originals)
        self._write_record(record)
        self._txn.put(key, put.vectors, db=self._dbs.vectors)
        self._txn.put(key, put.thumbnail, db=self._dbs.thumbnails)
        self._txn.put(key, put.preview, db=self._dbs.previews)
        self._totals.chunks += len(record.chunks)
        self._totals.original_bytes += len(put.data)
        return Stored(record, created=True)

    def _delete(self, id: str) -> int:
        """See `Delete`. The photo may be damaged, so this doesn't rely on what the values say."""
        key = id.encode()
        value = self._txn.pop(key, db=self._dbs.records)
        if value is None:
            sequence = find_deletion(self._txn, self._dbs.log, key)
            if sequence is None:
                raise unknown(id)
            return sequence
        data = self._txn.pop(key, db=self._dbs.originals) or b""
        vectors = self._txn.pop(key, db=self._dbs.vectors) or b""
        self._txn.delete(key, db=self._dbs.thumbnails)
        self._txn.delete(key, db=self._dbs.previews)
        self._totals.chunks -= count_chunks(vectors, self._dimension)
        self._totals.original_bytes -= len(data)
        self._forget_put(id, value)
        return self._log(DELETE, key)

    def _keep(self, kept: Keep, db: lmdb._Database) -> bool:
        """Write a picture if it belongs to the photo that is stored now; return whether it does.

        This makes no log entry, because the chunk index needs no such pictures.
        """
        id, key = kept.id, kept.id.encode()
        value = self._txn.get(key, db=self._dbs.records)
        if value is None or decode_record(id, value).sha256 != kept.sha256:
            return False
        self._txn.put(key, checksum(id, kept.data) + kept.data, db=db)
        return True

    def _set_facts(self, told: SetFacts) -> bool:
        """Write facts if they are of the photo that is stored now; return whether they are.

        The put gets a new place in the log if the metadata changes, which the chunk index must
        know.
        """
        id, key = told.id, told.id.encode()
        value = self._txn.get(key, db=self._dbs.records)
        if value is None:
            return False
        record = decode_record(id, value)
        if record.sha256 != told.sha256:
            return False
        said = _said(record.said_by_client, told.facts)
        sequence = record.sequence
        if said["metadata"] != record.metadata:
            self._forget_put(id, value)
            sequence = self._log(PUT, key)
        self._write_record(record.model_copy(update={"sequence": sequence, **said}))
        return True

    def _write_record(self, record: Record) -> None:
        payload = record.model_dump_json().encode()
        value = checksum(record.id, payload) + payload
        self._txn.put(record.id.encode(), value, db=self._dbs.records)

    def _forget_put(self, id: str, value: bytes) -> None:
        """Remove the put from the log, even if the record is damaged and can't say where it is."""
        try:
            keys = [sequence_key(decode_record(id, value).sequence)]
        except CorruptRecord:
            entry = PUT + id.encode()
            keys = [key for key, found in self._txn.cursor(db=self._dbs.log) if found == entry]
        for key in keys:
            self._txn.delete(key, db=self._dbs.log)

    def _log(self, operation: bytes, key: bytes) -> int:
        self._sequence += 1
        self._txn.put(sequence_key(self._sequence), operation + key, db=self._dbs.log)
        return self._sequence
