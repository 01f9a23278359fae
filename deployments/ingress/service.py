"""The service itself: the index way and the search way through the other boxes."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from math import isfinite
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.errors import BadParameter, StoreFull, Unavailable, UnknownSequence
from deployments.ingress.app import BodyLimit, build_app
from deployments.metadata import Filter, Value, check_metadata
from deployments.records import (
    EncoderState,
    IndexedImage,
    Match,
    MatchedChunk,
    RankedPhoto,
    Record,
    Stats,
)
from deployments.settings import HEALTH_CHECK_S, LimitSettings
from deployments.store.format import check_id

logger = logging.getLogger(__name__)

MAX_LIMIT = 1000
MAX_CHUNKS = 5  # of a photo in an answer, unless more are asked for: it has some forty


class Inset:
    """Index, search, get and delete, by HTTP and by Ray handles: the same operations.

    Errors are those of `deployments.errors`, whichever replica raised them.

    Args:
        segmenter, index_encoder, query_encoder, chunk_index, store: handles of the boxes.
        encoder: what `/stats` says of the encoder.
        detector: what `/stats` says of the detector.
        limits: how large a request may be, and how long it may take.
    """

    def __init__(
        self,
        *,
        segmenter: DeploymentHandle,
        index_encoder: DeploymentHandle,
        query_encoder: DeploymentHandle,
        chunk_index: DeploymentHandle,
        store: DeploymentHandle,
        encoder: EncoderState,
        detector: str,
        limits: LimitSettings,
    ) -> None:
        self.segmenter = segmenter
        self.index_encoder = index_encoder
        self.query_encoder = query_encoder
        self.chunk_index = chunk_index
        self.store = store
        self.encoder = encoder
        self.detector = detector
        self.limits = limits
        self._sequence = 0  # the last change made through here: every search from here sees it

    async def index(
        self,
        data: bytes,
        *,
        id: str | None = None,
        filename: str | None = None,
        confidence_threshold: float | None = None,
        metadata: Mapping[str, Value] | None = None,
    ) -> IndexedImage:
        """Store a photo so that searches find it; when this returns it is on disk.

        Args:
            data: an encoded image, any format Pillow reads.
            id: the photo's id; the SHA-256 of the bytes unless given.
            filename: kept with the photo, for people.
            confidence_threshold: for this photo instead of the segmenter's own, 0 to 1.
            metadata: what searches can filter by: strings, numbers and booleans by key, as
                `deployments.metadata.check_metadata` says. A photo that is stored already keeps
                what it has.

        Raises:
            BadParameter, IdTaken, TooLarge, NotAnImage, BrokenImage, StoreFull, Unavailable
        """
        if confidence_threshold is not None and not 0 <= confidence_threshold <= 1:
            raise BadParameter(
                f"confidence_threshold must be from 0 to 1, not {confidence_threshold}."
            )
        metadata = check_metadata({} if metadata is None else metadata)
        digest = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
        id = digest if id is None else check_id(id)
        async with self._patience():
            known = await self.store.find.remote(id, digest)
            if known is not None:
                return IndexedImage(status="exists", **dict(known))
            # The responses are passed on unawaited: crops and vectors go from replica to replica.
            segmented = self.segmenter.segment.remote(data, confidence_threshold)
            encoded = self.index_encoder.encode_photo.remote(segmented)
            stored = await self.store.put.remote(id, data, filename, encoded, metadata)
        self._sequence = max(self._sequence, stored.record.sequence)
        return IndexedImage(status="created" if stored.created else "exists", **dict(stored.record))

    async def search(
        self,
        data: bytes | None = None,
        *,
        text: str | None = None,
        id: str | None = None,
        box: tuple[float, float, float, float] | None = None,
        limit: int = 10,
        max_distance: float = 2.0,
        max_chunks: int = MAX_CHUNKS,
        min_sequence: int = 0,
        filter: str | Sequence[str] = (),
    ) -> list[Match]:
        """Find the photos that contain a picture, nearest first, each once.

        Args:
            data: the picture, encoded; or
            text: what to look for, where the encoder has a text tower; or
            id: a stored photo.
            box: x1, y1, x2, y2: look for this part of the picture only, pixels.
            limit: how many photos at most, 1 to 1000.
            max_distance: chunks beyond this cosine distance don't count, 0 to 2.
            max_chunks: of each photo at most so many of its chunks, the nearest, 1 to 1000.
            min_sequence: the answer must know the store's changes up to this one. What was
                changed through this replica of the ingress it knows anyway.
            filter: a condition on the metadata, as `year>=2020`, or several, all of which must
                hold; `deployments.metadata.Filter` says more. Photos of which they aren't true
                don't count towards the limit.

        Raises:
            BadParameter, UnknownId, TooLarge, NotAnImage, BrokenImage, Unavailable
            UnknownSequence: `min_sequence` has not happened.
        """
        if sum(query is not None for query in (data, text, id)) != 1:
            raise BadParameter(
                "Send exactly one query: an image as the body, ?text=, or ?id= of a stored image."
            )
        if box is not None and text is not None:
            raise BadParameter("A box is a part of a picture: it does not go with ?text=.")
        if box is not None and not (
            box[0] < box[2] and box[1] < box[3] and all(map(isfinite, box))
        ):
            raise BadParameter(f"box {box} is empty: it is x1, y1, x2, y2 with x1 < x2, y1 < y2.")
        if not 1 <= limit <= MAX_LIMIT:
            raise BadParameter(f"limit must be from 1 to {MAX_LIMIT}, not {limit}.")
        if not 0 <= max_distance <= 2:
            raise BadParameter(f"max_distance must be from 0 to 2, not {max_distance}.")
        if not 1 <= max_chunks <= MAX_LIMIT:
            raise BadParameter(f"max_chunks must be from 1 to {MAX_LIMIT}, not {max_chunks}.")
        conditions = [filter] if isinstance(filter, str) else filter
        wanted = Filter.parse(conditions) if conditions else None
        async with self._patience():
            if text is not None:
                vector = self.query_encoder.encode_text.remote(text)
            else:
                picture = data if id is None else self.store.original.remote(check_id(id))
                vector = self.query_encoder.encode_query.remote(picture, box)
            sequence = max(min_sequence, self._sequence)
            while True:
                try:
                    ranked, seen = await self.chunk_index.rank.remote(
                        vector, limit, max_distance, max_chunks, sequence, wanted
                    )
                except UnknownSequence:
                    if sequence == min_sequence:
                        raise
                    # The store was restored to an older state than we remember. What has been done
                    # since through here is among the changes that it has now.
                    _, last = await self.store.records.remote([])
                    self._sequence = min(self._sequence, last)
                    sequence = max(min_sequence, self._sequence)
                    continue
                found, newer = await self.store.records.remote([photo.id for photo in ranked])
                records = [json and Record.model_validate_json(json) for json in found]
                # A photo that was deleted or replaced since it was ranked makes room for another:
                # rank again. One that is missing though nothing has changed is damaged; the log
                # says so, and the others are still worth having.
                if newer <= seen or all(record and record.sequence <= seen for record in records):
                    return [
                        _match(photo, record)
                        for photo, record in zip(ranked, records, strict=True)
                        if record is not None
                    ]
                sequence = newer

    async def get(self, id: str) -> tuple[Record, bytes]:
        """Return a photo's record and its original bytes.

        Raises:
            BadParameter, UnknownId, CorruptRecord, Unavailable
        """
        async with self._patience():
            return await self.store.get.remote(check_id(id))

    async def thumbnail(self, id: str) -> bytes:
        """Return a small picture of a photo, see `segmenter.thumbnails.make_thumbnail`.

        It was made when the photo was indexed; where a version without thumbnails has done that, it
        is made now, and kept if there is room.

        Raises:
            BadParameter, UnknownId, CorruptRecord, Unavailable
            TooLarge, NotAnImage, BrokenImage: it had to be made now, and the original, which was
                accepted once, can't be decoded under the limits of today.
        """
        async with self._patience():
            thumbnail = await self.store.thumbnail.remote(check_id(id))
            if thumbnail is None:
                record, original = await self.store.get.remote(id)
                thumbnail = await self.segmenter.thumbnail.remote(original)
                try:
                    await self.store.keep_thumbnail.remote(id, record.sha256, thumbnail)
                except StoreFull as error:
                    logger.warning(
                        "the thumbnail of %r isn't kept, so it is made again next time: %s",
                        id,
                        error.detail,
                    )
        return thumbnail

    async def record(self, id: str) -> Record:
        """Return what is known of a photo.

        Raises:
            BadParameter, UnknownId, CorruptRecord, Unavailable
        """
        async with self._patience():
            return await self.store.record.remote(check_id(id))

    async def list(self, after: str | None = None, limit: int = 100) -> list[Record]:
        """Return a page of records in the order of their ids.

        Args:
            after: the last id of the page before.
            limit: length of the page, 1 to 1000.

        Raises:
            BadParameter, Unavailable
        """
        if not 1 <= limit <= MAX_LIMIT:
            raise BadParameter(f"limit must be from 1 to {MAX_LIMIT}, not {limit}.")
        async with self._patience():
            return await self.store.page.remote(after, limit)

    async def delete(self, id: str) -> int:
        """Remove a photo everywhere; returns the sequence number of the change.

        Raises:
            BadParameter, UnknownId, StoreFull, Unavailable
        """
        async with self._patience():
            sequence = await self.store.delete.remote(check_id(id))
        self._sequence = max(self._sequence, sequence)
        return sequence

    async def stats(self) -> Stats:
        """Return counts, model names and sequence numbers.

        Raises:
            Unavailable
        """
        async with self._patience():
            store, chunk_index = await asyncio.gather(
                self.store.stats.remote(), self.chunk_index.stats.remote()
            )
        return Stats(
            store=store, chunk_index=chunk_index, encoder=self.encoder, segmenter=self.detector
        )

    async def check(self) -> None:
        """Return when every box answers.

        Raises:
            Unavailable
        """
        boxes = (
            self.segmenter,
            self.index_encoder,
            self.query_encoder,
            self.chunk_index,
            self.store,
        )
        async with self._patience():
            await asyncio.gather(*(box.ping.remote() for box in boxes))

    @asynccontextmanager
    async def _patience(self) -> AsyncIterator[None]:
        """Say in words, within the time limit, that a box is overloaded, gone or too slow."""
        try:
            async with asyncio.timeout(self.limits.timeout_s):
                yield
        except TimeoutError:
            raise Unavailable(
                f"This took longer than {self.limits.timeout_s:g} s: the service is overloaded, "
                "or a part of it is starting. Try again."
            ) from None
        except BackPressureError:
            raise Unavailable(
                "The queue is full. Try again, with fewer requests at once."
            ) from None
        except (RayActorError, RayServeException):  # a replica died, or one that it waited for
            raise Unavailable("A part of the service is being restarted. Try again.") from None


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


@serve.deployment(
    name="Ingress",
    max_ongoing_requests=256,
    health_check_period_s=HEALTH_CHECK_S,
    ray_actor_options={"num_cpus": 0},
)
@serve.ingress()
class IngressDeployment(Inset):
    """The service on Ray Serve: HTTP from the proxy, and the same operations for handles."""

    def __init__(self, **boxes: Any) -> None:
        super().__init__(**boxes)
        # Crops are large: they go from box to box through shared memory, whatever goes by gRPC
        # otherwise (see runtime_env in serve_config.yaml).
        self.segmenter = self.segmenter.options(_by_reference=True)
        self.index_encoder = self.index_encoder.options(_by_reference=True)

    def __serve_build_asgi_app__(self) -> BodyLimit:
        return build_app(self)
