"""Rank photos by the distances of their chunks.

The Ranker works inside a replica of the ChunkIndex: a process of its own would add a call to each
search.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import numpy as np

from deployments.query import MAX_LIMIT
from deployments.records import Neighbours, RankedPhoto
from deployments.settings import RankerSettings

# The photos that mean and max put in order: not fewer than an answer can have. It is the same
# number for each search, so that a larger limit only adds photos to the answer.
ORDERED = MAX_LIMIT
AGGREGATIONS: dict[str, Callable[[np.ndarray], np.floating]] = {
    "min": np.min,
    "mean": np.mean,
    "max": np.max,
}


class Ranker:
    """Scores photos by their chunks, and returns exactly the best ones.

    A photo's matching chunks are those within `max_distance`. Its score is the smallest distance
    of them (`aggregation="min"`), or their mean or maximum. Equal scores are ordered by id.

    The best photos by mean or maximum may lie anywhere. To look at all photos would take seconds,
    so these put the `ORDERED` photos in order that have the nearest chunks.

    Args:
        settings: the aggregation: `min`, `mean` or `max`.
    """

    def __init__(
        self,
        settings: RankerSettings = RankerSettings(),  # noqa: B008  (frozen)
    ) -> None:
        self.aggregate = AGGREGATIONS[settings.aggregation]
        self._is_nearest_chunk = settings.aggregation == "min"

    async def rank(
        self,
        fetch: Callable[[int], Awaitable[Neighbours]],
        limit: int,
        max_distance: float = 2.0,
        max_chunks: int | None = None,
    ) -> list[RankedPhoto]:
        """Return the best photos.

        Args:
            fetch: returns this many photos with the nearest chunks from the chunk index; of those
                that tie, the ones with the smallest ids.
            limit: how many photos to return at most.
            max_distance: chunks beyond it don't match.
            max_chunks: how many of a photo's matching chunks to return at most, the nearest first;
                None for all. The score takes all of them into account.
        """
        neighbours = await fetch(limit if self._is_nearest_chunk else ORDERED)
        return self._score(neighbours, max_distance, max_chunks)[:limit]

    def _score(
        self, neighbours: Neighbours, max_distance: float, max_chunks: int | None
    ) -> list[RankedPhoto]:
        photos = []
        for photo, distances in zip(neighbours.photos, neighbours.distances, strict=True):
            matching = np.flatnonzero(distances <= max_distance)
            if len(matching):
                nearest_first = matching[np.argsort(distances[matching], kind="stable")]
                nearest_first = nearest_first[:max_chunks]
                chunks = [(int(number), float(distances[number])) for number in nearest_first]
                score = float(self.aggregate(distances[matching]))
                photos.append(RankedPhoto(photo, score, chunks))
        return sorted(photos, key=lambda photo: (photo.distance, photo.id))
