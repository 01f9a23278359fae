"""The interface of the engines, which find the nearest among many photos.

An engine holds photos, numbered from 0 in the order of arrival, each with one vector for each
chunk. A photo is as similar to a query as its most similar chunk. Vectors are only appended: each
search says which photos are allowed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np


class Found(NamedTuple):
    """The result of one query.

    Attributes:
        photos: int64 `[m]`, nearest first; m is at most the number asked for.
        similarities: float32 `[m]`, cosine similarity of each photo's most similar chunk.
        horizon: no other photo is more similar than this; -inf if there is no other.
    """

    photos: np.ndarray
    similarities: np.ndarray
    horizon: float


NOTHING = Found(np.zeros(0, np.int64), np.zeros(0, np.float32), -np.inf)


class Engine(Protocol):
    """Photos to search. Only what `saver` returns may run at the same time as another method."""

    name: str  # stands in the header of snapshots, so it must never change

    @property
    def starts(self) -> Starts:
        """Where the rows of each photo begin."""

    @property
    def waiting(self) -> int:
        """Number of chunks that wait for `build`."""

    def append(self, vectors: np.ndarray) -> None:
        """Add a photo: float16 `[n, d]`, n at least 1, L2-normalised."""

    def search(self, queries: np.ndarray, count: int, allowed: np.ndarray | None) -> list[Found]:
        """Find the `count` nearest photos of each query.

        Args:
            queries: float32 `[q, d]`, L2-normalised.
            allowed: bool `[photos]`: which photos may be found; None for all.
        """

    def vectors(self, photos: np.ndarray) -> np.ndarray:
        """Return all vectors of some photos, float32 `[n, d]`."""

    def build(self) -> bool:
        """Do a part of the work that makes searches faster; return whether there is more."""

    def saver(self) -> Callable[[Path], None]:
        """Return a function that writes the engine as it is now into a folder.

        It may run while photos are appended and searched, but not during `build`.
        """

    def load(self, folder: Path) -> None:
        """Load what was saved into an empty engine."""


class Starts:
    """Where the rows of each photo begin."""

    def __init__(self, starts: np.ndarray | None = None) -> None:
        self._starts = np.zeros(1, np.int64) if starts is None else starts
        self.photos = len(self._starts) - 1

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self._starts[self.photos])

    def append(self, rows: int) -> None:
        """Add a photo."""
        if self.photos + 1 == len(self._starts):
            self._starts = np.concatenate([self._starts, np.empty_like(self._starts)])
        self._starts[self.photos + 1] = self._starts[self.photos] + rows
        self.photos += 1

    def __getitem__(self, photo: int) -> int:
        """Return the first row of a photo; for the number of photos, the number of rows."""
        return int(self._starts[photo])

    def array(self) -> np.ndarray:
        """Return a view of all starts, int64 `[photos + 1]`."""
        return self._starts[: self.photos + 1]

    def of(self, photos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of some photos, one photo after the other, and how many each has."""
        starts, lengths = self._starts[photos], self._starts[photos + 1] - self._starts[photos]
        before = np.cumsum(lengths) - lengths
        return np.arange(lengths.sum()) + np.repeat(starts - before, lengths), lengths

    def owners(self, rows: np.ndarray) -> np.ndarray:
        """Return the photo of each row."""
        return np.searchsorted(self.array(), rows, side="right") - 1


def maxima(similarities: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the maximum of each photo, whose chunks lie one after the other."""
    return np.maximum.reduceat(similarities, np.cumsum(lengths) - lengths, axis=0)


def nearest(photos: np.ndarray, similarities: np.ndarray, count: int) -> Found:
    """Return the most similar of these photos, and how similar the next one is."""
    order = np.argsort(-similarities, kind="stable")
    horizon = float(similarities[order[count]]) if len(order) > count else -np.inf
    return Found(photos[order[:count]], similarities[order[:count]], horizon)


def merge(one: Found, other: Found, count: int) -> Found:
    """Return the nearest photos of two results about different photos."""
    both = nearest(
        np.concatenate([one.photos, other.photos]),
        np.concatenate([one.similarities, other.similarities]),
        count,
    )
    return both._replace(horizon=max(both.horizon, one.horizon, other.horizon))
