"""The maintenance of an index during searches: building it, saving it, and freeing memory."""

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
from deployments.memory import give_back

logger = logging.getLogger(__name__)

PAUSE_S = 0.2  # when there is nothing to do
# The graph is built when this many chunks wait, or when nothing has changed for this long: small
# steps take longer per chunk.
BUILD_CHUNKS = 1024
QUIET_S = 1
# A snapshot is written when at least this many chunks, and this share of all, have changed; or when
# fewer have and nothing changes for a minute. Writing takes at most a twentieth of the time. A
# smaller index has no snapshot: reading the log is as quick.
SNAPSHOT_CHUNKS = 10_000
SNAPSHOT_SHARE = 0.02
SNAPSHOT_QUIET_S = 60
SNAPSHOT_EVERY = 20
# A renewal that failed, perhaps because memory ran out, is not tried again for this long.
RENEWAL_AGAIN_S = 600


class Maintenance:
    """Builds, saves and renews the index of a follower.

    Args:
        follower: the follower that has the index.
        snapshots: where to save the index.
    """

    def __init__(self, follower: Follower, snapshots: Snapshots) -> None:
        self.follower = follower
        self._snapshots = snapshots
        self._save_after = self._renew_after = time.monotonic()
        self._threads = compute_threads(None)

    async def run(self) -> None:
        """Maintain the index forever."""
        while True:
            try:
                if not await self._work():
                    await asyncio.sleep(PAUSE_S)
            except Exception as error:  # searches are correct without maintenance, only slower
                logger.warning("can't maintain the index; trying again: %s", error, exc_info=True)
                await asyncio.sleep(RETRY_S)

    async def save(self) -> None:
        """Write a snapshot; if it can't be written, log the error and try again later."""
        follower = self.follower
        position, unsaved, begun = follower.position, follower.unsaved, time.monotonic()
        assert position is not None  # it has started
        try:
            # The position was taken first. Changes that are applied from here on may be in the
            # snapshot or not; after a restart they are read from the log again.
            index = follower.index
            written = await self._in_thread(self._snapshots.write, index.parts(), position)
        except (OSError, RuntimeError) as error:  # FAISS raises RuntimeError
            logger.warning("can't write a snapshot of the index; trying again later: %s", error)
            self._save_after = time.monotonic() + SNAPSHOT_QUIET_S
            return
        if written:
            follower.snapshot = position
        follower.unsaved -= unsaved
        now = time.monotonic()
        self._save_after = now + SNAPSHOT_EVERY * (now - begun)

    async def renew(self) -> bool:
        """Free some of what removed photos take; return whether there may be more to do."""
        index = self.follower.index
        removed = index.removed
        try:
            moved = await self._in_thread(index.renew)
        except BaseException:
            self._renew_after = time.monotonic() + RENEWAL_AGAIN_S
            raise
        self.follower.unsaved += moved
        if index.removed < removed:  # a segment was dropped
            await self._in_thread(give_back)
        return bool(moved)

    def must_save(self, quiet_s: float) -> bool:
        """Return whether it is time for a snapshot.

        Args:
            quiet_s: seconds since the last change.
        """
        index, unsaved = self.follower.index, self.follower.unsaved
        if index.chunks < SNAPSHOT_CHUNKS or not unsaved:
            return False
        if time.monotonic() < self._save_after:
            return False
        many = max(SNAPSHOT_CHUNKS, SNAPSHOT_SHARE * index.chunks)
        return unsaved >= many or quiet_s >= SNAPSHOT_QUIET_S

    async def _work(self) -> bool:
        """Save, build or renew the index if it is time; return whether there may be more to do."""
        index = self.follower.index
        quiet_s = time.monotonic() - self.follower.changed_at
        if self.must_save(quiet_s):
            await self.save()
            return True
        if index.waiting >= BUILD_CHUNKS and await self._build(index):
            return True
        if time.monotonic() >= self._renew_after and await self.renew():
            return True
        return bool(index.waiting) and quiet_s >= QUIET_S and await self._build(index)

    async def _build(self, index: ChunkIndex) -> bool:
        waiting = index.waiting
        more = await self._in_thread(index.build)
        self.follower.unsaved += max(0, waiting - index.waiting)
        return more

    async def _in_thread(self, work: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)
