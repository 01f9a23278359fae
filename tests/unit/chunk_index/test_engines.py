"""Both engines against brute force, ties included; the graph against the exact engine."""

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from deployments.chunk_index import approximate, exact
from deployments.chunk_index.approximate import ApproximateEngine
from deployments.chunk_index.engines import Starts
from deployments.chunk_index.exact import ExactEngine
from tests.support.examples import examples

DIMENSION = 8
DTYPES = {"float32": np.float32, "float16": np.float16}


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def photos_of(rng: np.random.Generator, count: int, dimension: int = DIMENSION) -> list[np.ndarray]:
    """Photos of 1 to 6 chunks around a centre of their own; some are copies of others."""
    photos = []
    for _ in range(count):
        if photos and rng.random() < 0.2:
            photos.append(photos[rng.integers(len(photos))])
            continue
        centre = rng.normal(size=dimension)
        chunks = centre + 0.5 * rng.normal(size=(rng.integers(1, 7), dimension))
        photos.append(unit(chunks).astype(np.float16))
    return photos


def brute_force(photos: list[np.ndarray], query: np.ndarray) -> np.ndarray:
    """The similarity of each photo, in float32."""
    return np.array([(photo.astype(np.float32) @ query).max() for photo in photos])


def assert_nearest(found, similarities, count, allowed):
    """The answer has the nearest photos; of equal ones any will do, and the horizon tells."""
    similarities = np.where(allowed, similarities, -np.inf)
    assert len(set(found.photos.tolist())) == len(found.photos) == min(count, allowed.sum())
    expected = np.sort(similarities)[::-1][: len(found.photos)]
    np.testing.assert_allclose(similarities[found.photos], expected, atol=2e-6)
    np.testing.assert_allclose(found.similarities, expected, atol=2e-6)
    rest = np.delete(similarities, found.photos)
    if np.isfinite(rest).any():
        assert found.horizon == pytest.approx(rest.max(), abs=2e-6)
    else:
        assert found.horizon == -np.inf


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(0, 60),
    count=st.integers(1, 70),
    barred=st.sampled_from([0, 0.3, 1]),
)
@settings(max_examples=examples(60))
def test_exact_search_is_brute_force(dtype, seed, size, count, barred):
    rng = np.random.default_rng(seed)
    engine = ExactEngine(DIMENSION, device="cpu", dtype=dtype)
    photos = photos_of(rng, size)
    for photo in photos:
        engine.append(photo)
    queries = unit(rng.normal(size=(3, DIMENSION))).astype(np.float32)
    if photos:
        queries[0] = unit(photos[0][0].astype(np.float32))
    allowed = rng.random(size) >= barred
    for query, found in zip(
        queries, engine.search(queries, count, allowed if barred else None), strict=True
    ):
        assert_nearest(found, brute_force(photos, query), count, allowed)


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
        assert_nearest(found, brute_force(kept, query), 10, np.ones(500, bool))


class HalfProducts(TorchFunctionMode):
    """Notes the shapes of the products of half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[torch.Size, ...]] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.mv, torch.Tensor.matmul) and args[0].dtype == torch.float16:
            self.shapes.add(tuple(operand.shape for operand in args))
        return func(*args, **(kwargs or {}))


def test_products_of_half_precision_have_few_shapes():
    """A kernel is compiled for each, and kept: 600 MiB for a thousand of them."""
    rng = np.random.default_rng(3)
    engine = ExactEngine(DIMENSION, device="cpu", dtype="float16")
    with HalfProducts() as products:
        for photos in range(1, 60):
            engine.append(unit(rng.normal(size=(rng.integers(100, 300), DIMENSION))))
            engine.drop_before(photos // 3)
            queries = unit(rng.normal(size=(photos % 32 + 1, DIMENSION))).astype(np.float32)
            engine.search(queries, 3, None)
    assert 2 <= len(products.shapes) <= 9


def test_blocks_make_no_difference(monkeypatch):
    """Photos lie across the ends of blocks, and what is given up takes its blocks with it."""
    monkeypatch.setattr(exact, "BLOCK_ROWS", 7)
    rng = np.random.default_rng(2)
    photos = photos_of(rng, 80)
    engine = ExactEngine(DIMENSION, device="cpu")
    for photo in photos:
        engine.append(photo)
    engine.drop_before(33)
    assert len(engine._blocks) <= (engine.starts.rows - engine.starts[33]) // 7 + 2
    for photo in photos_of(rng, 20):
        photos.append(photo)
        engine.append(photo)
    allowed = np.arange(100) >= 33
    for query in unit(rng.normal(size=(10, DIMENSION))).astype(np.float32):
        (found,) = engine.search(query[None], 5, None)
        assert_nearest(found, brute_force(photos, query), 5, allowed)
    np.testing.assert_array_equal(
        engine.vectors(np.array([40, 99])), np.concatenate([photos[40], photos[99]])
    )


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 80),
    built=st.integers(0, 30),
    count=st.integers(1, 90),
    barred=st.sampled_from([0, 0.3, 0.8, 1]),
)
@settings(max_examples=examples(60))
def test_a_small_graph_with_photos_beside_it_is_brute_force_too(seed, size, built, count, barred):
    """A walk with room for every chunk sees every chunk."""
    rng = np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(approximate, "LINK_ROWS", 8)
        patch.setattr(approximate, "WALK_COST", 0)  # walk, though comparing would be faster
        engine = ApproximateEngine(DIMENSION, expansion=1000, begin_at=20)
        photos = photos_of(rng, size)
        for number, photo in enumerate(photos):
            engine.append(photo)
            if number < built:
                engine.build()
        allowed = rng.random(size) >= barred
        queries = unit(rng.normal(size=(3, DIMENSION))).astype(np.float32)
        answers = engine.search(queries, count, allowed if barred else None)
    for query, found in zip(queries, answers, strict=True):
        similarities = np.where(allowed, brute_force(photos, query), -np.inf)
        assert len(set(found.photos.tolist())) == len(found.photos) == min(count, allowed.sum())
        expected = np.sort(similarities)[::-1][: len(found.photos)]
        np.testing.assert_allclose(similarities[found.photos], expected, atol=2e-6)


@pytest.fixture(scope="module")
def large() -> tuple[ApproximateEngine, ExactEngine, np.random.Generator]:
    """12,000 chunks, of which some wait beside the graph."""
    rng = np.random.default_rng(3)
    approximate = ApproximateEngine(32, expansion=256, begin_at=1000)
    exact = ExactEngine(32, device="cpu")
    for photo in photos_of(rng, 4000, 32):
        exact.append(photo)
        approximate.append(photo)
    while approximate.waiting > 500:
        assert approximate.build()
    assert approximate.waiting
    return approximate, exact, rng


@pytest.mark.parametrize("share", [1, 0.9, 0.3, 0.01, 0.001, 0])
def test_the_graph_finds_nearly_what_the_exact_engine_finds(large, share):
    approximate, exact, rng = large
    allowed = None if share == 1 else rng.random(4000) < share
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


@pytest.mark.parametrize("count", [1, 64, 1000, 4000, 5000])
def test_the_graph_never_finds_fewer_than_there_are(large, count):
    """Also when most chunks near the query belong to one photo."""
    approximate, _, rng = large
    query = unit(rng.normal(size=(1, 32))).astype(np.float32)
    (found,) = approximate.search(query, count, None)
    assert len(set(found.photos.tolist())) == min(count, 4000)


def test_many_chunks_of_one_photo_do_not_hide_the_others():
    rng = np.random.default_rng(4)
    query = unit(rng.normal(size=32)).astype(np.float32)
    engine = ApproximateEngine(32, expansion=16, begin_at=100)
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
    options = {"begin_at": 100} if make is ApproximateEngine else {"device": "cpu"}
    engine = make(DIMENSION, **options)
    photos = photos_of(rng, 300)
    for photo in photos[:200]:
        engine.append(photo)
    engine.build()
    save = engine.saver()
    for photo in photos[200:250]:  # comes too late for the snapshot
        engine.append(photo)
    save(tmp_path)

    loaded = make(DIMENSION, **options)
    loaded.load(tmp_path)
    assert loaded.starts.photos == 200
    for photo in photos[200:]:
        loaded.append(photo)
    while loaded.build():
        pass
    for query in unit(rng.normal(size=(10, DIMENSION))).astype(np.float32):
        (found,) = loaded.search(query[None], 5, None)
        assert_nearest(found, brute_force(photos, query), 5, np.ones(300, bool))
    every = np.arange(300)
    np.testing.assert_array_equal(loaded.vectors(every), np.concatenate(photos).astype(np.float32))


def test_a_loaded_graph_has_room_to_grow(tmp_path):
    """Else the first photo that comes then waits until FAISS has copied all vectors."""
    rng = np.random.default_rng(6)
    engine = ApproximateEngine(DIMENSION, begin_at=100)
    for photo in photos_of(rng, 300):
        engine.append(photo)
    while engine.build():
        pass
    engine.saver()(tmp_path)

    loaded = ApproximateEngine(DIMENSION, begin_at=100)
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
    engine = ApproximateEngine(DIMENSION, expansion=expansion, begin_at=10)
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
    assert asked == [expansion or int(approximate.EXPANSION * (engine.starts.rows / 100) ** 0.5)]


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
