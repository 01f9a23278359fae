"""An index that follows the store's log."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from deployments.chunk_index.index import ChunkIndex
from deployments.errors import UnknownSequence
from deployments.handles import StoreHandle
from deployments.records import Change, Changes, Position

logger = logging.getLogger(__name__)

# How long the store holds back its answer while nothing changes. Stopping the service takes as
# long.
POLL_S = 2
RETRY_S = 0.5
# A replica that could not follow for this long is replaced. A store that died is there again within
# half a minute even on a busy machine, and to replace the index wouldn't help it.
UNFOLLOWED_S = 60


class Follower:
    """An index that follows the store, and its position in the store's log.

    Args:
        store: a handle of the Store.
        make: returns an empty index.
        load: returns the index of the newest snapshot and its position; None if there is none.

    Attributes:
        index: the index to search.
        position: how far it has followed the log; None before `start`.
        snapshot: the position of the latest snapshot; None if there is none.
        unsaved: number of chunks that were added, removed, linked or moved since the snapshot.
        changed_at: time of the last change, seconds on the monotonic clock.
    """

    def __init__(
        self,
        store: StoreHandle,
        make: Callable[[], ChunkIndex],
        load: Callable[[], tuple[ChunkIndex, Position] | None],
    ) -> None:
        self.store = store
        self.index = make()
        self.position: Position | None = None
        self.snapshot: Position | None = None
        self.unsaved = 0
        self.changed_at = time.monotonic()
        self._make = make
        self._load = load
        self._name = uuid.uuid4().hex  # by which the store knows this replica
        self._followed_at = time.monotonic()
        self._loading = self._loading_failed = False
        self._moved = asyncio.Condition()
        self._polls = 0  # number of polls that have begun
        self._last_poll = 0, 0  # its number, and the store's last change according to its answer

    async def start(self) -> None:
        """Load the newest snapshot, if there is one, and apply the store's changes since then."""
        with self._loading_anew():
            index, position = await asyncio.to_thread(self._load) or (self._make(), None)
            self.snapshot = position
            index, position = await self._catch_up(index, position)
        self._followed_at = time.monotonic()
        self._last_poll = self._polls, position.sequence
        self.unsaved = 0 if self.snapshot else index.chunks
        self.changed_at = time.monotonic()
        await self._publish(index, position)

    async def wait_for(self, sequence: int) -> int:
        """Wait until the index knows a change of the store.

        Returns:
            The sequence number of the last change that it knows.

        Raises:
            UnknownSequence: the store has no such change.
        """
        async with self._moved:
            polls = self._polls

            def is_missing() -> bool:
                # Only a poll that began after this call can tell.
                poll, last = self._last_poll
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
        """The sequence number of the last change that the index knows."""
        return 0 if self.position is None else self.position.sequence

    @property
    def unfollowed_s(self) -> float:
        """Seconds since it last followed the log; it does so at least every `POLL_S`.

        To load an index anew may take minutes, and is no trouble unless it has failed before.
        """
        if self._loading and not self._loading_failed:
            return 0
        return time.monotonic() - self._followed_at

    @contextmanager
    def _loading_anew(self) -> Iterator[None]:
        self._loading = True
        try:
            yield
        except BaseException:
            self._loading_failed = True
            raise
        else:
            self._loading_failed = False
        finally:
            self._loading = False

    async def follow(self) -> None:
        """Follow the store until this is cancelled. A broken index is loaded anew."""
        while True:
            try:
                if self.index.broken:
                    logger.error("the index is broken: throwing it away and loading it anew")
                    await asyncio.to_thread(self.index.give_up)  # its memory is needed now
                    await self.start()
                await self._advance()
            except CannotApply as error:
                logger.error("%s; trying again", error, exc_info=True)
                await asyncio.sleep(RETRY_S)
            except Exception as error:  # for example, the store is restarting
                task = asyncio.current_task()
                if task and task.cancelling():  # Ray answers a cancelled call with its own error
                    raise asyncio.CancelledError from error
                logger.warning("can't follow the store's log; trying again", exc_info=True)
                await asyncio.sleep(RETRY_S)

    async def _catch_up(
        self, index: ChunkIndex, position: Position | None
    ) -> tuple[ChunkIndex, Position]:
        """Apply the store's changes to an index until there are no more."""
        while True:
            changes = await self._ask(position, wait_s=0)
            if changes.anew and position is not None:
                logger.warning(
                    "this is another store, or it no longer knows all deletions since the last "
                    "change here: loading everything again"
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
        index = self.index
        self._polls += 1
        poll = self._polls
        changes = await self._ask(self.position, POLL_S)
        if changes.anew:
            with self._loading_anew():
                index, position = await self._catch_up(self._make(), None)
            self.unsaved = index.chunks
        else:
            try:
                await asyncio.to_thread(_apply, index, changes.changes)
            except CannotApply as error:
                if not index.broken:  # the changes before it are applied
                    reached = replace(changes.position, sequence=error.change.sequence - 1)
                    await self._publish(index, reached)
                raise
            position = changes.position
        self._followed_at = time.monotonic()
        if changes.changes:
            self.changed_at = time.monotonic()
            self.unsaved += sum(
                1 if change.vectors is None else len(change.vectors) for change in changes.changes
            )
        self._last_poll = poll, changes.last
        await self._publish(index, position)

    async def _publish(self, index: ChunkIndex, position: Position) -> None:
        async with self._moved:
            self.index, self.position = index, position
            self._moved.notify_all()


class CannotApply(Exception):
    """A change of the store could not be applied to the index.

    Attributes:
        change: the change; all before it are applied.
    """

    def __init__(self, change: Change, reason: Exception) -> None:
        what = "removal" if change.vectors is None else "put"
        super().__init__(
            f"can't apply change {change.sequence} of the store to the index, the {what} of "
            f"{change.id!r} ({reason!r})"
        )
        self.change = change


def _apply(index: ChunkIndex, changes: Sequence[Change]) -> None:
    for change in changes:
        try:
            if change.vectors is None:
                index.remove(change.id)
            else:
                index.put(change.id, change.vectors, change.metadata)
        except Exception as error:
            raise CannotApply(change, error) from error
