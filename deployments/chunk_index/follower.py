"""An index that follows the store's log."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence

from deployments.chunk_index.index import ChunkIndex
from deployments.errors import UnknownSequence
from deployments.handles import StoreHandle
from deployments.records import Change, Changes, Position

logger = logging.getLogger(__name__)

# How long the store holds its answer while nothing changes. Stopping the service waits for it.
POLL_S = 2
RETRY_S = 0.5


class Follower:
    """An index, and how far it has followed the store.

    Args:
        store: the deployment.
        make: returns an empty index.
        index, position: what to begin with; position None if the index is empty.

    Attributes:
        index: what to search.
        position: the changes that are in it; None before `start`.
        snapshot: the changes that are in the snapshot it would begin with after a restart.
        unsaved: chunks that came, went or were linked since the snapshot.
        changed_at: when something last changed, seconds on the monotonic clock.
    """

    def __init__(
        self,
        store: StoreHandle,
        make: Callable[[], ChunkIndex],
        index: ChunkIndex,
        position: Position | None,
    ) -> None:
        self.store = store
        self.index = index
        self.position = self.snapshot = position
        self.unsaved = 0
        self.changed_at = time.monotonic()
        self._make = make
        self._name = uuid.uuid4().hex  # what the store knows this replica by
        self._moved = asyncio.Condition()
        self._polls = 0  # how many have begun
        self._heard = 0, 0  # the number of a poll, and the store's last change by its answer

    async def start(self) -> None:
        """Load what the store has and the index lacks."""
        self.index, self.position = await self._catch_up(self.index, self.position)
        self._heard = 0, self.position.sequence
        self.unsaved = 0 if self.snapshot else self.index.chunks
        self.changed_at = time.monotonic()

    async def wait_for(self, sequence: int) -> int:
        """Wait until a change of the store is known.

        Returns:
            The change up to which everything is known.

        Raises:
            UnknownSequence: the store has no such change.
        """
        async with self._moved:
            polls = self._polls

            def is_missing() -> bool:
                # Only the answer to a question that was asked since then can tell.
                poll, last = self._heard
                return poll > polls and last < sequence

            await self._moved.wait_for(lambda: self.sequence >= sequence or is_missing())
            known = self.sequence
        if known < sequence:
            raise UnknownSequence(
                f"The change {sequence} has not happened: the store's last change is {known}."
            )
        return known

    @property
    def sequence(self) -> int:
        """The change up to which everything is known."""
        return 0 if self.position is None else self.position.sequence

    async def follow(self) -> None:
        """Follow the store for ever."""
        while True:
            try:
                await self._advance()
            except Exception:  # the store is being restarted: it is the truth, so wait for it
                logger.warning("can't read the store's log, trying again", exc_info=True)
                await asyncio.sleep(RETRY_S)

    async def load_anew(self, build: Callable[[ChunkIndex], Awaitable[bool]]) -> None:
        """Load everything anew beside the index, without what was removed; then take its place.

        Args:
            build: does a little of the work that makes searches faster; returns whether there is
                more. It is done before the new index is searched.
        """
        index, position = await self._catch_up(self._make(), None)
        while await build(index):
            pass
        while position.sequence < self.sequence:
            index, position = await self._catch_up(index, position)
        self.unsaved = index.chunks
        await self._show(index, position)

    async def _catch_up(
        self, index: ChunkIndex, position: Position | None
    ) -> tuple[ChunkIndex, Position]:
        """Apply the store's changes to an index until there are no more."""
        while True:
            changes = await self._ask(position, wait_s=0)
            if changes.anew and position is not None:
                logger.warning(
                    "the store is another one, or has forgotten what was removed since: "
                    "loading all of it"
                )
                index = self._make()
            await asyncio.to_thread(_apply, index, changes.changes)
            position = changes.position
            if position.sequence >= changes.last:
                return index, position

    async def _ask(self, position: Position | None, wait_s: float) -> Changes:
        return await self.store.changes.remote(position, wait_s, self._name, self.snapshot)

    async def _advance(self) -> None:
        """Apply the store's next changes, or find out that there are none."""
        index, asked = self.index, self.position
        self._polls += 1
        poll = self._polls
        changes = await self._ask(asked, POLL_S)
        if changes.anew:
            index, position = await self._catch_up(self._make(), None)
            self.unsaved = index.chunks
        else:
            await asyncio.to_thread(_apply, index, changes.changes)
            position = changes.position
        if changes.changes:
            self.changed_at = time.monotonic()
            self.unsaved += sum(
                1 if change.vectors is None else len(change.vectors) for change in changes.changes
            )
        if self.position is asked:  # else it was loaded anew meanwhile: ask again for that
            self._heard = poll, changes.last
            await self._show(index, position)

    async def _show(self, index: ChunkIndex, position: Position) -> None:
        async with self._moved:
            self.index, self.position = index, position
            self._moved.notify_all()


def _apply(index: ChunkIndex, changes: Sequence[Change]) -> None:
    for change in changes:
        if change.vectors is None:
            index.remove(change.id)
        else:
            index.put(change.id, change.vectors, change.metadata)
