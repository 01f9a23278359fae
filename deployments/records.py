"""What travels between the boxes, what the store keeps, and what the service answers."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from deployments.errors import BadParameter

ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._~-]{0,199}$"  # an LMDB key has at most 511 bytes
VECTOR_DTYPE = np.dtype("<f2")  # of vectors in the store: float16, little-endian

Box = Annotated[
    tuple[int, int, int, int],
    Field(description="x1, y1, x2, y2 in pixels of the upright original; x2 and y2 exclusive"),
]
Distance = Annotated[
    float, Field(ge=0, le=2, description="cosine distance: 0 is the same direction, 2 the opposite")
]

Source = Annotated[
    Literal["detection", "tile", "whole"],
    Field(
        description="`detection`: an object the detector found; `tile`: one of the overlapping "
        "parts of the photo, whatever they show; `whole`: the whole picture"
    ),
]

# What a client says about a photo, and what searches can be filtered by.
Metadata = dict[str, StrictBool | StrictInt | StrictFloat | StrictStr]


class Chunk(BaseModel):
    """A part of a photo that has a vector of its own."""

    box: Box
    source: Source
    confidence: float | None = Field(
        default=None, description="the detector's confidence, 0 to 1; null unless it is a detection"
    )
    label: str | None = Field(
        default=None, description="the detector's class name; null unless it is a detection"
    )


@dataclass(frozen=True, slots=True)
class SegmentedPhoto:
    """A decoded photo as the segmenter leaves it.

    Attributes:
        width, height: size of the upright photo, pixels.
        media_type: what the bytes really are, e.g. `image/jpeg`.
        animated: it has more frames; only the first one is looked at.
        chunks: the detections, most confident first, the tiles, then the whole picture.
        crops: uint8 `[len(chunks), s, s, 3]`, RGB, one for each chunk.
        thumbnail: encoded, see `thumbnails.make_thumbnail`.
    """

    width: int
    height: int
    media_type: str
    animated: bool
    chunks: list[Chunk]
    crops: np.ndarray
    thumbnail: bytes


@dataclass(frozen=True, slots=True)
class EncodedPhoto:
    """A photo ready to be stored: `SegmentedPhoto` with vectors in the place of the crops.

    Attributes:
        vectors: float32 `[len(chunks), d]`, L2-normalised.
    """

    width: int
    height: int
    media_type: str
    animated: bool
    chunks: list[Chunk]
    vectors: np.ndarray
    thumbnail: bytes


class Record(BaseModel):
    """All that is known of a stored photo, but for its bytes and vectors."""

    id: str
    filename: str | None = Field(description="as the client named it; never used as a path")
    media_type: str = Field(description="what the bytes are, whatever the client said they were")
    bytes: int = Field(description="size of the original, bytes")
    sha256: str = Field(description="SHA-256 of the original, hexadecimal")
    width: int
    height: int
    animated: bool = Field(description="it has more frames; only the first one was indexed")
    indexed_at: str = Field(description="UTC, ISO 8601")
    sequence: int = Field(description="the store's sequence number of this change")
    metadata: Metadata = Field(default={}, description="as the client gave it")
    chunks: list[Chunk]


@dataclass(frozen=True, slots=True)
class EncoderIdentity:
    """Which encoder made a vector: vectors of two encoders can't be compared.

    Attributes:
        name: hub name or folder, for people.
        dimension: length of a vector.
        digest: SHA-256 of the weights file, hexadecimal; what decides.
    """

    name: str
    dimension: int
    digest: str


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to a photo.

    Attributes:
        sequence: sequence number of the change.
        vectors: float16 `[n, d]`, read-only, in the place of all this photo had before; None if
            the photo was removed.
        metadata: empty if the photo was removed.
    """

    sequence: int
    id: str
    vectors: np.ndarray | None
    metadata: Metadata


@dataclass(frozen=True, slots=True)
class Position:
    """How far a follower of the store's log has come. The store makes it; the follower returns it.

    Attributes:
        history: which life of the store the numbers belong to: restoring a backup begins another.
        sequence: the changes up to this one are known.
        base: the store's last change when the follower began with nothing. Whatever was removed up
            to then it has never heard of, so it needs no word of those removals.
    """

    history: str
    sequence: int
    base: int


@dataclass(frozen=True, slots=True)
class Changes:
    """The next changes for a follower of the store's log.

    Attributes:
        anew: they begin with nothing: the follower must forget all it knows before it applies
            them, for it comes from another history, or from before the log was cut.
        changes: in the order of their sequence numbers.
        position: where the follower is once it has applied them.
        last: the store's last change.
    """

    anew: bool
    changes: list[Change]
    position: Position
    last: int


@dataclass(frozen=True, slots=True)
class Neighbours:
    """What one query found: photos, each with all of its chunks.

    Attributes:
        photos: ids of the photos that own the nearest chunks, in no order.
        distances: for each photo the cosine distances of all its chunks, float64 `[n]`, in the
            order of its record.
        horizon: no chunk of any other photo is nearer than this; infinite when there is no other.
    """

    photos: list[str]
    distances: list[np.ndarray]
    horizon: float


@dataclass(frozen=True, slots=True)
class RankedPhoto:
    """A photo among the answers.

    Attributes:
        id: the photo.
        distance: its chunks' cosine distances, aggregated.
        chunks: (number in the record, distance) of its matching chunks, nearest first, or of as
            many of them as were asked for.
    """

    id: str
    distance: float
    chunks: list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Stored:
    """The answer to a put.

    Attributes:
        created: False if the same bytes were already there under this id; nothing was written.
    """

    record: Record
    created: bool


class IndexedImage(Record):
    """What became of an image sent to be indexed."""

    status: Literal["created", "exists"] = Field(
        description="`exists`: these very bytes were already stored under this id"
    )


class MatchedChunk(BaseModel):
    """A part of a photo that resembles the query."""

    box: Box
    source: Source
    distance: Distance
    label: str | None


class Match(BaseModel):
    """A photo that answers a query; `box`, `source` and `label` are its nearest chunk's."""

    id: str
    distance: Distance
    box: Box
    source: Source
    label: str | None
    chunks: list[MatchedChunk] = Field(
        description="its matching chunks, nearest first, at most `max_chunks`"
    )
    filename: str | None
    width: int
    height: int
    url: str = Field(description="path of the original on this service")


class IndexState(BaseModel):
    """What one replica of the chunk index has loaded."""

    engine: Literal["exact", "approximate"] = Field(
        description="`exact` compares with every vector, `approximate` walks a graph where there "
        "are many"
    )
    photos: int
    chunks: int
    sequence: int = Field(description="the store's last change that it has seen")
    digest: str = Field(description="what all ids and vectors amount to, for `scripts/store.py`")
    waiting: int = Field(description="chunks that are compared one by one, for now")
    removed: int = Field(description="chunks of removed photos that still take memory")
    snapshot: int | None = Field(description="the last change in its snapshot; null: it has none")


class StoreState(BaseModel):
    """How much the store holds."""

    photos: int
    chunks: int
    sequence: int = Field(description="number of the last change; 0 if there was none")
    original_bytes: int = Field(description="size of all originals, bytes")
    used_bytes: int = Field(description="size of all content on disk, bytes")
    map_bytes: int = Field(description="size of the memory map, bytes; it grows when it is full")


class EncoderState(BaseModel):
    name: str
    dimension: int
    digest: str = Field(description="SHA-256 of the weights file")
    text: bool = Field(description="`/search?text=` works")


class Stats(BaseModel):
    """Counts, model names and sequence numbers."""

    store: StoreState
    chunk_index: IndexState
    encoder: EncoderState
    segmenter: str = Field(description="name of the detector")


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


def content_hash(id: str, vectors: np.ndarray) -> int:
    """A number for what an index holds of a photo, from 0 to 2**64 - 1.

    Their sum modulo 2**64 over all photos tells whether two indexes hold the same.

    Args:
        vectors: float `[n, d]`; rounded to float16, as they are stored.
    """
    digest = hashlib.blake2b(id.encode() + b"\0", digest_size=8)
    digest.update(np.ascontiguousarray(vectors, dtype=VECTOR_DTYPE))
    return int.from_bytes(digest.digest(), "big")
