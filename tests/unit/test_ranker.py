"""The ranker against brute force over all chunks of all photos."""

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.chunk_index.index import ChunkIndex
from deployments.query import MAX_LIMIT
from deployments.ranker import AGGREGATIONS, ORDERED, Ranker
from deployments.records import Neighbours
from deployments.settings import ChunkIndexSettings, RankerSettings
from tests.support.running.examples import examples

# Distances come from a few values, so ties between photos are common.
collections = st.dictionaries(
    st.text("abcd", min_size=1, max_size=3),
    st.lists(st.sampled_from([0, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2]), min_size=1, max_size=12),
    max_size=30,
)


class Collection:
    """Photos with known distances; remembers how many were fetched."""

    def __init__(self, photos):
        self.photos = {id: np.array(distances, np.float32) for id, distances in photos.items()}
        self.fetched = []

    async def fetch(self, count):
        self.fetched.append(count)
        order = sorted(self.photos, key=lambda id: (self.photos[id].min(), id))[:count]
        order.reverse()  # in any order
        return Neighbours(order, [self.photos[id] for id in order])


def brute_force(photos, aggregation, limit, max_distance):
    scores = []
    for id, distances in photos.items():
        matching = distances[distances <= max_distance]
        if len(matching):
            scores.append((float(AGGREGATIONS[aggregation](matching)), id))
    return sorted(scores)[:limit]


@given(
    photos=collections,
    aggregation=st.sampled_from(sorted(AGGREGATIONS)),
    limit=st.integers(1, 10),
    max_distance=st.sampled_from([0.0, 0.25, 0.6, 2.0]),
    max_chunks=st.none() | st.integers(1, 12),
)
@settings(max_examples=examples(500))
def test_the_answer_is_the_exact_top_of_all_photos(
    photos, aggregation, limit, max_distance, max_chunks
):
    collection = Collection(photos)
    ranker = Ranker(RankerSettings(aggregation=aggregation))
    ranked = asyncio.run(ranker.rank(collection.fetch, limit, max_distance, max_chunks))
    expected = brute_force(collection.photos, aggregation, limit, max_distance)
    assert [(photo.distance, photo.id) for photo in ranked] == expected
    for photo in ranked:
        distances = [distance for _, distance in photo.chunks]
        assert distances == sorted(distances)
        matching = np.flatnonzero(collection.photos[photo.id] <= max_distance).tolist()
        numbers = [number for number, _ in photo.chunks]
        assert len(set(numbers)) == len(numbers) == min(len(matching), max_chunks or 12)
        assert set(numbers) <= set(matching)
        left = set(matching) - set(numbers)
        assert all(collection.photos[photo.id][number] >= distances[-1] for number in left)
        for number, distance in photo.chunks:
            assert collection.photos[photo.id][number] == distance


@pytest.mark.parametrize("aggregation", sorted(AGGREGATIONS))
def test_what_a_search_fetches_is_bounded(aggregation):
    """However many photos tie, and wherever the best ones by mean or maximum lie."""
    ties = {f"{n:04}": [0.25, 0.5] for n in range(3000)}
    collection = Collection(ties | {f"a{n}": [1.0, 1.0] for n in range(10)})
    ranker = Ranker(RankerSettings(aggregation=aggregation))
    ranked = asyncio.run(ranker.rank(collection.fetch, 3))
    assert [photo.id for photo in ranked] == ["0000", "0001", "0002"]
    assert collection.fetched == [3 if aggregation == "min" else ORDERED]


@pytest.mark.parametrize("aggregation", ["mean", "max"])
def test_a_larger_limit_only_adds_photos(aggregation):
    rng = np.random.default_rng(0)
    collection = Collection({f"{n:04}": rng.random(4) for n in range(1500)})
    ranker = Ranker(RankerSettings(aggregation=aggregation))
    few, many = (asyncio.run(ranker.rank(collection.fetch, limit)) for limit in (10, MAX_LIMIT))
    assert few == many[:10]
    assert len(many) == MAX_LIMIT


def test_an_unknown_aggregation_is_refused():
    with pytest.raises(ValueError, match="'min', 'mean' or 'max'"):
        Ranker(RankerSettings(aggregation="median"))


@given(seed=st.integers(0, 2**32 - 1), aggregation=st.sampled_from(sorted(AGGREGATIONS)))
@settings(max_examples=examples(30))
def test_with_the_real_index_it_is_exact_too(seed, aggregation):
    rng = np.random.default_rng(seed)
    index = ChunkIndex(8, ChunkIndexSettings(device="cpu"))
    photos = {}
    query = rng.standard_normal(8).astype(np.float32)
    query /= np.linalg.norm(query)
    for number in range(40):
        vectors = rng.standard_normal((rng.integers(1, 20), 8)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors.astype(np.float16).astype(np.float32)  # as the store keeps them
        index.put(f"{number:02}", vectors)
        photos[f"{number:02}"] = 1 - vectors @ query

    async def fetch(count):
        return index.search(query[None], count)[0]

    ranked = asyncio.run(Ranker(RankerSettings(aggregation=aggregation)).rank(fetch, 5))
    expected = brute_force(photos, aggregation, 5, 2.0)
    assert [photo.id for photo in ranked] == [id for _, id in expected]
