"""The Store deployment: writers share transactions, and followers read the log."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar, TypeVarTuple

from ray import serve

from deployments.compute.batching import batched
from deployments.errors import EncoderMismatch, StoreDiskFailed
from deployments.logs import join_the_log
from deployments.metrics import Stage
from deployments.outcomes import Outcome, outcome_of_each
from deployments.records import (
    Changes,
    CheckedPhoto,
    EncodedPhoto,
    EncoderIdentity,
    Position,
    Preview,
    Record,
    Stored,
    StoreState,
)
from deployments.settings import HEALTH_CHECK_S, StoreSettings
from deployments.startup import ending_serve_run
from deployments.store.followers import Followers
from deployments.store.format import REPEATABLE
from deployments.store.metrics import measure_store
from deployments.store.operations import (
    Delete,
    KeepPreview,
    KeepThumbnail,
    Operation,
    Prepared,
    Put,
    Result,
    added_bytes,
)
from deployments.store.store import Store

logger = logging.getLogger(__name__)

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

# The operations of one transaction have 32 MiB together at most, unless a single one has more. With
# half as much fewer photos were stored a second; with twice as much hardly more, and each waited
# longer. Their size is counted in pieces, of which even the smallest operation has one.
PIECE_BYTES = 128 * 2**10
GROUP_PIECES = 256
Sized: TypeAlias = tuple[int, Prepared]  # counted once: a group is added up with each that joins it
# A resource that Ray gives the head node alone. The store's disk is there, and on another node an
# empty store would begin.
ON_THE_HEAD = "node:__internal_head__"
# Threads that compute checksums while the writer waits for the disk.
PREPARING_THREADS = 2
# Most reads at once. While a cold disk holds them up, others wait; the writer has its own thread.
READING_THREADS = 16
# How long a store waits for a disk that fails before it tries again to open.
OPEN_AGAIN_S = 5
# Size of the vectors in one answer to a follower, bytes.
CHANGES_BYTES = 16 * 2**20

# The log is cut when it has this many deletions besides those that may be repeated.
CUT_WORTH = 5000


@serve.deployment(
    name="Store",
    max_ongoing_requests=512,
    max_queued_requests=512,
    health_check_period_s=HEALTH_CHECK_S,
    ray_actor_options={"num_cpus": 0, "resources": {ON_THE_HEAD: 0.001}},
)
class StoreDeployment:
    """A `Store` whose writers share transactions: requests that arrive during one form the next."""

    def __init__(self, settings: StoreSettings, encoder: EncoderIdentity) -> None:
        join_the_log()
        with ending_serve_run(EncoderMismatch):
            self.store = _open(settings, encoder)
        self._sequence = self.store.sequence
        # Who reads the memory map stands still until the disk answers. A thread costs 0.04 ms.
        self._reading = ThreadPoolExecutor(READING_THREADS, "reading")
        self._writing = ThreadPoolExecutor(1, "writing")
        self._preparing = ThreadPoolExecutor(PREPARING_THREADS, "preparing")
        self._reads = Stage("read")
        measure_store(self.store)
        # What an operation results in depends on its kind.
        self._commit: Callable[[Sized], Awaitable[Any]] = batched(
            self._commit_together,
            stage="write",
            max_batch_size=GROUP_PIECES,
            batch_size_fn=lambda group: sum(pieces for pieces, _ in group),
            count_fn=len,
        )
        self._changed = asyncio.Condition()
        self._followers = Followers()
        self._cutting: asyncio.Task[None] | None = None

    async def put(
        self, photos: list[CheckedPhoto], encoded: list[Outcome[EncodedPhoto]]
    ) -> list[Outcome[Stored]]:
        """Store photos; when this returns they are on disk.

        Args:
            encoded: one for each photo; an error stays what it is.

        Returns:
            Of each what was stored, or its error: BadParameter, IdTaken, StoreFull, CorruptRecord,
            Unavailable.
        """
        return await outcome_of_each(map(self._put, photos, encoded))

    async def _put(self, photo: CheckedPhoto, encoded: Outcome[EncodedPhoto]) -> Outcome[Stored]:
        if isinstance(encoded, Exception):
            return encoded
        stored: Stored = await self._apply(
            Put(photo.id, photo.data, photo.filename, encoded, photo.metadata)
        )
        return stored

    async def delete(self, id: str) -> int:
        """Remove a photo; return the sequence number of the change. See `Delete`.

        Raises:
            UnknownId, StoreFull, Unavailable
        """
        sequence: int = await self._apply(Delete(id))
        return sequence

    async def keep_thumbnail(self, id: str, sha256: str, data: bytes) -> bool:
        """Store a thumbnail that was made later, see `Keep`; return whether it was stored.

        Raises:
            BadParameter, StoreFull, CorruptRecord, Unavailable
        """
        kept: bool = await self._apply(KeepThumbnail(id, sha256, data))
        return kept

    async def keep_preview(self, id: str, sha256: str, data: bytes) -> bool:
        """Store a preview that was made later, see `Keep`; return whether it was stored.

        Raises:
            BadParameter, StoreFull, CorruptRecord, Unavailable
        """
        kept: bool = await self._apply(KeepPreview(id, sha256, data))
        return kept

    async def find(self, wanted: list[tuple[str, str]]) -> list[Outcome[Record | None]]:
        """See `Store.find_all`."""
        return await self._read(self.store.find_all, wanted)

    async def record(self, id: str) -> Record:
        """See `Store.record`."""
        return await self._read(self.store.record, id)

    async def records(self, ids: list[str]) -> tuple[list[bytes | None], int]:
        """Return records as JSON, None for missing ones, and a sequence number read after them.

        They are sent as they are stored, because the JSON of a photo's chunks is parsed
        faster than their pickle is loaded.
        """
        return await self._read(lambda: (self.store.records(ids), self.store.sequence))

    async def get(self, id: str) -> tuple[Record, bytes]:
        """See `Store.original`."""
        return await self._read(self.store.original, id)

    async def thumbnail(self, id: str) -> bytes | None:
        """See `Store.thumbnail`."""
        return await self._read(self.store.thumbnail, id)

    async def previews(self, ids: list[str]) -> list[Preview | None]:
        """See `Store.previews`."""
        return await self._read(self.store.previews, ids)

    async def original(self, id: str) -> bytes:
        """Return the original bytes alone, for the encoder to search by a stored photo."""
        _, data = await self.get(id)
        return data

    async def original_part(self, id: str, sha256: str, start: int, stop: int) -> bytes | None:
        """See `Store.original_part`."""
        return await self._read(self.store.original_part, id, sha256, start, stop)

    async def records_after(self, after: str | None, limit: int, compact: bool) -> list[bytes]:
        """See `Store.records_after`. They are sent as JSON for the same reason as in `records`."""
        return await self._read(self.store.records_after, after, limit, compact)

    async def changes(
        self, position: Position | None, wait_s: float, follower: str, kept: Position | None
    ) -> Changes:
        """See `Store.changes`; if there are none, wait for one, at most `wait_s` seconds.

        Args:
            follower: a name that only the caller uses.
            kept: where the caller would go on after a restart; None if it would begin with nothing.
        """
        changes = await self._read(self.store.changes, position, CHANGES_BYTES)
        if not changes.anew and changes.position == position and wait_s > 0:
            async with self._changed:
                with suppress(TimeoutError):
                    await asyncio.wait_for(
                        self._changed.wait_for(lambda: self._sequence > position.sequence), wait_s
                    )
            changes = await self._read(self.store.changes, position, CHANGES_BYTES)
        known = changes.position if changes.anew else position
        assert known is not None  # without a position the changes begin anew
        self._followers.heard(follower, known, kept)
        floor = self._followers.cut_now()
        if floor is not None:
            self._cutting = asyncio.create_task(asyncio.to_thread(self._cut_log, floor))
        return changes

    async def room(self) -> tuple[int, int]:
        """Return the number of the last change, and how many bytes can still be stored."""
        return self._sequence, await self._read(self.store.room)

    async def stats(self) -> StoreState:
        """See `Store.stats`."""
        return await self._read(self.store.stats)

    async def check_health(self) -> None:
        """Raise an error if the disk has failed, so that Serve replaces the replica."""
        if self.store.failed:
            raise RuntimeError("the disk of the store has failed: it must be opened again")

    async def ping(self) -> None:
        """Answer, to show that the replica is alive."""

    async def _apply(self, operation: Operation) -> Any:
        loop = asyncio.get_running_loop()
        prepared = await loop.run_in_executor(self._preparing, self.store.prepare, operation)
        return await self._commit((count_pieces(prepared), prepared))

    async def _read(self, read: Callable[[*Arguments], T], *arguments: *Arguments) -> T:
        return await self._reads.run(self._reading, lambda: read(*arguments))

    async def _commit_together(self, group: list[Sized]) -> list[Result]:
        loop = asyncio.get_running_loop()
        operations = [operation for _, operation in group]
        results, sequence = await loop.run_in_executor(
            self._writing, lambda: (self.store.commit(operations), self.store.sequence)
        )
        async with self._changed:
            self._sequence = sequence
            self._changed.notify_all()
        return results

    def _cut_log(self, sequence: int) -> None:
        try:
            if self.store.deletions >= CUT_WORTH + REPEATABLE:
                removed = self.store.cut_log(min(sequence, self.store.sequence - REPEATABLE))
                logger.info("%d deletions were cut from the log", removed)
        except Exception:  # nothing is lost, the log is only longer than necessary
            logger.warning("the log can't be cut, trying again later", exc_info=True)


def count_pieces(operation: Prepared) -> int:
    """Return the size of an operation in a group, in pieces. Alone it always fits into one."""
    return min(1 + (added_bytes(operation) or 0) // PIECE_BYTES, GROUP_PIECES)


def _open(settings: StoreSettings, encoder: EncoderIdentity) -> Store:
    """Open the store as soon as its disk works.

    A replica that doesn't start would be replaced, but not for ever: a controller that was itself
    restarted since the store's last replica died gives up after three.

    Raises:
        StoreUnusable, EncoderMismatch
    """
    while True:
        try:
            return Store(settings.path, encoder, max_bytes=settings.max_bytes)
        except StoreDiskFailed as error:
            logger.error("%s Trying again.", error)
            time.sleep(OPEN_AGAIN_S)
