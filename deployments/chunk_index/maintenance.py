"""The upkeep of an index beside its searches: building, snapshots, and room taken back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from deployments.chunk_index.follower import RETRY_S, Follower
from deployments.chunk_index.index import ChunkIndex
from deployments.chunk_index.snapshots import Snapshots
from deployments.compute.replicas import compute_threads

logger = logging.getLogger(__name__)

PAUSE_S = 0.2  # when there is nothing to do
# What waits to be built is built when there is so much of it, or when nothing has changed for a
# moment: in small portions each chunk takes longer.
BUILD_CHUNKS = 1024
QUIET_S = 1
# A snapshot is written when so many chunks came or went, and this share of all; or when fewer did
# and nothing has changed for a minute. Writing takes at most a twentieth of the time. An index that
# is smaller than this is read from the log as quickly as from a snapshot.
SNAPSHOT_CHUNKS = 10_000
SNAPSHOT_SHARE = 0.02
SNAPSHOT_QUIET_S = 60
SNAPSHOT_EVERY = 20
# The vectors of removed photos stay until they are more than the others.
RENEWAL_CHUNKS = 10_000


class Maintenance:
    """Builds, saves and renews the index of a follower.

    Args:
        follower: has the index.
        snapshots: where it is saved.
    """

    def __init__(self, follower: Follower, snapshots: Snapshots) -> None:
        self.follower = follower
        self._snapshots = snapshots
        self._save_after = time.monotonic()
        self._threads = compute_threads(None)

    async def run(self) -> None:
        """Look after the index for ever."""
        while True:
            try:
                if not await self._work():
                    await asyncio.sleep(PAUSE_S)
            except Exception as error:  # searches are right without it, only slower
                logger.warning("can't maintain the index, trying again: %s", error, exc_info=True)
                await asyncio.sleep(RETRY_S)

    async def save(self) -> None:
        """Write a snapshot; if that is not possible, log it and try again later."""
        follower = self.follower
        position, unsaved, begun = follower.position, follower.unsaved, time.monotonic()
        assert position is not None  # it has started
        try:
            # The position was taken first: what is applied from here on may be in the snapshot or
            # not, and is read from the log again.
            written = await self._in_thread(self._snapshots.write, follower.index.saver(), position)
        except (OSError, RuntimeError) as error:  # the latter are FAISS's
            logger.warning("can't write a snapshot of the index, trying again later: %s", error)
            self._save_after = time.monotonic() + SNAPSHOT_QUIET_S
            return
        if written:
            follower.snapshot = position
        follower.unsaved -= unsaved
        now = time.monotonic()
        self._save_after = now + SNAPSHOT_EVERY * (now - begun)

    async def renew(self) -> None:
        """Replace the index by a new one, without what was removed."""
        logger.info("most chunks of the index were removed: making a new one")
        await self.follower.load_anew(self._build)

    def must_save(self, quiet_s: float) -> bool:
        """Return whether it is time for a snapshot.

        Args:
            quiet_s: for how long nothing has changed.
        """
        index, unsaved = self.follower.index, self.follower.unsaved
        if index.chunks < SNAPSHOT_CHUNKS or not unsaved:
            return False
        if time.monotonic() < self._save_after:
            return False
        many = max(SNAPSHOT_CHUNKS, SNAPSHOT_SHARE * index.chunks)
        return unsaved >= many or quiet_s >= SNAPSHOT_QUIET_S

    async def _work(self) -> bool:
        """Build, save or renew, if it is time to; return whether there may be more to do."""
        index = self.follower.index
        quiet_s = time.monotonic() - self.follower.changed_at
        if self.must_save(quiet_s):
            await self.save()
        elif index.waiting >= BUILD_CHUNKS or (index.waiting and quiet_s >= QUIET_S):
            return await self._build(index)
        elif index.removed > max(index.chunks, RENEWAL_CHUNKS):
            await self.renew()
        else:
            return False
        return True

    async def _build(self, index: ChunkIndex) -> bool:
        waiting = index.waiting
        more = await self._in_thread(index.build)
        self.follower.unsaved += max(0, waiting - index.waiting)
        return more

    async def _in_thread(self, work: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)
