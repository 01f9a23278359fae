"""Chunk matches to ranked photos."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import numpy as np
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.metadata import Filter
from deployments.records import Neighbours, RankedPhoto
from deployments.settings import HEALTH_CHECK_S, RankerSettings

AGGREGATIONS = {"min": np.min, "mean": np.mean, "max": np.max}


class Ranker:
    """Scores photos by their chunks and answers the true top `limit`.

    A photo's matching chunks are those within `max_distance`; its score is the smallest distance
    among them (`aggregation="min"`), or their mean or maximum. Equal scores are ordered by id.

    Args:
        aggregation: `min`, `mean` or `max`.

    Raises:
        ValueError: an unknown aggregation.
    """

    def __init__(self, aggregation: str = "min") -> None:
        if aggregation not in AGGREGATIONS:
            raise ValueError(
                f"aggregation must be one of {', '.join(AGGREGATIONS)}, not {aggregation!r}"
            )
        self.aggregate = AGGREGATIONS[aggregation]

    async def rank(
        self,
        fetch: Callable[[int], Awaitable[Neighbours]],
        limit: int,
        max_distance: float = 2.0,
    ) -> list[RankedPhoto]:
        """Fetch nearest photos until the best `limit` are certain.

        Args:
            fetch: searches the chunk index for the `count` photos with the nearest chunks.
            limit: how many photos to answer at most.
            max_distance: chunks beyond it don't count.
        """
        count = limit
        while True:
            neighbours = await fetch(count)
            photos = self._score(neighbours, max_distance)[:limit]
            # All chunks of a photo not fetched lie at the horizon or beyond, so its smallest, mean
            # and largest distance do too. At the horizon itself it could still win a tie by its id.
            if neighbours.horizon > max_distance or (
                len(photos) == limit and photos[-1].distance < neighbours.horizon
            ):
                return photos
            count *= 4

    def _score(self, neighbours: Neighbours, max_distance: float) -> list[RankedPhoto]:
        photos = []
        for photo, distances in zip(neighbours.photos, neighbours.distances, strict=True):
            matching = np.flatnonzero(distances <= max_distance)
            if len(matching):
                nearest_first = matching[np.argsort(distances[matching], kind="stable")]
                chunks = [(int(number), float(distances[number])) for number in nearest_first]
                score = float(self.aggregate(distances[matching]))
                photos.append(RankedPhoto(photo, score, chunks))
        return sorted(photos, key=lambda photo: (photo.distance, photo.id))


@serve.deployment(
    name="Ranker",
    max_ongoing_requests=256,
    health_check_period_s=HEALTH_CHECK_S,
    ray_actor_options={"num_cpus": 0},
)
class RankerDeployment:
    """A `Ranker` that fetches from the chunk index through its handle."""

    def __init__(self, settings: RankerSettings, chunk_index: DeploymentHandle) -> None:
        self.ranker = Ranker(settings.aggregation)
        self.chunk_index = chunk_index

    async def rank(
        self,
        query: np.ndarray,
        limit: int,
        max_distance: float,
        sequence: int,
        filter: Filter | None,
    ) -> tuple[list[RankedPhoto], int]:
        """Rank the photos that match a filter, as of the store's change `sequence` or later.

        Returns:
            The photos, and the change as of which they were ranked.

        Raises:
            UnknownSequence: the store has no such change.
        """
        seen = []

        async def fetch(count: int) -> Neighbours:
            neighbours, change = await self.chunk_index.search.remote(
                query, count, sequence, filter
            )
            seen.append(change)
            return neighbours

        ranked = await self.ranker.rank(fetch, limit, max_distance)
        return ranked, min(seen)

    async def ping(self) -> None:
        """Answer, to show that it can."""
