"""Chunk matches to ranked photos.

The ranker works in the replica of the chunk index, where the distances are: it may ask several
times, always the same replica, and a process of its own would be one more hop for each search.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import numpy as np

from deployments.records import Neighbours, RankedPhoto
from deployments.settings import RankerSettings

AGGREGATIONS = {"min": np.min, "mean": np.mean, "max": np.max}


class Ranker:
    """Scores photos by their chunks and answers the true top `limit`.

    A photo's matching chunks are those within `max_distance`; its score is the smallest distance
    among them (`aggregation="min"`), or their mean or maximum. Equal scores are ordered by id.

    Args:
        settings: the aggregation, `min`, `mean` or `max`.
    """

    def __init__(
        self,
        settings: RankerSettings = RankerSettings(),  # noqa: B008  (frozen)
    ) -> None:
        self.aggregate = AGGREGATIONS[settings.aggregation]

    async def rank(
        self,
        fetch: Callable[[int], Awaitable[Neighbours]],
        limit: int,
        max_distance: float = 2.0,
        max_chunks: int | None = None,
    ) -> list[RankedPhoto]:
        """Fetch nearest photos until the best `limit` are certain.

        Args:
            fetch: searches the chunk index for the `count` photos with the nearest chunks.
            limit: how many photos to answer at most.
            max_distance: chunks beyond it don't count.
            max_chunks: how many chunks of a photo to answer at most, the nearest; None: all that
                match. All that match count.
        """
        count = limit
        while True:
            neighbours = await fetch(count)
            photos = self._score(neighbours, max_distance, max_chunks)[:limit]
            # All chunks of a photo not fetched lie at the horizon or beyond, so its smallest, mean
            # and largest distance do too. At the horizon itself it could still win a tie by its id.
            if neighbours.horizon > max_distance or (
                len(photos) == limit and photos[-1].distance < neighbours.horizon
            ):
                return photos
            count *= 4

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
