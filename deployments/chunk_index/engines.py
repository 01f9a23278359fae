"""The interface of the engines, which find the nearest among many photos.

An engine holds photos, numbered from 0 in the order of arrival, each with one vector for each
chunk. A photo is as similar to a query as its most similar chunk. Vectors are only appended: each
search says which photos are allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch

from deployments.chunk_index.owners import Owners
from deployments.compute.device import upload

DIGITS = 6  # of a distance; two photos whose distances are equal so far tie


class Found(NamedTuple):
    """The result of one query.

    Attributes:
        photos: int64 `[m]`, nearest first, those that tie by id; m is at most the number asked for.
        similarities: float64 `[m]`, cosine similarity of each photo's most similar chunk.
    """

    photos: np.ndarray
    similarities: np.ndarray


class Engine(Protocol):
    """Photos to search. Only what `saver` returns may run at the same time as another method."""

    name: str  # stands in the header of snapshots, so it must never change
    owners: Owners  # the photos, their chunks, and the vectors of these

    @property
    def waiting(self) -> int:
        """Number of vectors that wait for `build`."""

    @property
    def saved_bytes(self) -> int:
        """How many bytes `saver` writes, about; rather more than less."""

    def append(self, vectors: np.ndarray, id: str = "") -> None:
        """Add a photo.

        Args:
            vectors: float16 `[n, d]`, n at least 1, L2-normalised.
            id: photos that tie are found in the order of their ids.
        """

    def search(
        self,
        queries: np.ndarray,
        counts: int | Sequence[int],
        allowed: np.ndarray | None,
        share: float = 1,
    ) -> list[Found]:
        """Find the nearest photos of each query.

        Args:
            queries: float32 `[q, d]`, L2-normalised.
            counts: how many photos to find, for all queries or for each; at least 1.
            allowed: bool `[photos]`: which photos may be found; None for all.
            share: of all chunks that are searched, those in this engine. The smaller it is, the
                fewer of the nearest are here.
        """

    def vectors(self, photos: np.ndarray) -> np.ndarray:
        """Return the vectors of all chunks of some photos, float32 `[n, d]`."""

    def build(self) -> bool:
        """Do a part of the work that makes searches faster; return whether there is more."""

    def seal(self) -> None:
        """Forget what only `append` needs."""

    def saver(self) -> Callable[[Path], None]:
        """Return a function that writes the engine as it is now into a folder.

        It may run while photos are appended and searched, but not during `build`.
        """

    def load(self, folder: Path, *, sealed: bool = False) -> None:
        """Load what was saved into an empty engine.

        Args:
            sealed: whether no photo will be added; see `seal`.
        """


def measure(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Return the similarities of vectors, `[n, d]`, to a query: float64 `[n]`.

    In float32 the last digits depend on what else is compared at the same time. So what ties in one
    search might not tie in another.
    """
    return np.einsum(
        "nd,d->n", torch.from_numpy(vectors).double().numpy(), query.astype(np.float64)
    )


def measure_each(vectors: torch.Tensor, queries: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Return the similarity of each vector to one of the queries: float64 `[n]`, as `measure`.

    Args:
        vectors: `[n, d]`, on any device; they are compared there.
        queries: float32 `[q, d]`.
        of: the number of the query for each vector, int64 `[n]`.
    """
    wanted = torch.tensor(queries, dtype=torch.float64, device=vectors.device)
    return (vectors.double() * wanted[upload(of, vectors.device)]).sum(1).cpu().numpy()


def distances_of(similarities: np.ndarray) -> np.ndarray:
    """Return cosine distances, rounded so that equal images tie."""
    return (1 - similarities.astype(np.float64)).clip(0, 2).round(DIGITS)


def places_of_nearest(distances: np.ndarray, count: int, id_of: Callable[[int], str]) -> list[int]:
    """Return where the smallest distances are, in ascending order; those that tie by id.

    Args:
        distances: `[n]`.
        count: how many to find.
        id_of: returns the id of the photo at a place.
    """
    places = np.arange(len(distances))
    if len(distances) > count:
        last = np.partition(distances, count - 1)[count - 1]
        places = np.flatnonzero(distances <= last)
    each = distances.tolist()
    return sorted(places.tolist(), key=lambda place: (each[place], id_of(place)))[:count]
