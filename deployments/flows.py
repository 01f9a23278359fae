"""The two ways through the deployments: indexing a photo, and searching by a query.

index    bytes ─► PhotoEncoder ─► Store ─► (log) ─► ChunkIndex
search   query ─► QueryEncoder ─► ChunkIndex and its Ranker ─► Store ─► Verifier ─► matches
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TypeVar

import numpy as np

from deployments.errors import BadParameter, UnknownSequence
from deployments.handles import (
    ChunkIndexHandle,
    Later,
    PhotoEncoderHandle,
    QueryEncoderHandle,
    Response,
    StoreHandle,
    VerifierHandle,
)
from deployments.matches import Hit, arrange
from deployments.outcomes import Outcome
from deployments.query import MAX_LIMIT, Query, SearchOptions
from deployments.records import CheckedPhoto, Match, Record, SearchAnswer, Stored
from deployments.verification import Candidate, EncodedQuery, Look, Sighting, Sketch, Verdict

T = TypeVar("T")

# The calls of one photo take a tenth of its time on two cores, and those of four hardly more.
LEAST_GROUP = 4

# Groups of photos that a replica of the Ingress has on their way at once: enough for the batches of
# several replicas. More of them would wait in Serve's router, which asks a replica that is full
# again and again whether it has room: with 150 waiting, that took a quarter of a core.
ON_THE_WAY = 64

# For second looks: how many of the nearest photos of each look, and how many of all of them.
PER_LOOK, LOOKED_AT_AGAIN = 3, 30


class IndexFlow:
    """The way from the bytes of photos to their records in the store.

    Args:
        photo_encoder, store: the deployments, in the order of the calls.
        batch_size: how many photos the photo encoder takes at once.

    Attributes:
        group: how many photos go together at most.
    """

    def __init__(
        self,
        photo_encoder: PhotoEncoderHandle,
        store: StoreHandle,
        batch_size: int,
    ) -> None:
        self.group = max(LEAST_GROUP, batch_size)
        self.photo_encoder = photo_encoder
        self.store = store

    async def run(self, photos: Sequence[CheckedPhoto]) -> list[Outcome[Stored]]:
        """Store those photos whose bytes are not stored under their id already.

        When this returns, they are on disk. If this is cancelled, they are given up, unless the
        store has got them already: then this returns what the store answers.

        Args:
            photos: at most `group`.

        Returns:
            Of each what is stored, or its error: IdTaken, TooLarge, NotAnImage, BrokenImage,
            CorruptRecord, StoreFull, Unavailable.
        """
        found = await self.store.find.remote([(photo.id, photo.sha256) for photo in photos])
        new = [photo for photo, known in zip(photos, found, strict=True) if known is None]
        stored: Iterator[Outcome[Stored]] = iter([])
        if new:
            async with self._places:
                stored = iter(await self._store(new))
        before = [Stored(one, created=False) if isinstance(one, Record) else one for one in found]
        return [next(stored) if one is None else one for one in before]

    async def _store(self, photos: list[CheckedPhoto]) -> list[Outcome[Stored]]:
        encoded = await self.photo_encoder.encode.remote(photos)
        put = asyncio.ensure_future(_answer(self.store.put.remote(photos, encoded)))
        try:
            return await asyncio.shield(put)
        except asyncio.CancelledError:
            # Nobody waits any longer. But what the store has got it stores: then its answer is
            # true, and an error would not be.
            return await asyncio.shield(put)

    @cached_property
    def _places(self) -> asyncio.Semaphore:
        return asyncio.Semaphore(ON_THE_WAY)


class SearchFlow:
    """The way from a query to the photos that match it.

    Args:
        encoder, chunk_index, store, verifier: the deployments, in the order of the calls. Without
            a verifier no photo is looked at.
        candidates: of how many of the nearest photos the verifier looks at those that it has to.
    """

    def __init__(
        self,
        encoder: QueryEncoderHandle,
        chunk_index: ChunkIndexHandle,
        store: StoreHandle,
        verifier: VerifierHandle | None,
        candidates: int,
    ) -> None:
        self.encoder = encoder
        self.chunk_index = chunk_index
        self.store = store
        self.verifier = verifier
        self.candidates = candidates
        self._last = 0
        self._asked = False  # the store for its last change: a replica before this one may know it

    def remember(self, sequence: int) -> None:
        """Make all later searches know the changes up to this one."""
        self._last = max(self._last, sequence)

    async def run(self, query: Query, options: SearchOptions, min_sequence: int) -> SearchAnswer:
        """Find the photos that contain a query, and those that look like it.

        Args:
            min_sequence: the search must know the store's changes up to this one.

        Raises:
            BadParameter, UnknownId, TooLarge, NotAnImage, BrokenImage, CorruptRecord
            UnknownSequence: the store has no change `min_sequence`.
        """
        verifier = self._choose_verifier(query, options)
        if query.text is not None:
            encoded = EncodedQuery(await self.encoder.encode_text.remote(query.text), None)
        else:
            encoded = await self.encoder.encode_query.remote(
                self._picture(query), query.box, verifier is not None
            )
        if verifier is None or encoded.sketch is None:
            hits = await self._rank(encoded.vector, options, min_sequence)
            return SearchAnswer(found=None, matches=await _arranged(hits, {}, options))

        wider = replace(options, limit=min(MAX_LIMIT, max(options.limit, self.candidates + 1)))
        hits = await self._rank(encoded.vector, wider, min_sequence)
        others = [hit for hit in hits if hit.photo.id != _itself(query)]
        everything = options.verify == "all"
        near = others[: options.limit if everything else self.candidates]
        whole = Look(encoded.sketch.box)
        candidates = [_candidate(hit, whole) for hit in near]
        verdict = await verifier.verify.remote(encoded.sketch, candidates, everything)
        if verdict.plain:
            matches = await _arranged(hits, {}, options)
            return SearchAnswer(found=None, texture="too plain to verify", matches=matches)
        sightings = dict(verdict.sightings)
        if verdict.looks:
            more, again = await self._look_again(
                verifier, query, encoded.sketch, verdict, options, min_sequence
            )
            sightings |= again
            known = {hit.photo.id for hit in hits}
            hits += [hit for hit in more if hit.photo.id not in known]
        matches = await _arranged(hits, sightings, options)
        return SearchAnswer(found=any(sightings.values()), matches=matches)

    def _choose_verifier(self, query: Query, options: SearchOptions) -> VerifierHandle | None:
        """Return the verifier if it can look at photos for this search.

        Raises:
            BadParameter: it can't, but the answer is to say what it saw.
        """
        asked = options.verified or options.verify == "all"
        if query.text is not None:
            if asked:
                raise BadParameter(
                    "A text has no pixels to look for: leave out verified=true and verify=all."
                )
            return None
        if self.verifier is None and asked:
            raise BadParameter(
                "The verifier is switched off here (verifier.enabled): leave out verified=true "
                "and verify=all."
            )
        return None if options.verify == "none" else self.verifier

    def _picture(self, query: Query) -> Later[bytes]:
        if query.id is not None:
            return self.store.original.remote(query.id)
        assert query.data is not None  # exactly one of three is given, and it is no text
        return query.data

    async def _look_again(
        self,
        verifier: VerifierHandle,
        query: Query,
        sketch: Sketch,
        verdict: Verdict,
        options: SearchOptions,
        min_sequence: int,
    ) -> tuple[list[Hit], dict[str, Sighting]]:
        """Look for parts of a query, turned and mirrored; return what was seen, nearest first."""
        vectors = await self.encoder.encode_looks.remote(self._picture(query), verdict.looks)
        few = replace(options, limit=PER_LOOK)
        ranked = await self.chunk_index.rank_all.remote(vectors, few, max(min_sequence, self._last))
        near = [
            (photo, look)
            for photos, look in zip(ranked, verdict.looks, strict=True)
            for photo in photos
        ]
        near = [(photo, look) for photo, look in near if photo.id != _itself(query)]
        near = sorted(near, key=lambda one: one[0].distance)[:LOOKED_AT_AGAIN]
        ids = list(dict.fromkeys(photo.id for photo, _ in near))
        records = await self._records(ids)
        hits = [
            (Hit(photo, record), look)
            for photo, look in near
            if (record := records.get(photo.id)) is not None
            and photo.chunks[0][0] < len(record.chunks)
        ]
        candidates = [_candidate(hit, look) for hit, look in hits]
        sightings = await verifier.verify_again.remote(sketch, candidates)
        seen = {hit.photo.id: hit for hit, _ in reversed(hits) if hit.photo.id in sightings}
        return list(seen.values()), sightings

    async def _rank(
        self, vector: np.ndarray, options: SearchOptions, min_sequence: int
    ) -> list[Hit]:
        """Return the nearest photos, nearest first, each once, as they are stored now."""
        if not self._asked:
            _, last = await self.store.records.remote([])
            self.remember(last)
            self._asked = True
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
            records = await asyncio.to_thread(_read, found)
            # If a photo was deleted or replaced since the ranking, rank again, so that another one
            # takes its place. If a record is missing although nothing has changed, it is damaged.
            # The store has logged that, and the other photos are still returned.
            if newer <= known or all(record and record.sequence <= known for record in records):
                return [
                    Hit(photo, record)
                    for photo, record in zip(ranked, records, strict=True)
                    if record is not None
                ]
            sequence = newer

    async def _records(self, ids: list[str]) -> dict[str, Record]:
        found, _ = await self.store.records.remote(ids)
        records = await asyncio.to_thread(_read, found)
        return {id: record for id, record in zip(ids, records, strict=True) if record is not None}

    async def _forget(self) -> int:
        """Forget changes that the store no longer has, because an older backup was restored.

        Changes made through this replica since then are among those that the store has now.
        """
        _, last = await self.store.records.remote([])
        self._last = min(self._last, last)
        return self._last


def _read(found: Sequence[bytes | None]) -> list[Record | None]:
    # In a thread, as is `arrange`: for a thousand photos both take 250 ms.
    return [None if json is None else Record.model_validate_json(json) for json in found]


async def _arranged(
    hits: list[Hit], sightings: Mapping[str, Sighting | None], options: SearchOptions
) -> list[Match]:
    return await asyncio.to_thread(arrange, hits, sightings, options)


async def _answer(response: Response[T]) -> T:
    return await response


def _itself(query: Query) -> str | None:
    """Return the id of the photo that is the query, all of it: it isn't compared with itself."""
    return query.id if query.box is None else None


def _candidate(hit: Hit, look: Look) -> Candidate:
    return Candidate(hit.photo.id, hit.record.sha256, hit.photo.chunks[0][1], hit.box, look)
