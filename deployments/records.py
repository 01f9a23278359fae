"""The types that deployments exchange, that the store keeps, and that the service answers."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
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
Point = tuple[float, float]
Quad = Annotated[
    tuple[Point, Point, Point, Point],
    Field(
        description="corners x, y in pixels of the upright original, in the order of the query's "
        "corners: top left, top right, bottom right, bottom left. They may lie beyond the photo"
    ),
]
Distance = Annotated[
    float, Field(ge=0, le=2, description="cosine distance: 0 is the same direction, 2 the opposite")
]

Source = Annotated[
    Literal["detection", "tile", "whole"],
    Field(
        description="`detection`: an object that the detector found; `tile`: one of the "
        "overlapping tiles of the photo; `whole`: the whole photo"
    ),
]

# What searches can filter photos by: what a client says of a photo, and what it says itself.
Metadata = dict[str, StrictBool | StrictInt | StrictFloat | StrictStr]
# What a photo was asked about itself, and its answers: None if it doesn't say.
Facts = dict[str, str | float | None]


class Chunk(BaseModel):
    """A part of a photo that has a vector of its own."""

    box: Box
    source: Source
    confidence: float | None = Field(
        default=None, description="the detector's confidence, 0 to 1; null for other sources"
    )
    label: str | None = Field(
        default=None, description="the detector's class name; null for other sources"
    )


@dataclass(frozen=True, slots=True)
class NewPhoto:
    """A photo to be stored, as it was sent.

    Attributes:
        data: an encoded image, see docs/formats.md.
        id: the photo's id; None for the SHA-256 of the data.
        filename: the client's name for it.
        confidence_threshold: the detector's for this photo; None for the configured one.
        metadata: what searches can filter by.
    """

    data: bytes
    id: str | None = None
    filename: str | None = None
    confidence_threshold: float | None = None
    metadata: Mapping[str, str | int | float | bool] | None = None


@dataclass(frozen=True, slots=True)
class CheckedPhoto:
    """A `NewPhoto` whose id, file name, threshold and metadata were found to be valid.

    Attributes:
        sha256: SHA-256 of the data, hexadecimal.
    """

    id: str
    sha256: str
    data: bytes
    filename: str | None
    confidence_threshold: float | None
    metadata: Metadata


@dataclass(frozen=True, slots=True)
class EncodedPhoto:
    """A photo ready to be stored.

    Attributes:
        width, height: size of the upright photo, pixels.
        media_type: the type that the decoder found, e.g. `image/jpeg`.
        animated: it has several frames; only the first one is used.
        chunks: the detections, most confident first, then the tiles, then the whole photo.
        vectors: float32 `[len(chunks), d]`, L2-normalised, one for each chunk.
        thumbnail: an encoded image, see `segmenter.thumbnails.make_thumbnail`.
        preview: an encoded image, see `compute.previews.make_preview`.
        skipped: how many other pictures the file holds: frames, pages, previews.
        facts: what the photo was asked about itself, and its answers.
    """

    width: int
    height: int
    media_type: str
    animated: bool
    chunks: list[Chunk]
    vectors: np.ndarray
    thumbnail: bytes
    preview: bytes
    skipped: int = 0
    facts: Facts = field(default_factory=dict)


class Summary(BaseModel):
    """A record without its chunks."""

    id: str
    filename: str | None = Field(description="the client's name for it; never used as a path")
    media_type: str = Field(description="the type of the bytes, as the decoder found it")
    bytes: int = Field(description="size of the original, bytes")
    sha256: str = Field(description="SHA-256 of the original, hexadecimal")
    width: int
    height: int
    animated: bool = Field(description="it has several frames; only the first one was indexed")
    indexed_at: str = Field(description="UTC, ISO 8601")
    sequence: int = Field(description="the store's sequence number of this change")
    skipped: int = Field(
        default=0,
        description="how many other pictures the file holds that were not indexed: pages, frames, "
        "previews",
    )
    metadata: Metadata = Field(
        default={},
        description="as the client sent it, in Unicode NFC, and what the photo says of itself",
    )
    asked: list[str] = Field(
        default=[],
        description="what the photo was asked about itself. Those of these keys that `metadata` "
        "has are its answers; all others are the client's",
    )


class Record(Summary):
    """What the store knows about a photo besides its bytes and vectors."""

    chunks: list[Chunk]

    @property
    def said_by_client(self) -> Metadata:
        """The part of the metadata that the client sent."""
        return {name: value for name, value in self.metadata.items() if name not in self.asked}


@dataclass(frozen=True, slots=True)
class Preview:
    """A photo's preview, and what is needed to use it.

    Attributes:
        sha256: of the original, hexadecimal.
        width, height: size of the upright original, pixels.
        data: a JPEG, see `compute.previews.make_preview`; None if the photo was stored without one,
            or if it is damaged. Another can be made of the original.
    """

    sha256: str
    width: int
    height: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class EncoderIdentity:
    """The encoder that made a vector. Vectors of two encoders can't be compared.

    Attributes:
        name: hub name or folder, for display.
        dimension: length of a vector.
        digest: SHA-256 of the weights file, hexadecimal; it identifies the encoder.
    """

    name: str
    dimension: int
    digest: str


@dataclass(frozen=True, slots=True)
class Change:
    """A put or a deletion of a photo.

    Attributes:
        sequence: sequence number of the change.
        vectors: float16 `[n, d]`, read-only; they replace all earlier vectors of this photo. None
            if the photo was removed.
        metadata: empty if the photo was removed.
    """

    sequence: int
    id: str
    vectors: np.ndarray | None
    metadata: Metadata


@dataclass(frozen=True, slots=True)
class Position:
    """A follower's position in the store's log. The store makes it, and the follower returns it.

    Attributes:
        history: the history that the numbers belong to. Restoring a backup begins a new one.
        sequence: the follower knows the changes up to this one.
        base: the store's last change when the follower began with nothing. It never knew photos
            that were removed up to then, so it doesn't need those deletions.
    """

    history: str
    sequence: int
    base: int


@dataclass(frozen=True, slots=True)
class Changes:
    """The next changes for a follower of the store's log.

    Attributes:
        anew: they begin with nothing. The follower must forget all that it knows before it applies
            them, because it comes from another history or needs changes that were cut.
        changes: in the order of their sequence numbers.
        position: where the follower is after it has applied them.
        last: the store's last change.
    """

    anew: bool
    changes: list[Change]
    position: Position
    last: int


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The photos nearest to a query, each with all of its chunks.

    Attributes:
        photos: ids of the photos that have the nearest chunks, in any order.
        distances: for each photo the cosine distances of all its chunks, float64 `[n]`, in the
            order of its record.
    """

    photos: list[str]
    distances: list[np.ndarray]


@dataclass(frozen=True, slots=True)
class RankedPhoto:
    """A photo among the answers.

    Attributes:
        id: the photo.
        distance: the aggregated cosine distance of its chunks.
        chunks: (number in the record, distance) of its matching chunks, nearest first, at most as
            many as the search asked for.
    """

    id: str
    distance: float
    chunks: list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Stored:
    """The answer to a put.

    Attributes:
        created: False if the same bytes were already stored under this id; nothing was written.
    """

    record: Record
    created: bool


class IndexedImage(Record):
    """The record of an image that was sent to be indexed."""

    status: Literal["created", "exists"] = Field(
        description="`exists`: the same bytes were already stored under this id"
    )


class MatchedChunk(BaseModel):
    """A chunk of a match that is near the query."""

    box: Box
    source: Source
    distance: Distance
    label: str | None


class Match(BaseModel):
    """A photo that answers a query.

    `source`, `label` and, if it is not verified, `box` are those of its nearest chunk.
    """

    id: str
    distance: Distance
    box: Box = Field(description="if it is verified, the bounds of `quad` inside the photo")
    source: Source
    label: str | None
    chunks: list[MatchedChunk] = Field(
        description="its matching chunks, nearest first, at most `max_chunks`"
    )
    filename: str | None
    width: int
    height: int
    url: str = Field(description="path of the original on this service")
    verified: bool | None = Field(
        default=None,
        description="whether its pixels show the query; null if nobody looked. The fields below "
        "are null unless this is true",
    )
    quad: Quad | None = Field(default=None, description="where the query is in the photo")
    part: Box | None = Field(
        default=None,
        description="the part of the query that was found, in pixels of the upright query: all of "
        "it, unless borders or other pictures around it were left out. `quad` is its place",
    )
    mirrored: bool | None = Field(
        default=None, description="whether left and right of the query are exchanged"
    )
    rotation: float | None = Field(
        default=None,
        ge=-180,
        le=180,
        description="degrees by which the query is turned, clockwise; before it was mirrored",
    )
    scale: float | None = Field(
        default=None, gt=0, description="pixels of the photo for one pixel of the query"
    )
    inliers: int | None = Field(
        default=None, description="places in the query that were found at their place in the photo"
    )
    coverage: float | None = Field(
        default=None, ge=0, le=1, description="share of the query that lies in the photo"
    )
    copies: list[Match] = Field(
        default=[], description="with `group=copies`: matches that are copies of this one"
    )


class SearchAnswer(BaseModel):
    found: bool | None = Field(
        description="whether a photo was verified; null if no photo was looked at"
    )
    texture: Literal["too plain to verify"] | None = Field(
        default=None, description="why no photo was looked at, if the query is the reason"
    )
    matches: list[Match] = Field(
        description="verified photos first, then the others, nearest first; each photo once"
    )


class IndexState(BaseModel):
    """What one replica of the chunk index has loaded."""

    engine: Literal["exact", "approximate"] = Field(
        description="`exact` compares every vector, `approximate` walks a graph if there are many"
    )
    photos: int
    chunks: int
    sequence: int = Field(description="the store's last change that it knows")
    digest: str = Field(description="hash of all ids and vectors, for `scripts/store.py verify`")
    waiting: int = Field(description="vectors that are compared one by one until they are linked")
    removed: int = Field(description="chunks of removed photos that still take memory")
    snapshot: int | None = Field(
        description="the last change in its snapshot; null if it has no snapshot"
    )
    snapshot_bytes: int = Field(
        description="size of the snapshots on its disk, bytes; they may be on the store's disk"
    )


class StoreState(BaseModel):
    """How much the store holds."""

    photos: int
    chunks: int
    sequence: int = Field(description="sequence number of the last change; 0 if there was none")
    original_bytes: int = Field(description="size of all originals, bytes")
    used_bytes: int = Field(description="size of all content on disk, bytes")
    map_bytes: int = Field(description="size of the memory map, bytes; it grows when it is full")


class Readiness(BaseModel):
    """That a photo could be stored and found now, and how far that is from being so no longer."""

    status: Literal["ready"] = "ready"
    photos_in_work: int = Field(description="by this replica of the ingress")
    oldest_s: float = Field(description="how long the oldest of them has been in work, seconds")
    room_bytes: int = Field(description="what the store and its disk have room for, bytes")
    index_lag: int = Field(description="changes of the store that the chunk index doesn't know yet")
    index_unfollowed_s: float = Field(
        description="seconds since the chunk index has last heard from the store; up to 2 when "
        "nothing changes"
    )


class EncoderState(BaseModel):
    name: str
    dimension: int
    digest: str = Field(description="SHA-256 of the weights file")
    text: bool = Field(description="whether `/search?text=` works")


class Stats(BaseModel):
    """Counts, model names and sequence numbers."""

    store: StoreState
    chunk_index: IndexState
    encoder: EncoderState
    segmenter: str = Field(description="name of the detector")


def check_id(id: str) -> str:
    """Return the id if it is valid.

    Raises:
        BadParameter: it is not valid.
    """
    if not re.fullmatch(ID_PATTERN[1:-1], id):
        raise BadParameter(
            f"{id[:60]!r} is not a valid id: use 1 to 200 ASCII letters, digits, '.', '_', '~' "
            "and '-', beginning with a letter or a digit."
        )
    return id


def content_hash(id: str, vectors: np.ndarray) -> int:
    """Return a hash of what an index holds of a photo, from 0 to 2**64 - 1.

    Two indexes hold the same if the sums of the hashes over all photos agree modulo 2**64.

    Args:
        vectors: float `[n, d]`; rounded to float16, as they are stored.
    """
    digest = hashlib.blake2b(id.encode() + b"\0", digest_size=8)
    digest.update(np.ascontiguousarray(vectors, dtype=VECTOR_DTYPE).data)
    return int.from_bytes(digest.digest(), "big")
