"""The photos nearest to a query, while one part of the vectors after another is compared with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from deployments.chunk_index.engines import DIGITS, Found, distances_of, measure
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
        self._slack = 2 * error + 10.0**-DIGITS
        self._numbers = np.zeros(0, np.int64)
        self._similarities = np.zeros(0, np.float32)
        self._full = 0  # when there are so many vectors, those beyond reach are dropped

    def add(self, numbers: np.ndarray, similarities: np.ndarray) -> None:
        """Remember vectors, and how similar they are to the query: float32 `[n]`."""
        self._numbers = np.concatenate([self._numbers, numbers])
        self._similarities = np.concatenate([self._similarities, similarities])
        if len(self._numbers) > self._full:
            self.shorten(self._numbers, self._similarities)
            near = self._similarities > self.reach
            self._numbers, self._similarities = self._numbers[near], self._similarities[near]
            self._full = 2 * len(self._numbers)

    def walked(self, numbers: np.ndarray, similarities: np.ndarray) -> bool:
        """Add what a walk through the graph found; return whether it went far enough."""
        if not len(numbers):
            return False
        self.add(numbers, similarities)
        return self.shorten(numbers, similarities) or float(similarities.min()) < self.reach

    def shorten(self, numbers: np.ndarray, similarities: np.ndarray) -> bool:
        """Shorten the reach to the nearest photos of some vectors; return whether there are enough."""
        found = self._order(numbers, similarities)
        if len(found.photos) < self.count:
            return False
        # All similarities of 1 or more tie, and so do all of -1 or less.
        reach = min(float(found.similarities.min()), 1) - self._slack
        if reach > -1:
            self.reach = max(self.reach, reach)
        return True

    def found(self, kept: Callable[[np.ndarray], np.ndarray]) -> Found:
        """Return the nearest photos.

        Args:
            kept: returns the vectors with some ascending numbers, float32 `[n, d]`.
        """
        near = self._similarities > self.reach
        numbers = np.sort(self._numbers[near])
        return self._order(numbers, measure(kept(numbers), self._query))

    def _order(self, numbers: np.ndarray, similarities: np.ndarray) -> Found:
        """Return the nearest photos that have these vectors, ordered by distance and id."""
        distances = distances_of(similarities)
        order = np.argsort(distances, kind="stable")
        taken = FEW
        while True:
            owned, places = self._owners.owned(numbers[order[:taken]], self.count, self._allowed)
            photos, first = np.unique(owned, return_index=True)
            places = order[places[first]]  # of the nearest vector of each photo
            of_photos = distances[places]
            if len(photos) >= self.count:
                last = np.partition(of_photos, self.count - 1)[self.count - 1]
                if taken >= len(order) or last < distances[order[taken]]:
                    break
            elif taken >= len(order):
                last = np.inf
                break
            taken *= 4
        near = np.flatnonzero(of_photos <= last).tolist()
        ids = self._owners.ids
        near.sort(key=lambda place: (of_photos[place], ids[photos[place]]))
        near = near[: self.count]
        return Found(photos[near], similarities[places[near]])


def offer(searches: Sequence[Nearest], products: torch.Tensor, numbers: np.ndarray) -> None:
    """Let each search take what it needs of the similarities of some vectors.

    Args:
        products: `[q, n]`; -inf for what isn't to be found.
        numbers: of the vectors, `[n]`.
    """
    if rest := -products.shape[1] % GROUP:
        products = F.pad(products, (0, rest), value=-torch.inf)
        numbers = np.pad(numbers, (0, rest))
    numbers = numbers.reshape(-1, GROUP)
    groups = products.view(len(products), -1, GROUP)
    every = groups.amax(-1).float().cpu().numpy()
    for search, of_query, maxima in zip(searches, groups, every, strict=True):
        # What is near among so many vectors tells how near the others must be.
        enough = 4 * search.count
        while True:
            within = np.flatnonzero(maxima > search.reach)
            if len(within) <= enough:
                break
            best = np.argpartition(-maxima, enough)[:enough]
            values = of_query[torch.from_numpy(best).to(products.device)].float().cpu().numpy()
            least = values >= maxima[best].min()
            if search.shorten(numbers[best][least], values[least]):
                within = np.flatnonzero(maxima > search.reach)
                break
            enough *= 4
        if len(within):
            values = of_query[torch.from_numpy(within).to(products.device)].float().cpu().numpy()
            near = values > search.reach
            search.add(numbers[within][near], values[near])
