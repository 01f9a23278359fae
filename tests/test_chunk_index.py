"""The chunk index against a plain search over a dictionary."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from deployments.chunk_index import ChunkIndex

DIMENSION = 4


def unit(*values: float) -> np.ndarray:
    vector = np.array(values, np.float32)
    return vector / np.linalg.norm(vector)


# Few directions, so that equal distances are common.
direction = st.sampled_from(
    [unit(*row) for row in np.vstack([np.eye(4), -np.eye(4)[:2], [[1, 1, 0, 0], [1, 2, 3, 4]]])]
)
photo_vectors = st.lists(direction, min_size=1, max_size=5).map(np.stack)


def brute_force(content: dict[str, np.ndarray], query: np.ndarray) -> list[tuple[float, str]]:
    """(distance, photo) of every chunk, nearest first."""
    return sorted(
        (round(float(1 - vector @ query), 5), photo)
        for photo, vectors in content.items()
        for vector in vectors
    )


class IndexMachine(RuleBasedStateMachine):
    """Any sequence of puts, replacements and removals leaves the index equal to a dictionary."""

    def __init__(self):
        super().__init__()
        self.index = ChunkIndex(DIMENSION, device="cpu")
        self.content: dict[str, np.ndarray] = {}

    @rule(photo=st.sampled_from("abcdefgh"), vectors=photo_vectors)
    def put(self, photo, vectors):
        self.index.put(photo, vectors)
        self.content[photo] = vectors

    @rule(photo=st.sampled_from("abcdefgh"))
    def remove(self, photo):
        self.index.remove(photo)
        self.content.pop(photo, None)

    @rule(queries=st.lists(direction, min_size=1, max_size=3), k=st.integers(1, 20))
    def search(self, queries, k):
        found = self.index.search(np.stack(queries), k)
        for query, neighbours in zip(queries, found, strict=True):
            expected = brute_force(self.content, query)
            for photo, distances in zip(neighbours.photos, neighbours.distances, strict=True):
                np.testing.assert_allclose(distances, 1 - self.content[photo] @ query, atol=1e-5)
            assert len(set(neighbours.photos)) == len(neighbours.photos)
            if k >= len(expected):
                assert set(neighbours.photos) == set(self.content)
                assert neighbours.horizon == np.inf
            else:
                assert neighbours.horizon == pytest.approx(expected[k - 1][0], abs=1e-5)
                nearer = {
                    photo for distance, photo in expected if distance < neighbours.horizon - 1e-4
                }
                assert nearer <= set(neighbours.photos)

    @invariant()
    def counts(self):
        assert self.index.photos == len(self.content)
        assert self.index.chunks == sum(map(len, self.content.values()))


TestIndexMachine = IndexMachine.TestCase
TestIndexMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_an_empty_index_finds_nothing():
    (neighbours,) = ChunkIndex(DIMENSION).search(unit(1, 0, 0, 0)[None], 5)
    assert neighbours.photos == []
    assert neighbours.horizon == np.inf


def test_the_callers_array_is_not_followed():
    index = ChunkIndex(DIMENSION)
    vectors = unit(1, 0, 0, 0)[None].copy()
    index.put("a", vectors)
    vectors[:] = unit(0, 1, 0, 0)
    (neighbours,) = index.search(unit(1, 0, 0, 0)[None], 1)
    assert neighbours.distances[0][0] == 0


def test_removed_rows_are_reused():
    index = ChunkIndex(DIMENSION)
    for _ in range(100):
        index.put("a", np.tile(unit(1, 0, 0, 0), (10, 1)))
    assert len(index._vectors) < 40


@pytest.mark.parametrize("shape", [(4,), (2, 3), (1, 5)])
def test_vectors_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"\[n, 4\]"):
        ChunkIndex(DIMENSION).put("a", np.zeros(shape, np.float32))


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_half_precision_rounds_distances_within_the_documented_bound(seed):
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((50, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    exact = 1 - vectors @ vectors[0]
    for dtype, bound in (("bfloat16", 0.008), ("float16", 0.001)):
        index = ChunkIndex(64, dtype=dtype)
        index.put("a", vectors)
        assert index._vectors.dtype == getattr(torch, dtype)
        (neighbours,) = index.search(vectors[:1], 1)
        assert np.abs(neighbours.distances[0] - exact).max() < bound
