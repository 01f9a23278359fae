"""Photos of few vectors, equal ones among them, and what brute force finds."""

from pathlib import Path

import numpy as np

from deployments.chunk_index.index import ChunkIndex

DIMENSION = 8


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def photos_of(rng: np.random.Generator, count: int, dimension: int = DIMENSION) -> list[np.ndarray]:
    """Photos of 1 to 6 chunks around a centre of their own.

    Some are copies of others, and many have chunks that are white or black.
    """
    plain = unit(rng.normal(size=(2, dimension))).astype(np.float16)
    photos: list[np.ndarray] = []
    for _ in range(count):
        if photos and rng.random() < 0.2:
            photos.append(photos[rng.integers(len(photos))])
            continue
        centre = rng.normal(size=dimension)
        chunks = centre + 0.5 * rng.normal(size=(rng.integers(1, 7), dimension))
        chunks = unit(chunks).astype(np.float16)
        is_plain = rng.random(len(chunks)) < 0.2
        chunks[is_plain] = plain[rng.integers(0, 2, is_plain.sum())]
        photos.append(chunks)
    return photos


def queries_for(rng: np.random.Generator, photos: list[np.ndarray]) -> np.ndarray:
    """A query near nothing, one that is a chunk of the first photo, and the commonest chunk."""
    queries = unit(rng.normal(size=(3, DIMENSION))).astype(np.float32)
    if photos:
        queries[1] = unit(photos[0][0].astype(np.float32))
        every, counts = np.unique(np.concatenate(photos), axis=0, return_counts=True)
        queries[2] = unit(every[counts.argmax()].astype(np.float32))
    return queries


def names(rng: np.random.Generator, count: int) -> list[str]:
    """Ids whose order isn't that of arrival."""
    return [f"{n:04}" for n in rng.permutation(count)]


def brute_force(
    photos: list[np.ndarray], ids: list[str], query: np.ndarray, count: int, allowed: np.ndarray
) -> list[tuple[float, int]]:
    """The distances and numbers of the nearest allowed photos; those that tie by id."""
    query = query.astype(np.float64)
    scores = [
        (float(np.clip(1 - (photos[n].astype(np.float64) @ query), 0, 2).round(6).min()), ids[n], n)
        for n in np.flatnonzero(allowed).tolist()
    ]
    return [(distance, number) for distance, _, number in sorted(scores)[:count]]


def assert_nearest(found, photos, ids, query, count, allowed=None):
    allowed = np.ones(len(photos), bool) if allowed is None else allowed
    distances = np.clip(1 - found.similarities, 0, 2).round(6).tolist()
    answer = list(zip(distances, found.photos.tolist(), strict=True))
    assert answer == brute_force(photos, ids, query, count, allowed)


def save(index: ChunkIndex, folder: Path) -> list[Path]:
    """Write all parts of a snapshot of an index, as `Snapshots` does; return their folders."""
    folders = []
    for part in index.parts():
        folders.append(folder / part.name)
        folders[-1].mkdir(parents=True)
        part.save(folders[-1])
    return folders
