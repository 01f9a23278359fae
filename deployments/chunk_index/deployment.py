"""The chunk index as a deployment, which follows the store and ranks photos."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ray import serve

from deployments.chunk_index.follower import UNFOLLOWED_S, Follower
from deployments.chunk_index.index import ChunkIndex
from deployments.chunk_index.maintenance import Maintenance
from deployments.chunk_index.metrics import measure_index
from deployments.chunk_index.snapshots import Snapshots
from deployments.compute.batching import batched
from deployments.compute.replicas import HUGE_PAGES_REPLICA, compute_threads
from deployments.handles import StoreHandle
from deployments.logs import join_the_log
from deployments.metadata import Filter
from deployments.query import SearchOptions
from deployments.ranker import Ranker
from deployments.records import IndexState, Neighbours, Position, RankedPhoto
from deployments.settings import HEALTH_CHECK_S, ChunkIndexSettings

MAX_BATCH = 32  # searches


class Search(NamedTuple):
    """A search for the `limit` photos nearest to `query` that match `filter`."""

    query: np.ndarray
    limit: int
    filter: Filter | None


@serve.deployment(
    name="ChunkIndex",
    max_ongoing_requests=256,
    max_queued_requests=512,
    health_check_period_s=HEALTH_CHECK_S,
    ray_actor_options=HUGE_PAGES_REPLICA,
)
class ChunkIndexDeployment:
    """A `ChunkIndex` that follows the store, and the `Ranker` that ranks its photos.

    A new replica loads a snapshot, then the store's changes since.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        settings: ChunkIndexSettings,
        dimension: int,
        ranker: Ranker,
        store: StoreHandle,
    ) -> None:
        join_the_log()
        self.ranker = ranker

        def make() -> ChunkIndex:
            return ChunkIndex(dimension, settings)

        def load() -> tuple[ChunkIndex, Position] | None:
            index = make()
            position = snapshots.read(index.load)
            return (index, position) if position else None

        assert settings.path is not None  # `Settings.parse` has set it
        snapshots = self.snapshots = Snapshots(settings.path, make().kind)
        self.follower = Follower(store, make, load)
        await self.follower.start()
        self.maintenance = Maintenance(self.follower, snapshots)
        measure_index(self.follower, snapshots)
        self._threads = compute_threads(None)
        self._search = batched(self._search_batch, stage="rank", max_batch_size=MAX_BATCH)
        self._tasks = [
            asyncio.create_task(self.follower.follow()),
            asyncio.create_task(self.maintenance.run()),
        ]

    async def rank(
        self, query: np.ndarray, options: SearchOptions, sequence: int
    ) -> tuple[list[RankedPhoto], int]:
        """Rank the photos nearest to a query, as soon as the index knows a change of the store.

        Args:
            query: float32 `[dimension]`, L2-normalised.
            sequence: number of the change.

        Returns:
            The photos, and the sequence number of the last change that the index knew.

        Raises:
            UnknownSequence: the store has no such change.
        """
        known = await self.follower.wait_for(sequence)

        async def fetch(count: int) -> Neighbours:
            return await self._search(Search(query, count, options.filter))

        ranked = await self.ranker.rank(
            fetch, options.limit, options.max_distance, options.max_chunks
        )
        return ranked, known

    async def rank_all(
        self, queries: np.ndarray, options: SearchOptions, sequence: int
    ) -> list[list[RankedPhoto]]:
        """Rank the photos nearest to each of several queries; see `rank`.

        Args:
            queries: float32 `[n, dimension]`, L2-normalised.
        """
        answers = await asyncio.gather(*(self.rank(query, options, sequence) for query in queries))
        return [ranked for ranked, _ in answers]

    async def stats(self) -> IndexState:
        """Return what the index holds."""
        index, snapshot = self.follower.index, self.follower.snapshot
        return IndexState(
            engine=index.engine,
            photos=index.photos,
            chunks=index.chunks,
            sequence=self.follower.sequence,
            digest=await asyncio.to_thread(lambda: index.digest),
            waiting=index.waiting,
            removed=index.removed,
            snapshot=snapshot.sequence if snapshot else None,
            snapshot_bytes=await asyncio.to_thread(self.snapshots.disk_bytes),
        )

    async def lag(self) -> tuple[int, float]:
        """Return the last change that the index knows, and since when it has heard of none, s."""
        return self.follower.sequence, self.follower.unfollowed_s

    async def ping(self) -> None:
        """Do nothing; an answer shows that the replica is ready."""

    async def check_health(self) -> None:
        """Raise an error if this replica should be replaced by Serve.

        A background task has ended, or the store's log could not be followed for long.
        """
        for task in self._tasks:
            if task.done():
                raise RuntimeError(
                    "a background task of the chunk index has ended"
                ) from task.exception()
        unfollowed_s = self.follower.unfollowed_s
        if unfollowed_s > UNFOLLOWED_S:
            raise RuntimeError(f"the store's log could not be followed for {unfollowed_s:.0f} s")

    async def _search_batch(self, searches: list[Search]) -> list[Neighbours]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._threads, _search_together, self.follower.index, searches
        )


def _search_together(index: ChunkIndex, searches: Sequence[Search]) -> list[Neighbours]:
    """Answer searches; those with the same filter are made together."""
    answers: dict[int, Neighbours] = {}
    for filter in {search.filter for search in searches}:
        places = [place for place, search in enumerate(searches) if search.filter == filter]
        queries = np.stack([searches[place].query for place in places])
        limits = [searches[place].limit for place in places]
        answers.update(zip(places, index.search(queries, limits, filter), strict=True))
    return [answers[place] for place in range(len(searches))]
