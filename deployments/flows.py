"""The two ways through the deployments: indexing a photo, and searching by a query.

index    bytes ─► Segmenter ─► IndexEncoder ─► Store ─► (log) ─► ChunkIndex
search   query ─► QueryEncoder ─► ChunkIndex and its Ranker ─► Store ─► matches
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from deployments.errors import UnknownSequence
from deployments.handles import (
    ChunkIndexHandle,
    EncoderHandle,
    Later,
    Response,
    SegmenterHandle,
    StoreHandle,
)
from deployments.query import Query, SearchOptions
from deployments.records import (
    Match,
    MatchedChunk,
    Metadata,
    RankedPhoto,
    Record,
    SearchAnswer,
    Stored,
)


class IndexFlow:
    """The way from a photo's bytes to its record in the store.

    Args:
        segmenter, encoder, store: the deployments, in the order of the calls.
    """

    def __init__(
        self, segmenter: SegmenterHandle, encoder: EncoderHandle, store: StoreHandle
    ) -> None:
        self.segmenter = segmenter
        self.encoder = encoder
        self.store = store

    async def run(
        self,
        data: bytes,
        *,
        id: str,
        sha256: str,
        filename: str | None,
        confidence_threshold: float | None,
        metadata: Metadata,
    ) -> Stored:
        """Store a photo unless the same bytes are stored under this id already.

        When this returns, the photo is on disk.

        Args:
            data: an encoded image.
            id: a valid id.
            sha256: SHA-256 of `data`, hexadecimal.
            filename: the client's name for the photo.
            confidence_threshold: the detector's for this photo; None for the configured one.
            metadata: checked metadata.

        Raises:
            IdTaken, TooLarge, NotAnImage, BrokenImage, CorruptRecord, StoreFull
        """
        known = await self.store.find.remote(id, sha256)
        if known is not None:
            return Stored(known, created=False)
        segmenter, encoder = self._by_reference
        # The answers are not awaited, so crops and vectors go from replica to replica.
        segmented = segmenter.segment.remote(data, confidence_threshold)
        encoded = encoder.encode_photo.remote(segmented)
        return await self.store.put.remote(id, data, filename, encoded, metadata)

    @cached_property
    def _by_reference(self) -> tuple[SegmenterHandle, EncoderHandle]:
        """Handles that send large arguments (the crops) through shared memory, not by gRPC."""
        return (
            self.segmenter.options(_by_reference=True),
            self.encoder.options(_by_reference=True),
        )


class SearchFlow:
    """The way from a query to the photos that match it.

    Args:
        encoder, chunk_index, store: the deployments, in the order of the calls.
    """

    def __init__(
        self, encoder: EncoderHandle, chunk_index: ChunkIndexHandle, store: StoreHandle
    ) -> None:
        self.encoder = encoder
        self.chunk_index = chunk_index
        self.store = store
        self._last = 0

    def remember(self, sequence: int) -> None:
        """Make all later searches know the changes up to this one."""
        self._last = max(self._last, sequence)

    async def run(self, query: Query, options: SearchOptions, min_sequence: int) -> SearchAnswer:
        """Find the photos that match a query, nearest first, each once.

        Args:
            min_sequence: the search must know the store's changes up to this one.

        Raises:
            BadParameter, UnknownId, TooLarge, NotAnImage, BrokenImage, CorruptRecord
            UnknownSequence: the store has no change `min_sequence`.
        """
        vector = self._encode(query)
        sequence = max(min_sequence, self._last)
        while True:
            try:
                ranked, known = await self.chunk_index.rank.remote(vector, options, sequence)
            except UnknownSequence:
                if sequence == min_sequence:
                    raise
                sequence = max(min_sequence, await self._forget())
                continue
            found, newer = await self.store.records.remote([photo.id for photo in ranked])
            records = [None if json is None else Record.model_validate_json(json) for json in found]
            # If a photo was deleted or replaced since the ranking, rank again, so that another one
            # takes its place. If a record is missing although nothing has changed, it is damaged.
            # The store has logged that, and the other photos are still returned.
            if newer <= known or all(record and record.sequence <= known for record in records):
                return SearchAnswer(found=None, matches=_matches(ranked, records))
            sequence = newer

    def _encode(self, query: Query) -> Response[np.ndarray]:
        if query.text is not None:
            return self.encoder.encode_text.remote(query.text)
        picture: Later[bytes]
        if query.id is not None:
            picture = self.store.original.remote(query.id)
        else:
            assert query.data is not None  # exactly one of the three is given
            picture = query.data
        return self.encoder.encode_query.remote(picture, query.box)

    async def _forget(self) -> int:
        """Forget changes that the store no longer has, because an older backup was restored.

        Changes made through this replica since then are among those that the store has now.
        """
        _, last = await self.store.records.remote([])
        self._last = min(self._last, last)
        return self._last


def _matches(ranked: Sequence[RankedPhoto], records: Sequence[Record | None]) -> list[Match]:
    return [
        _match(photo, record)
        for photo, record in zip(ranked, records, strict=True)
        if record is not None
    ]


def _match(photo: RankedPhoto, record: Record) -> Match:
    chunks = [
        MatchedChunk(
            box=record.chunks[number].box,
            source=record.chunks[number].source,
            distance=distance,
            label=record.chunks[number].label,
        )
        for number, distance in photo.chunks
    ]
    return Match(
        id=photo.id,
        distance=photo.distance,
        box=chunks[0].box,
        source=chunks[0].source,
        label=chunks[0].label,
        chunks=chunks,
        filename=record.filename,
        width=record.width,
        height=record.height,
        url=f"/images/{photo.id}",
    )
