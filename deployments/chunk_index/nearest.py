"""The photos nearest to a query, while vectors are compared with it, some at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch

from deployments.chunk_index.engines import DIGITS, Found, distances_of, places_of_nearest
from deployments.chunk_index.owners import Owners
from deployments.compute.device import download, upload

# Products whose maximum is looked at first: few of these are within reach.
GROUP = 64
# Groups whose products are looked at, and vectors that are compared again, at a time.
PIECE_GROUPS, PIECE_ROWS = 16_384, 4096
# Vectors whose photos are looked up at first, and then four times as many until they are enough.
FEW = 32


class Nearest:
    """Remembers the vectors that may be among the nearest, and says how near they must be.

    Of each vector at most `count` photos can be among the nearest: those that have the smallest
    ids. So it makes no difference how many photos tie.

    Args:
        owners: the photos that have the vectors.
        count: how many photos to find.
        allowed: bool `[photos]`: which photos may be found; None for all.
        error: how far a similarity that is added may be from the true one.

    Attributes:
        reach: a vector that isn't more similar than this can't be among the nearest.
    """

    def __init__(
        self,
        owners: Owners,
        count: int,
        allowed: np.ndarray | None,
        error: float,
    ) -> None:
        self.count = count
        self.reach = -np.inf
        self._owners, self._allowed = owners, allowed
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
        self.shorten(self._numbers[best], distances_of(self._similarities[best]))
        near = self._similarities > self.reach
        self._numbers, self._similarities = self._numbers[near], self._similarities[near]

    def walked(self, numbers: np.ndarray, similarities: np.ndarray) -> bool:
        """Add what a walk through the graph found; return whether it went far enough."""
        if not len(numbers):
            return False
        is_enough = self.shorten(numbers, distances_of(similarities))
        near = similarities > self.reach
        self.add(numbers[near], similarities[near])
        return is_enough or not near.all()

    def shorten(self, numbers: np.ndarray, distances: np.ndarray) -> bool:
        """Shorten the reach by what these vectors alone find; return whether that is enough."""
        photos, _, last = self._nearest(numbers, distances)
        if len(photos) < self.count:
            return False
        # If the last one is opposite to the query, all that is farther ties with it.
        if (reach := 1 - last - self._slack) > -1:
            self.reach = max(self.reach, reach)
        return True

    def candidates(self) -> np.ndarray:
        """Return the vectors that may be among the nearest."""
        if len(self._numbers) > 4 * self.count:
            self._drop()
        return self._numbers

    def found(self, similarities: np.ndarray, distances: np.ndarray) -> Found:
        """Return the nearest photos.

        Args:
            similarities: of the candidates, float64 `[n]`.
            distances: the same as distances.
        """
        photos, places, _ = self._nearest(self._numbers, distances)
        ids = self._owners.ids
        order = places_of_nearest(distances[places], self.count, lambda n: ids[photos[n]])
        chosen = np.array([places[n] for n in order], np.int64)
        return Found(np.array([photos[n] for n in order], np.int64), similarities[chosen])

    def _nearest(
        self, numbers: np.ndarray, distances: np.ndarray
    ) -> tuple[list[int], list[int], float]:
        """Return allowed photos that have some vectors; all that can be among the nearest.

        Returns:
            The photos, nearest first; the place of each photo's nearest vector; and the distance of
            the last photo that is wanted, or infinity if there are too few.
        """
        order = np.argsort(distances, kind="stable")
        taken = FEW
        while True:
            owned, places = self._owners.owned(numbers[order[:taken]], self.count, self._allowed)
            nearest: dict[int, int] = {}
            for photo, place in zip(owned.tolist(), order[places].tolist(), strict=True):
                nearest.setdefault(photo, place)
            of_photos, last = [*nearest.values()], np.inf
            if len(of_photos) >= self.count:
                last = float(distances[of_photos[self.count - 1]])
            if taken >= len(order) or last < distances[order[taken]]:
                return [*nearest], of_photos, last
            taken *= 4


def offer(searches: Sequence[Nearest], products: torch.Tensor, first: int) -> None:
    """Let each search take what it needs of the similarities of some vectors.

    It is done for all searches at once: a GPU takes about as long for one.

    Args:
        products: `[n, q or more]`, n a multiple of `GROUP`; -inf for what isn't to be found.
        first: number of the first vector.
    """
    groups = products.view(-1, GROUP, products.shape[1])
    maxima = _maxima(products)[:, : len(searches)].T.float().contiguous()
    reach = maxima.new_tensor([search.reach for search in searches])
    within = (maxima > reach[:, None]).sum(1).cpu().numpy()
    served = _serve_crowded(searches, groups, maxima, within, first)
    if len(served) < np.count_nonzero(within):
        _serve_others(searches, served, groups, maxima, first)


def _maxima(products: torch.Tensor) -> torch.Tensor:
    """Return the maxima of the groups, `[n / GROUP, q]`."""
    columns = products.shape[1]
    if columns == 1:
        return products.view(-1, GROUP).amax(1, keepdim=True)
    # At once it would take a CPU four times as long, for few numbers lie side by side.
    return products.view(-1, 8, GROUP // 8 * columns).amax(1).view(-1, GROUP // 8, columns).amax(1)


def _serve_crowded(
    searches: Sequence[Nearest],
    groups: torch.Tensor,
    maxima: torch.Tensor,
    within: np.ndarray,
    first: int,
) -> set[int]:
    """Where many are within reach, let the nearest of them tell how near the others must be.

    Args:
        groups: products, `[g, GROUP, q or more]`.
        maxima: of the groups, float32 `[q, g]`.
        within: how many groups are within the reach of each search, int64 `[q]`.
        first: number of the first vector.

    Returns:
        The searches that need no more of these products: what wasn't looked at is beyond reach.
    """
    served = set()
    enough = np.array([4 * search.count for search in searches])
    crowded = np.flatnonzero(within > enough)
    while len(crowded):
        lacking = []
        for few in sorted({*enough[crowded].tolist()}):
            together = crowded[enough[crowded] == few]
            piece = max(1, PIECE_GROUPS // few)
            for start in range(0, len(together), piece):
                some = together[start : start + piece]
                places, similarities = _best(groups, maxima, some, few)
                distances = distances_of(similarities)
                for at, n in enumerate(some.tolist()):
                    search, numbers, values = searches[n], first + places[at], similarities[at]
                    if not search.shorten(numbers, distances[at]):
                        lacking.append(n)
                    elif values[-1] <= search.reach:
                        near = values > search.reach
                        search.add(numbers[near], values[near])
                        served.add(n)
        enough *= 4
        crowded = np.array([n for n in lacking if within[n] > enough[n]], int)
    return served


def _best(
    groups: torch.Tensor, maxima: torch.Tensor, some: np.ndarray, few: int
) -> list[np.ndarray]:
    """Return the places of the greatest products of some searches, and these, `[s, few]` each."""
    of = upload(some, groups.device)
    best = maxima[of].topk(few).indices
    products = groups[best, :, of[:, None]].float().flatten(1).topk(few)
    which, place = products.indices // GROUP, products.indices % GROUP
    return download([GROUP * best.gather(1, which) + place, products.values])


def _serve_others(
    searches: Sequence[Nearest],
    served: set[int],
    groups: torch.Tensor,
    maxima: torch.Tensor,
    first: int,
) -> None:
    """Let the searches not served yet take all that is within their reach; see `_serve_crowded`."""
    reach = maxima.new_tensor(
        [np.inf if n in served else search.reach for n, search in enumerate(searches)]
    )
    for within in (maxima > reach[:, None]).nonzero().split(PIECE_GROUPS):
        of, group = within.T
        values = groups[group, :, of].float()
        which, place = (values > reach[of][:, None]).nonzero(as_tuple=True)
        owners, numbers, similarities = download(
            [of[which], first + GROUP * group[which] + place, values[which, place]]
        )
        ends = np.searchsorted(owners, np.arange(len(searches) + 1)).tolist()
        for search, (start, end) in zip(searches, pairwise(ends), strict=True):
            if start < end:
                search.add(numbers[start:end], similarities[start:end])


def conclude(
    searches: Sequence[Nearest], measured: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> list[Found]:
    """Return what the searches have found.

    Args:
        measured: returns the similarities of vectors, each to one of the queries, float64 `[n]`,
            from their numbers and those of the queries.
    """
    candidates = [search.candidates() for search in searches]
    ends = np.cumsum([0, *map(len, candidates)])
    numbers, of = np.concatenate(candidates), np.repeat(np.arange(len(searches)), np.diff(ends))
    similarities = np.empty(len(numbers))
    for start in range(0, len(numbers), PIECE_ROWS):
        piece = slice(start, start + PIECE_ROWS)
        similarities[piece] = measured(numbers[piece], of[piece])
    distances = distances_of(similarities)
    return [
        search.found(similarities[start:end], distances[start:end])
        for search, (start, end) in zip(searches, pairwise(ends), strict=True)
    ]
