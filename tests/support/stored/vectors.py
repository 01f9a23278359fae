"""Photos of few vectors, and what a plain search over a dictionary finds among them."""

import numpy as np
from hypothesis import strategies as st

from deployments.metadata import Filter

DIMENSION = 4


def unit(*values: float) -> np.ndarray:
    """As the store keeps it: float16 values."""
    vector = np.array(values, np.float32)
    return (vector / np.linalg.norm(vector)).astype(np.float16).astype(np.float32)


# Few directions, so that equal distances are common.
direction = st.sampled_from(
    [unit(*row) for row in np.vstack([np.eye(4), -np.eye(4)[:2], [[1, 1, 0, 0], [1, 2, 3, 4]]])]
)
photo_vectors = st.lists(direction, min_size=1, max_size=5).map(np.stack)
ids = st.sampled_from("abcdefgh")
years = st.sampled_from([{}, {"year": 2020}, {"year": 2024}])
filters = st.sampled_from([None, "year>=2022", "year=2020", "year!=2020"])


def parse(condition: str | None) -> Filter | None:
    return None if condition is None else Filter.parse([condition])


def brute_force(content: dict[str, np.ndarray], query: np.ndarray) -> list[tuple[float, str]]:
    """(distance of the nearest chunk, photo), nearest first."""
    query = query.astype(np.float64)
    return sorted(
        (float(np.clip(1 - vectors.astype(np.float64) @ query, 0, 2).round(6).min()), photo)
        for photo, vectors in content.items()
    )


def assert_found(neighbours, content, query, count):
    """These are the nearest photos, ties by id, with the distances of all their chunks."""
    expected = brute_force(content, query)[:count]
    for photo, distances in zip(neighbours.photos, neighbours.distances, strict=True):
        np.testing.assert_allclose(distances, np.clip(1 - content[photo] @ query, 0, 2), atol=1e-5)
    nearest = [distances.min() for distances in neighbours.distances]
    assert sorted(zip(nearest, neighbours.photos, strict=True)) == expected
