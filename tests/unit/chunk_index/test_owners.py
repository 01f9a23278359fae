"""Equal vectors are kept once; and of photos that tie only a few are looked up."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.chunk_index import known
from deployments.chunk_index.approximate import ApproximateEngine
from deployments.chunk_index.exact import ExactEngine
from deployments.chunk_index.owners import Starts
from tests.unit.chunk_index.photos import DIMENSION, photos_of, unit


def with_white_tiles(engines, rng: np.random.Generator, share: float) -> np.ndarray:
    """Fill engines with 4000 photos of 4 chunks, of which a share is white; return `[4000, 64]`.

    Returns:
        What is in the photos, one vector each, and the white one.
    """
    centres = unit(rng.normal(size=(200, 64)))
    white = unit(rng.normal(size=64))
    real = []
    for number in range(4000):
        chunks = unit(centres[rng.integers(0, 200, 4)] + 0.9 * rng.normal(size=(4, 64)) / 8)
        if rng.random() < 4 * share:
            chunks[0] = white
        real.append(chunks[1])
        for engine in engines:
            engine.append(chunks.astype(np.float16), f"{9999 - number}")
    return np.array(real), white


@pytest.mark.parametrize("share", [0.1, 0.25])
def test_a_graph_does_not_drown_in_white_tiles(share):
    """A walk that came to one of many equal vectors saw only the others."""
    rng = np.random.default_rng(0)
    engine, exact = ApproximateEngine(64), ExactEngine(64, device="cpu")
    real, white = with_white_tiles((engine, exact), rng, share)
    while engine.build():
        pass
    for pale in (0, 0.5):
        some = real[rng.integers(0, 4000, 200)] + 0.15 * rng.normal(size=(200, 64)) / 8
        queries = unit(some + pale * white).astype(np.float32)
        right = sum(
            one.similarities[0] >= other.similarities[0] - 1e-4
            for one, other in zip(
                engine.search(queries, 10, None), exact.search(queries, 10, None), strict=True
            )
        )
        assert right >= 190


@pytest.mark.parametrize("make", [ExactEngine, ApproximateEngine])
def test_of_many_photos_that_tie_only_those_with_the_smallest_ids_are_looked_up(make, monkeypatch):
    rng = np.random.default_rng(1)
    engine = make(64, **({} if make is ApproximateEngine else {"device": "cpu"}))
    _, white = with_white_tiles([engine], rng, 0.25)
    while engine.build():
        pass
    looked_up, owned = [], engine.owners.owned

    def count(*args):
        photos, places = owned(*args)
        looked_up.append(len(photos))
        return photos, places

    monkeypatch.setattr(engine.owners, "owned", count)
    for allowed in (None, np.arange(4000) % 2 == 0, np.arange(4000) % 100 == 0):
        looked_up.clear()
        (found,) = engine.search(white[None].astype(np.float32), 10, allowed)
        expected = range(3999, -1, -1) if allowed is None else np.flatnonzero(allowed)[::-1]
        assert found.photos.tolist() == list(expected)[:10]
        assert sum(looked_up) < 1000


@pytest.mark.parametrize("make", [ExactEngine, ApproximateEngine])
def test_equal_vectors_are_kept_once(make, monkeypatch):
    """Also those of one photo, and those that come after others were settled or linked."""
    monkeypatch.setattr(known, "RECENT", 20)
    rng = np.random.default_rng(9)
    engine = make(DIMENSION)
    photos = photos_of(rng, 200)
    for photo in photos:
        engine.append(photo)
        engine.build()
    distinct = len(np.unique(np.concatenate(photos), axis=0))
    assert distinct < 0.8 * engine.owners.chunks.rows == 0.8 * sum(map(len, photos))
    assert engine.owners.vectors.rows == distinct
    np.testing.assert_array_equal(engine.vectors(np.arange(200)), np.concatenate(photos))


def test_vectors_whose_hashes_are_equal_are_told_apart(monkeypatch):
    monkeypatch.setattr(known, "RECENT", 20)
    monkeypatch.setattr(known.Known, "_hash", lambda _, vectors: np.zeros(len(vectors), np.uint64))
    engine = ExactEngine(DIMENSION, device="cpu")
    photos = photos_of(np.random.default_rng(10), 50)
    for photo in photos:
        engine.append(photo)
    np.testing.assert_array_equal(engine.vectors(np.arange(50)), np.concatenate(photos))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=30), st.data())
def test_starts_know_the_rows_of_photos_and_the_photos_of_rows(lengths, data):
    starts = Starts()
    for length in lengths:
        starts.append(length)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    assert starts.rows == len(owners)
    np.testing.assert_array_equal(starts.owners(np.arange(len(owners))), owners)
    photos = np.array(sorted(data.draw(st.sets(st.integers(0, len(lengths) - 1)))), int)
    rows, counts = starts.of(photos)
    np.testing.assert_array_equal(rows, np.flatnonzero(np.isin(owners, photos)))
    np.testing.assert_array_equal(counts, np.array(lengths)[photos])
