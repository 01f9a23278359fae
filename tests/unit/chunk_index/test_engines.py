"""Both engines against brute force, ties included; the graph against the exact engine."""

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.chunk_index import approximate
from deployments.chunk_index.approximate import ApproximateEngine
from deployments.chunk_index.exact import ExactEngine
from tests.support.running.examples import examples
from tests.unit.chunk_index.photos import (
    DIMENSION,
    assert_nearest,
    names,
    photos_of,
    queries_for,
    unit,
)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(0, 60),
    counts=st.lists(st.integers(1, 70), min_size=3, max_size=3),
    barred=st.sampled_from([0, 0.3, 0.8, 1]),
)
@settings(max_examples=examples(60))
def test_exact_search_is_brute_force(dtype, seed, size, counts, barred):
    """Each query by its own count."""
    rng = np.random.default_rng(seed)
    engine = ExactEngine(DIMENSION, device="cpu", dtype=dtype)
    photos, ids = photos_of(rng, size), names(rng, size)
    for photo, id in zip(photos, ids, strict=True):
        engine.append(photo, id)
    queries = queries_for(rng, photos)
    allowed = rng.random(size) >= barred
    answers = engine.search(queries, counts, allowed if barred else None)
    for query, count, found in zip(queries, counts, answers, strict=True):
        assert_nearest(found, photos, ids, query, count, allowed)


def test_exact_search_in_bfloat16_finds_what_is_nearest_among_the_vectors_as_kept():
    rng = np.random.default_rng(1)
    photos = photos_of(rng, 500)
    engine = ExactEngine(DIMENSION, device="cpu", dtype="bfloat16")
    for photo in photos:
        engine.append(photo)
    kept = [engine.vectors(np.array([number])) for number in range(len(photos))]
    assert np.abs(kept[0] - photos[0]).max() > 0  # it has been rounded
    for query in unit(rng.normal(size=(20, DIMENSION))).astype(np.float32):
        (found,) = engine.search(query[None], 10, None)
        assert_nearest(found, kept, [""] * 500, query, 10)


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 80),
    built=st.integers(0, 30),
    counts=st.lists(st.integers(1, 90), min_size=3, max_size=3),
    barred=st.sampled_from([0, 0.3, 0.8, 1]),
)
@settings(max_examples=examples(60))
def test_a_small_graph_with_vectors_beside_it_is_brute_force_too(seed, size, built, counts, barred):
    """A walk with room for every vector sees every vector."""
    rng = np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(approximate, "LINK_ROWS", 8)
        patch.setattr(approximate, "WALK_COST", 0)  # walk, though comparing would be faster
        engine = ApproximateEngine(DIMENSION, expansion=1000)
        photos, ids = photos_of(rng, size), names(rng, size)
        for number, (photo, id) in enumerate(zip(photos, ids, strict=True)):
            engine.append(photo, id)
            if number < built:
                engine.build()
        allowed = rng.random(size) >= barred
        queries = queries_for(rng, photos)
        answers = engine.search(queries, counts, allowed if barred else None)
    for query, count, found in zip(queries, counts, answers, strict=True):
        assert_nearest(found, photos, ids, query, count, allowed)


@pytest.fixture(scope="module")
def large() -> tuple[ApproximateEngine, ExactEngine, np.random.Generator]:
    """10,000 vectors, of which some wait beside the graph."""
    rng = np.random.default_rng(3)
    approximate = ApproximateEngine(32, expansion=256)
    exact = ExactEngine(32, device="cpu")
    for photo in photos_of(rng, 5000, 32):
        exact.append(photo)
        approximate.append(photo)
    while approximate.waiting > 500:
        assert approximate.build()
    assert approximate.waiting
    return approximate, exact, rng


@pytest.mark.parametrize("share", [1, 0.9, 0.3, 0.01, 0.001, 0])
def test_the_graph_finds_nearly_what_the_exact_engine_finds(large, share):
    approximate, exact, rng = large
    allowed = None if share == 1 else rng.random(5000) < share
    wanted = 10 if allowed is None else min(10, allowed.sum())
    queries = unit(rng.normal(size=(100, 32))).astype(np.float32)
    hits = 0
    for one, other in zip(
        approximate.search(queries, 10, allowed), exact.search(queries, 10, allowed), strict=True
    ):
        assert len(one.photos) == len(other.photos) == wanted
        assert allowed is None or allowed[one.photos].all()
        hits += (one.similarities >= other.similarities[-1:] - 1e-6).sum()
    assert hits >= 0.95 * 100 * wanted


@pytest.mark.parametrize("count", [1, 64, 1000, 5000, 6000])
def test_the_graph_never_finds_fewer_than_there_are(large, count):
    """Also when most chunks near the query belong to one photo."""
    approximate, _, rng = large
    query = unit(rng.normal(size=(1, 32))).astype(np.float32)
    (found,) = approximate.search(query, count, None)
    assert len(set(found.photos.tolist())) == min(count, 5000)


def test_many_chunks_of_one_photo_do_not_hide_the_others():
    rng = np.random.default_rng(4)
    query = unit(rng.normal(size=32)).astype(np.float32)
    engine = ApproximateEngine(32, expansion=16)
    engine.append(unit(query + 0.01 * rng.normal(size=(1000, 32))).astype(np.float16))
    for _ in range(1000):
        engine.append(unit(rng.normal(size=(2, 32))).astype(np.float16))
    while engine.build():
        pass
    (found,) = engine.search(query[None], 10, None)
    assert found.photos[0] == 0
    assert len(found.photos) == 10


@pytest.mark.parametrize("make", [ExactEngine, ApproximateEngine])
def test_what_was_saved_is_loaded_and_goes_on(make, tmp_path):
    rng = np.random.default_rng(5)
    options = {} if make is ApproximateEngine else {"device": "cpu"}
    engine = make(DIMENSION, **options)
    photos, ids = photos_of(rng, 300), names(rng, 300)
    for photo, id in zip(photos[:200], ids, strict=False):
        engine.append(photo, id)
    engine.build()
    save = engine.saver()
    for photo in photos[200:250]:  # comes too late for the snapshot
        engine.append(photo, "late")
    save(tmp_path)

    loaded = make(DIMENSION, **options)
    loaded.load(tmp_path)
    assert loaded.owners.chunks.photos == 200
    for photo, id in zip(photos[200:], ids[200:], strict=True):
        loaded.append(photo, id)
    while loaded.build():
        pass
    assert loaded.owners.vectors.rows == len(np.unique(np.concatenate(photos), axis=0))
    queries = np.concatenate([queries_for(rng, photos) for _ in range(3)])
    for query, found in zip(queries, loaded.search(queries, 5, None), strict=True):
        assert_nearest(found, photos, ids, query, 5)
    every = np.arange(300)
    np.testing.assert_array_equal(loaded.vectors(every), np.concatenate(photos).astype(np.float32))


def test_a_loaded_graph_has_room_to_grow(tmp_path):
    """Else the first photo that comes then waits until FAISS has copied all vectors."""
    rng = np.random.default_rng(6)
    engine = ApproximateEngine(DIMENSION)
    for photo in photos_of(rng, 300):
        engine.append(photo)
    while engine.build():
        pass
    engine.saver()(tmp_path)

    loaded = ApproximateEngine(DIMENSION)
    loaded.load(tmp_path)
    before = addresses(loaded)
    for photo in photos_of(rng, 50):
        loaded.append(photo)
    while loaded.build():
        pass
    assert addresses(loaded) == before


def addresses(engine: ApproximateEngine) -> list[int]:
    """Where FAISS has its arrays."""
    codes = faiss.downcast_index(engine._graph.storage).codes
    return [int(array.data()) for array in (codes, engine._graph.hnsw.neighbors)]


@pytest.mark.parametrize("expansion", [None, 200])
def test_a_large_graph_is_built_and_searched_more_thoroughly(monkeypatch, expansion):
    monkeypatch.setattr(approximate, "GROWTH_CHUNKS", 100)
    monkeypatch.setattr(approximate, "WALK_COST", 0)
    rng = np.random.default_rng(7)
    engine = ApproximateEngine(DIMENSION, expansion=expansion)
    for photo in photos_of(rng, 200):
        engine.append(photo)
    while engine.build():
        pass
    assert engine._graph.hnsw.efConstruction > approximate.CONSTRUCTION

    asked, parameters = [], faiss.SearchParametersHNSW
    monkeypatch.setattr(
        faiss, "SearchParametersHNSW", lambda **o: asked.append(o["efSearch"]) or parameters(**o)
    )
    engine.search(unit(rng.normal(size=(1, DIMENSION))).astype(np.float32), 1, None)
    query = unit(rng.normal(size=(1, DIMENSION))).astype(np.float32)
    engine.search(query, 1, None, share=0.25)  # the nearest may be in other engines
    thorough = approximate.EXPANSION * (engine.owners.vectors.rows / 100) ** 0.5
    assert asked == [expansion or int(thorough), expansion or int(thorough / 2)]
