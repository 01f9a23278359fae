"""The store as a deployment: writers share transactions, and followers read the log."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any

from ray import serve

from deployments.compute.batching import batched
from deployments.errors import EncoderMismatch, InsetError, keep_answers_out_of_the_log
from deployments.records import (
    Changes,
    EncodedPhoto,
    EncoderIdentity,
    Metadata,
    Position,
    Record,
    Stored,
    StoreState,
)
from deployments.settings import HEALTH_CHECK_S, StoreSettings
from deployments.startup import ending_serve_run
from deployments.store.followers import Followers
from deployments.store.format import Delete, KeepThumbnail, Result
from deployments.store.store import Operation, Put, Store

logger = logging.getLogger(__name__)

# Most requests in one transaction: larger groups were measured to be slower for each of them.
GROUP_SIZE = 16
# Vectors in one answer to a replica of the chunk index that loads or follows.
CHANGES_BYTES = 16 * 2**20

# Fewer deletions in the log than this aren't worth a cut.
CUT_WORTH = 5000


@serve.deployment(
    name="Store",
    max_ongoing_requests=512,
    health_check_period_s=HEALTH_CHECK_S,
    ray_actor_options={"num_cpus": 0},
)
class StoreDeployment:
    """A `Store` whose writers share transactions: while one syncs, the next group gathers."""

    def __init__(self, settings: StoreSettings, encoder: EncoderIdentity) -> None:
        keep_answers_out_of_the_log()
        with ending_serve_run(EncoderMismatch):
            self.store = Store(settings.path, encoder, max_bytes=settings.max_bytes)
        self._sequence = self.store.sequence
        self._apply = batched(self._apply_together, max_batch_size=GROUP_SIZE)
        self._changed = asyncio.Condition()
        self._followers = Followers()
        self._cutting: asyncio.Task[None] | None = None

    async def put(
        self,
        id: str,
        data: bytes,
        filename: str | None,
        photo: EncodedPhoto,
        metadata: Metadata,
    ) -> Stored:
        """Store a photo; when this returns it is on disk.

        Raises:
            BadParameter, IdTaken, StoreFull, CorruptRecord
        """
        stored: Stored = await self._apply_one(Put(id, data, filename, photo, metadata))
        return stored

    async def delete(self, id: str) -> int:
        """Remove a photo; returns the sequence number of the change.

        Raises:
            UnknownId, StoreFull, CorruptRecord
        """
        sequence: int = await self._apply_one(Delete(id))
        return sequence

    async def keep_thumbnail(self, id: str, sha256: str, data: bytes) -> bool:
        """Store a thumbnail that was made later; see `KeepThumbnail`. Returns whether it was.

        Raises:
            BadParameter, StoreFull, CorruptRecord
        """
        kept: bool = await self._apply_one(KeepThumbnail(id, sha256, data))
        return kept

    async def find(self, id: str, sha256: str) -> Record | None:
        """Return the record if this content is stored under this id, None if the id is free.

        Raises:
            IdTaken, CorruptRecord
        """
        return self.store.find(id, sha256)

    async def record(self, id: str) -> Record:
        """See `Store.record`."""
        return self.store.record(id)

    async def records(self, ids: list[str]) -> tuple[list[bytes | None], int]:
        """Return records, and the sequence number as of which one that is missing is gone.

        They travel as they are stored: the JSON of a photo's forty chunks is read faster than
        their pickle.
        """
        return self.store.records(ids), self.store.sequence

    async def get(self, id: str) -> tuple[Record, bytes]:
        """See `Store.original`."""
        return await asyncio.to_thread(self.store.original, id)

    async def thumbnail(self, id: str) -> bytes | None:
        """See `Store.thumbnail`."""
        return self.store.thumbnail(id)

    async def original(self, id: str) -> bytes:
        """Return the bytes alone: what the encoder needs to search by a stored photo."""
        _, data = await self.get(id)
        return data

    async def records_after(self, after: str | None, limit: int) -> list[Record]:
        """See `Store.records_after`."""
        return await asyncio.to_thread(self.store.records_after, after, limit)

    async def changes(
        self, position: Position | None, wait_s: float, follower: str, kept: Position | None
    ) -> Changes:
        """See `Store.changes`; when there are none, wait for one, but no longer than `wait_s`.

        Args:
            follower: a name of the caller that nobody else has.
            kept: where it would go on if it were restarted; None: it would begin with nothing.
        """
        changes = await asyncio.to_thread(self.store.changes, position, CHANGES_BYTES)
        if not changes.anew and changes.position == position and wait_s > 0:
            async with self._changed:
                with suppress(TimeoutError):
                    await asyncio.wait_for(
                        self._changed.wait_for(lambda: self._sequence > position.sequence), wait_s
                    )
            changes = await asyncio.to_thread(self.store.changes, position, CHANGES_BYTES)
        known = changes.position if changes.anew else position
        assert known is not None  # whoever knows nothing begins anew
        self._followers.heard(follower, known, kept)
        floor = self._followers.cut_now()
        if floor is not None:
            self._cutting = asyncio.create_task(asyncio.to_thread(self._cut_log, floor))
        return changes

    async def stats(self) -> StoreState:
        """See `Store.stats`."""
        return self.store.stats()

    async def ping(self) -> None:
        """Answer, to show that it can."""

    async def _apply_one(self, operation: Operation) -> Any:
        result = await self._apply(operation)
        if isinstance(result, InsetError):
            raise result
        return result

    async def _apply_together(self, operations: list[Operation]) -> list[Result]:
        results = await asyncio.to_thread(self.store.apply, operations)
        async with self._changed:
            self._sequence = self.store.sequence
            self._changed.notify_all()
        return results

    def _cut_log(self, sequence: int) -> None:
        try:
            if self.store.deletions >= CUT_WORTH:
                removed = self.store.cut_log(sequence)
                logger.info("%d deletions were cut from the log", removed)
        except Exception:  # nothing is lost: the log is longer than it need be
            logger.warning("the log can't be cut, trying again later", exc_info=True)
