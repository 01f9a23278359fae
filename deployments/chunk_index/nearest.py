"""The photos nearest to a query, while vectors are compared with it, some at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from deployments.chunk_index.engines import (
    DIGITS,
    Found,
    distances_of,
    measure,
    places_of_nearest,
)
from deployments.chunk_index.owners import Owners

# Products whose maximum is looked at first: few of these are within reach.
GROUP = 64
# Vectors whose photos are looked up at first, and then four times as many until they are enough.
FEW = 32


class Nearest:
    """Remembers the vectors that may be among the nearest, and says how near they must be.

    Of each vector at most `count` photos can be among the nearest: those that have the smallest
    ids. So it makes no difference how many photos tie.

    Args:
        owners: the photos that have the vectors.
        query: float32 `[d]`, L2-normalised.
        count: how many photos to find.
        allowed: bool `[photos]`: which photos may be found; None for all.
        error: how far a similarity that is added may be from the true one.

    Attributes:
        reach: a vector that isn't more similar than this can't be among the nearest.
    """

    def __init__(
        self,
        owners: Owners,
        query: np.ndarray,
        count: int,
        allowed: np.ndarray | None,
        error: float,
    ) -> None:
        self.count = count
        self.reach = -np.inf
        self._owners, self._query, self._allowed = owners, query, allowed
        self._slack = 2 * error + 2 * 10.0**-DIGITS
        self._numbers = np.zeros(0, np.int64)
        self._similarities = np.zeros(0, np.float32)
        self._full = 8 * count  # with more vectors than this, those beyond reach are dropped

    def add(self, numbers: np.ndarray, similarities: np.ndarray) -> None:
        """Remember vectors, and how similar they are to the query: float32 `[n]`."""
        self._numbers = np.concatenate([self._numbers, numbers])
        self._similarities = np.concatenate([self._similarities, similarities])
        if len(self._numbers) > self._full:
            self._drop()
            self._full = max(self._full, 2 * len(self._numbers))

    def _drop(self) -> None:
        """Shorten the reach to the best of the vectors, and forget those beyond it."""
        last = min(4 * self.count, len(self._numbers)) - 1
        best = np.argpartition(-self._similarities, last)[: last + 1]
        self.shorten(self._numbers[best], self._similarities[best])
        near = self._similarities > self.reach
        self._numbers, self._similarities = self._numbers[near], self._similarities[near]

    def walked(self, numbers: np.ndarray, similarities: np.ndarray) -> bool:
        """Add what a walk through the graph found; return whether it went far enough."""
        if not len(numbers):
            return False
        is_enough = self.shorten(numbers, similarities)
        near = similarities > self.reach
        self.add(numbers[near], similarities[near])
        return is_enough or not near.all()

    def shorten(self, numbers: np.ndarray, similarities: np.ndarray) -> bool:
        """Shorten the reach by what these vectors alone find; return whether that is enough."""
        photos, _, _, last = self._nearest(numbers, distances_of(similarities))
        if len(photos) < self.count:
            return False
        # If the last one is opposite to the query, all that is farther ties with it.
        if (reach := 1 - last - self._slack) > -1:
            self.reach = max(self.reach, reach)
        return True

    def found(self, kept: Callable[[np.ndarray], np.ndarray]) -> Found:
        """Return the nearest photos.

        Args:
            kept: returns the vectors with some numbers, float16 `[n, d]`.
        """
        if len(self._numbers) > 2 * self.count:
            self._drop()
        similarities = measure(kept(self._numbers), self._query)
        photos, places, distances, _ = self._nearest(self._numbers, distances_of(similarities))
        ids = self._owners.ids
        order = places_of_nearest(distances, self.count, lambda place: ids[photos[place]])
        return Found(photos[order], similarities[places[order]])

    def _nearest(
        self, numbers: np.ndarray, distances: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """Return allowed photos that have some vectors; all that can be among the nearest.

        Returns:
            The photos; the place of each photo's nearest vector; its distance; and the distance
            of the last photo that is wanted, or infinity if there are too few.
        """
        order = np.argsort(distances, kind="stable")
        taken = FEW
        while True:
            owned, places = self._owners.owned(numbers[order[:taken]], self.count, self._allowed)
            photos, first = np.unique(owned, return_index=True)
            places = order[places[first]]
            of_photos, last = distances[places], np.inf
            if len(photos) >= self.count:
                last = float(np.partition(of_photos, self.count - 1)[self.count - 1])
            if taken >= len(order) or last < distances[order[taken]]:
                return photos, places, of_photos, last
            taken *= 4


def offer(searches: Sequence[Nearest], products: torch.Tensor, numbers: np.ndarray) -> None:
    """Let each search take what it needs of the similarities of some vectors.

    Args:
        products: `[q, n]`, n a multiple of `GROUP`; -inf for what isn't to be found.
        numbers: of the vectors, `[n]`.
    """
    numbers = numbers.reshape(-1, GROUP)
    groups = products.view(len(products), -1, GROUP)
    every = groups.amax(-1).float().cpu().numpy()
    for search, of_query, maxima in zip(searches, groups, every, strict=True):
        # If many are within reach, the nearest of them tell how near the others must be.
        enough = 4 * search.count
        while np.count_nonzero(maxima > search.reach) > enough:
            least = np.nextafter(np.partition(maxima, -enough)[-enough], -np.float32(np.inf))
            if search.shorten(*_beyond(least, maxima, of_query, numbers)):
                break
            enough *= 4
        if maxima.max() > search.reach:
            search.add(*_beyond(search.reach, maxima, of_query, numbers))


def _beyond(
    least: float, maxima: np.ndarray, groups: torch.Tensor, numbers: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors that are more similar than `least`, and how similar they are."""
    some = np.flatnonzero(maxima > least)
    values = groups[torch.from_numpy(some).to(groups.device)].float().cpu().numpy()
    near = values > least
    return numbers[some][near], values[near]
