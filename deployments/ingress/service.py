"""The service: what clients can ask for, by HTTP and by Ray handles."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, RayServeException

from deployments.errors import StoreFull, Unavailable
from deployments.flows import IndexFlow, SearchFlow
from deployments.handles import Handle
from deployments.metadata import Value, check_metadata
from deployments.query import (
    DEFAULT_CHUNKS,
    DEFAULT_LIMIT,
    MAX_DISTANCE,
    MAX_LIMIT,
    Corners,
    Query,
    SearchOptions,
    check_range,
    parse_filter,
)
from deployments.records import EncoderState, IndexedImage, Match, Record, Stats, check_id
from deployments.settings import LimitSettings

logger = logging.getLogger(__name__)

# Inside of `Inset`, `list` is its method.
Matches = list[Match]
Records = list[Record]
Deployments = list[Handle]


class Inset:
    """Index, search, get and delete, by HTTP and by Ray handles: the same operations.

    Errors are those of `deployments.errors`, whichever replica raised them.

    Args:
        index_flow: the way of a photo.
        search_flow: the way of a query.
        encoder: what `/stats` says of the encoder.
        detector: what `/stats` says of the detector.
        limits: how large a request may be, and how long it may take.
    """

    def __init__(
        self,
        *,
        index_flow: IndexFlow,
        search_flow: SearchFlow,
        encoder: EncoderState,
        detector: str,
        limits: LimitSettings,
    ) -> None:
        self.index_flow = index_flow
        self.search_flow = search_flow
        self.store = index_flow.store
        self.encoder = encoder
        self.detector = detector
        self.limits = limits

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
        if confidence_threshold is not None:
            check_range("confidence_threshold", confidence_threshold, 0, 1)
        checked = check_metadata({} if metadata is None else metadata)
        digest = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
        async with self._patience():
            stored = await self.index_flow.run(
                data,
                id=digest if id is None else check_id(id),
                sha256=digest,
                filename=filename,
                confidence_threshold=confidence_threshold,
                metadata=checked,
            )
        self.search_flow.remember(stored.record.sequence)
        return IndexedImage(status="created" if stored.created else "exists", **dict(stored.record))

    async def search(
        self,
        data: bytes | None = None,
        *,
        text: str | None = None,
        id: str | None = None,
        box: Corners | None = None,
        limit: int = DEFAULT_LIMIT,
        max_distance: float = MAX_DISTANCE,
        max_chunks: int = DEFAULT_CHUNKS,
        min_sequence: int = 0,
        filter: str | Sequence[str] = (),
    ) -> Matches:
        """Find the photos that contain a picture, nearest first, each once.

        Args:
            data: the picture, encoded; or
            text: what to look for, where the encoder has a text tower; or
            id: a stored photo.
            box: x1, y1, x2, y2: look for this part of the picture only, pixels.
            limit, max_distance, max_chunks: see `query.SearchOptions`.
            min_sequence: the answer must know the store's changes up to this one. What was
                changed through this replica of the ingress it knows anyway.
            filter: a condition on the metadata, as `year>=2020`, or several, all of which must
                hold; `deployments.metadata.Filter` says more. Photos of which they aren't true
                don't count towards the limit.

        Raises:
            BadParameter, UnknownId, TooLarge, NotAnImage, BrokenImage, Unavailable
            UnknownSequence: `min_sequence` has not happened.
        """
        query = Query(data, text, id, box)
        options = SearchOptions(limit, max_distance, max_chunks, parse_filter(filter))
        async with self._patience():
            return await self.search_flow.run(query, options, min_sequence)

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
                thumbnail = await self.index_flow.segmenter.thumbnail.remote(original)
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

    async def list(self, after: str | None = None, limit: int = 100) -> Records:
        """Return records in the order of their ids.

        Args:
            after: return those of the ids after this one.
            limit: how many records at most, 1 to 1000.

        Raises:
            BadParameter, Unavailable
        """
        check_range("limit", limit, 1, MAX_LIMIT)
        async with self._patience():
            return await self.store.records_after.remote(after, limit)

    async def delete(self, id: str) -> int:
        """Remove a photo everywhere; returns the sequence number of the change.

        Raises:
            BadParameter, UnknownId, StoreFull, Unavailable
        """
        async with self._patience():
            sequence = await self.store.delete.remote(check_id(id))
        self.search_flow.remember(sequence)
        return sequence

    async def stats(self) -> Stats:
        """Return counts, model names and sequence numbers.

        Raises:
            Unavailable
        """
        async with self._patience():
            store, chunk_index = await asyncio.gather(
                self.store.stats.remote(), self.search_flow.chunk_index.stats.remote()
            )
        return Stats(
            store=store, chunk_index=chunk_index, encoder=self.encoder, segmenter=self.detector
        )

    async def check(self) -> None:
        """Return when every deployment answers.

        Raises:
            Unavailable
        """
        deployments: Deployments = [
            self.index_flow.segmenter,
            self.index_flow.encoder,
            self.search_flow.encoder,
            self.search_flow.chunk_index,
            self.store,
        ]
        async with self._patience():
            await asyncio.gather(*(deployment.ping.remote() for deployment in deployments))

    @asynccontextmanager
    async def _patience(self) -> AsyncIterator[None]:
        """Answer within the time limit, in words, when a deployment is overloaded or gone."""
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
