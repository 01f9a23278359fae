"""The operations of the service, for HTTP and for Ray handles."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException

from deployments.errors import StoreFull, Unavailable, first_line
from deployments.flows import IndexFlow, SearchFlow
from deployments.handles import Handle
from deployments.ingress.checking import check_photo
from deployments.ingress.indexing import ReadPhoto, index_each
from deployments.ingress.metrics import Counts
from deployments.ingress.progress import Progress
from deployments.metadata import Value
from deployments.outcomes import Outcome, go_on, outcome_of_each
from deployments.query import (
    DEFAULT_CHUNKS,
    DEFAULT_LIMIT,
    DEFAULT_RECORDS,
    MAX_DISTANCE,
    MAX_LIMIT,
    Corners,
    Group,
    Query,
    SearchOptions,
    Verify,
    check_range,
    parse_filter,
)
from deployments.records import (
    CheckedPhoto,
    EncoderState,
    IndexedImage,
    NewPhoto,
    Readiness,
    Record,
    SearchAnswer,
    Stats,
    Stored,
    Summary,
    check_id,
)
from deployments.settings import LimitSettings

logger = logging.getLogger(__name__)

# The share of the time limit in which a new photo must be done as far as one can tell. The rest is
# for photos that take longer than others.
LOAD = 0.75
# The chunk index asks the store every two seconds or more often. Some may be lost.
SILENT_S = 10

# Inside `Inset`, `list` is a method.
Records = list[Record]
Summaries = list[Summary]
Deployments = list[Handle]
Indexed = list[Outcome[IndexedImage]]


class Inset:
    """The operations of the service: index, search, get, delete and others.

    All errors are those of `deployments.errors`, whichever replica raised them.

    Args:
        index_flow: indexes photos.
        search_flow: answers queries.
        encoder: what `/stats` reports about the encoder.
        detector: what `/stats` reports about the detector.
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
        self.progress = Progress()
        self.search_progress = Progress(what="searches are being answered")
        self.counts = Counts()

    async def index(
        self,
        data: bytes,
        *,
        id: str | None = None,
        filename: str | None = None,
        confidence_threshold: float | None = None,
        metadata: Mapping[str, Value] | None = None,
    ) -> IndexedImage:
        """Store a photo so that searches find it. When this returns, it is on disk.

        Args:
            data: an encoded image, see docs/formats.md.
            id: the photo's id; by default the SHA-256 of the bytes. 64 hexadecimal digits must be
                that, so that nobody can take the id that another photo will have.
            filename: kept in the record, for display, as `filenames.tidy` returns it.
            confidence_threshold: for this photo instead of the configured one, 0 to 1.
            metadata: what searches can filter by: strings, numbers and booleans by key, see
                `deployments.metadata.check_metadata`. It wins over what the photo says of itself.
                A photo that is stored already keeps its metadata.

        Raises:
            BadParameter, IdTaken, TooLarge, NotAnImage, BrokenImage, StoreFull, Unavailable
        """
        photo = NewPhoto(data, id, filename, confidence_threshold, metadata)
        (outcome,) = await self._index_group([photo])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def index_many(self, photos: Sequence[NewPhoto]) -> Indexed:
        """Store photos as `index` does, several at a time.

        Returns:
            Of each its record, or its error. An error doesn't affect the other photos.
        """

        async def at_hand(photo: NewPhoto) -> NewPhoto:
            return photo

        async with aclosing(self.index_each([partial(at_hand, one) for one in photos])) as results:
            done = {number: result async for number, result in results}
        return [done[number] for number in range(len(photos))]

    def index_each(
        self, photos: Sequence[ReadPhoto]
    ) -> AsyncGenerator[tuple[int, Outcome[IndexedImage]], None]:
        """Read and store photos, each as soon as there is room; see `indexing.index_each`."""
        return index_each(photos, self._index_group, self.progress, self.index_flow.group)

    async def _index_group(self, photos: Sequence[NewPhoto]) -> Indexed:
        """Store photos that go together, at most as many as a group has."""
        checked = await outcome_of_each(asyncio.to_thread(check_photo, photo) for photo in photos)
        good = [photo for photo in checked if isinstance(photo, CheckedPhoto)]
        try:
            stored = await self._store(good) if good else []
        except Exception as error:
            stored = [error] * len(good)
        outcomes = go_on(checked, map(_image, stored))
        for outcome in outcomes:
            if isinstance(outcome, IndexedImage):
                self.search_flow.remember(outcome.sequence)
        return outcomes

    async def _store(self, photos: list[CheckedPhoto]) -> list[Outcome[Stored]]:
        """Store checked photos, and count what comes of them.

        Raises:
            Unavailable
        """
        counted = ["failed"] * len(photos)
        try:
            self.check_room(self.progress)
            with self.progress.working(len(photos)) as done:
                async with self._answering():
                    stored = await self.index_flow.run(photos)
                counted = [
                    "failed"
                    if isinstance(one, Exception)
                    else "created"
                    if one.created
                    else "exists"
                    for one in stored
                ]
                given_up = sum(isinstance(one, Unavailable) for one in stored)
                done(indexed=counted.count("created"), given_up=given_up)
            return stored
        finally:
            for outcome in counted:
                self.counts.photo(outcome)

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
        verify: Verify = "auto",
        verified: bool = False,
        group: Group | None = None,
    ) -> SearchAnswer:
        """Find the photos that contain a query, and those that look like it.

        Give exactly one of `data`, `text` and `id`.

        Args:
            data: the query, an encoded image.
            text: what to look for, if the encoder takes text.
            id: search by this stored photo.
            box: x1, y1, x2, y2 in pixels: search by this part of the image only.
            limit, max_distance, max_chunks: see `query.SearchOptions`.
            min_sequence: the search must know the store's changes up to this one. It always knows
                the changes made through this replica of the ingress.
            filter: one or several conditions on the metadata, for example `year>=2020`, all of
                which must hold; see `deployments.metadata.Filter`. Other photos don't count
                towards the limit.
            verify, verified, group: see `query.SearchOptions`.

        Raises:
            BadParameter, UnknownId, TooLarge, NotAnImage, BrokenImage, Unavailable
            UnknownSequence: the store has no change `min_sequence`.
        """
        query = Query(data, text, id, box)
        options = SearchOptions(
            limit, max_distance, max_chunks, parse_filter(filter), verify, verified, group
        )
        self.check_room(self.search_progress)
        with self.search_progress.working() as answered:
            async with self._answering():
                answer = await self.search_flow.run(query, options, min_sequence)
            answered()
        self.counts.search(answer)
        return answer

    def check_room(self, progress: Progress) -> None:
        """Refuse what would not be done in time, before any work is done for it.

        Otherwise the service would work for clients that have given up.

        Args:
            progress: `progress` for a photo, `search_progress` for a search.

        Raises:
            Unavailable
        """
        wait_s = progress.wait_for_room(LOAD * self.limits.timeout_s)
        if wait_s:
            raise Unavailable(
                f"So many {progress.what} that this one would take nearly "
                f"{self.limits.timeout_s:g} s or more. Try again in {math.ceil(wait_s)} s, with "
                "fewer requests at once.",
                retry_after_s=math.ceil(wait_s),
            )

    async def get(self, id: str) -> tuple[Record, bytes]:
        """Return a photo's record and its original bytes.

        Raises:
            BadParameter, UnknownId, CorruptRecord, Unavailable
        """
        async with self._answering():
            return await self.store.get.remote(check_id(id))

    async def part(self, id: str, sha256: str, start: int, stop: int) -> bytes | None:
        """Return a part of a photo's original; None if the original is another by now.

        A part is not compared with the SHA-256, as `get` does: that would take all of the bytes.

        Args:
            sha256: of the original that the caller means, see `record`.
            start, stop: the first byte, and the one after the last.

        Raises:
            BadParameter, UnknownId, CorruptRecord, Unavailable
        """
        check_range("start", start, 0, stop)
        async with self._answering():
            return await self.store.original_part.remote(check_id(id), sha256, start, stop)

    async def thumbnail(self, id: str) -> bytes:
        """Return a photo's thumbnail, see `segmenter.thumbnails.make_thumbnail`.

        If the photo was indexed by a version without thumbnails, the thumbnail is made now, and
        stored if there is room.

        Raises:
            BadParameter, UnknownId, CorruptRecord, Unavailable
            TooLarge, NotAnImage, BrokenImage: it had to be made now, but the original can't be
                decoded under the current limits.
        """
        async with self._answering():
            thumbnail = await self.store.thumbnail.remote(check_id(id))
            if thumbnail is None:
                record, original = await self.store.get.remote(id)
                thumbnail = await self.index_flow.photo_encoder.thumbnail.remote(original)
                try:
                    await self.store.keep_thumbnail.remote(id, record.sha256, thumbnail)
                except StoreFull as error:
                    logger.warning(
                        "the thumbnail of %r can't be stored and will be made again: %s",
                        id,
                        error.detail,
                    )
        return thumbnail

    async def record(self, id: str) -> Record:
        """Return the record of a photo.

        Raises:
            BadParameter, UnknownId, CorruptRecord, Unavailable
        """
        async with self._answering():
            return await self.store.record.remote(check_id(id))

    async def list(
        self, after: str | None = None, limit: int = DEFAULT_RECORDS, chunks: bool = True
    ) -> Records | Summaries:
        """Return records in the order of their ids.

        Args:
            after: return the records of the ids after this one.
            limit: the most records to return, 1 to 1000.
            chunks: False leaves out their chunks, which are nine tenths of them.

        Raises:
            BadParameter, Unavailable
        """
        check_range("limit", limit, 1, MAX_LIMIT)
        async with self._answering():
            found = await self.store.records_after.remote(after, limit, not chunks)
        kind = Record if chunks else Summary
        return await asyncio.to_thread(lambda: [kind.model_validate_json(one) for one in found])

    async def delete(self, id: str) -> int:
        """Remove a photo; return the sequence number of the change.

        Raises:
            BadParameter, UnknownId, StoreFull, Unavailable
        """
        async with self._answering(timed=False):
            sequence = await self.store.delete.remote(check_id(id))
        self.search_flow.remember(sequence)
        return sequence

    async def stats(self) -> Stats:
        """Return counts, model names and sequence numbers.

        Raises:
            Unavailable
        """
        async with self._answering():
            store, chunk_index = await asyncio.gather(
                self.store.stats.remote(), self.search_flow.chunk_index.stats.remote()
            )
        return Stats(
            store=store, chunk_index=chunk_index, encoder=self.encoder, segmenter=self.detector
        )

    async def check(self) -> None:
        """Check that every deployment answers.

        Raises:
            Unavailable
        """
        deployments: Deployments = [
            self.index_flow.photo_encoder,
            self.search_flow.encoder,
            self.search_flow.chunk_index,
            self.store,
        ]
        if self.search_flow.verifier is not None:
            deployments.append(self.search_flow.verifier)
        async with self._answering():
            await asyncio.gather(*(deployment.ping.remote() for deployment in deployments))

    async def ready(self) -> Readiness:
        """Check that a photo could be stored and found now.

        Raises:
            Unavailable: a deployment doesn't answer, the store has no room for the largest photo,
                or the chunk index does not follow the store.
        """
        await self.check()
        async with self._answering():
            (last, room), (known, unfollowed_s) = await asyncio.gather(
                self.store.room.remote(), self.search_flow.chunk_index.lag.remote()
            )
        if room < self.limits.max_image_bytes:
            raise Unavailable(
                f"The store has room for {room:,} bytes more, and a photo may have "
                f"{self.limits.max_image_bytes:,}. Free space on its disk, delete photos, or raise "
                "store.max_bytes."
            )
        if unfollowed_s > SILENT_S:
            raise Unavailable(
                f"The chunk index has not heard from the store for {unfollowed_s:.0f} s, and does "
                "not find new photos."
            )
        return Readiness(
            photos_in_work=self.progress.in_work,
            oldest_s=self.progress.oldest_s,
            room_bytes=room,
            index_lag=max(0, last - known),
            index_unfollowed_s=unfollowed_s,
        )

    @asynccontextmanager
    async def _answering(self, timed: bool = True) -> AsyncIterator[None]:
        """Apply the time limit, and turn Ray's errors about busy or dead replicas into ours.

        Args:
            timed: False if the answer must be awaited, because it may happen anyway.

        Raises:
            Unavailable
        """
        try:
            async with asyncio.timeout(self.limits.timeout_s if timed else None):
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
        except (RayError, RayServeException) as error:
            # What our own code raised in a replica is an error of Ray's as well; it passes.
            if isinstance(error, RayTaskError) and not isinstance(_cause(error), RayError):
                raise
            logger.warning("a call of a deployment failed: %s", first_line(error))
            raise Unavailable("A part of the service is being restarted. Try again.") from None


def _cause(error: BaseException) -> BaseException:
    """Return what was raised in the replica that failed first."""
    while isinstance(error, RayTaskError) and error.cause is not None:
        error = error.cause
    return error


def _image(stored: Outcome[Stored]) -> Outcome[IndexedImage]:
    if isinstance(stored, Exception):
        return stored
    return IndexedImage(status="created" if stored.created else "exists", **dict(stored.record))
