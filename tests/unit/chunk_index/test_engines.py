"""Both engines against brute force, ties included; the graph against the exact engine."""

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from deployments.chunk_index import approximate, blocks, known
from deployments.chunk_index.approximate import ApproximateEngine
from deployments.chunk_index.exact import ExactEngine
from deployments.chunk_index.owners import Starts
from tests.support.examples import examples

DIMENSION = 8
DTYPES = {"float32": np.float32, "float16": np.float16}


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
    engine = ApproximateEngine(DIMENSION, begin_at=10**9)
    with HalfProducts() as products:
        for photos in range(1, 60):
            engine.append(unit(rng.normal(size=(rng.integers(100, 300), DIMENSION))))
            engine._waiting.drop_before(photos * 60)
            queries = unit(rng.normal(size=(photos % 32 + 1, DIMENSION))).astype(np.float32)
            engine.search(queries, 3, np.arange(photos) >= photos - 1)
    assert 2 <= len(products.shapes) <= 9


@pytest.mark.parametrize("step_bytes", [1, 2**20])
def test_blocks_make_no_difference(monkeypatch, step_bytes):
    """Photos lie across the ends of blocks, and several blocks may be compared at a time."""
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 64)
    monkeypatch.setattr(blocks, "GRAIN_ROWS", 64)
    monkeypatch.setattr(blocks, "STEP_BYTES", {"cpu": step_bytes})
    rng = np.random.default_rng(2)
    photos, ids = photos_of(rng, 300), names(rng, 300)
    engine = ExactEngine(DIMENSION, device="cpu")
    for photo, id in zip(photos, ids, strict=True):
        engine.append(photo, id)
    queries = unit(rng.normal(size=(10, DIMENSION))).astype(np.float32)
    for query, found in zip(queries, engine.search(queries, 5, None), strict=True):
        assert_nearest(found, photos, ids, query, 5)
    np.testing.assert_array_equal(
        engine.vectors(np.array([40, 299])), np.concatenate([photos[40], photos[299]])
    )


def test_what_is_linked_takes_its_blocks_with_it(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 7)
    rng = np.random.default_rng(2)
    engine = ApproximateEngine(DIMENSION, begin_at=10)
    for photo in photos_of(rng, 80):
        engine.append(photo)
    assert engine.build()
    assert len(engine._waiting._blocks) <= engine.waiting // 7 + 2


def test_what_the_products_take_is_bounded(monkeypatch):
    """All queries with all vectors at once would take 11 GiB for 40 million chunks."""
    monkeypatch.setattr(blocks, "BLOCK_ROWS", blocks.GRAIN_ROWS)
    offered = []
    monkeypatch.setattr(
        blocks, "offer", lambda _, products, numbers: offered.append(products.nbytes)
    )
    rng = np.random.default_rng(8)
    vectors = blocks.Blocks(DIMENSION, torch.device("cpu"), torch.float16)
    for _ in range(40):
        vectors.append(unit(rng.normal(size=(blocks.GRAIN_ROWS, DIMENSION))).astype(np.float16))
    for queries in (1, 32):
        vectors.search(np.zeros((queries, DIMENSION), np.float32), [], None)
    assert sum(offered) == 2 * 33 * 40 * blocks.GRAIN_ROWS
    assert max(offered) <= blocks.STEP_BYTES["cpu"]


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
        engine = ApproximateEngine(DIMENSION, expansion=1000, begin_at=20)
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
    engine, exact = ApproximateEngine(64, begin_at=1000), ExactEngine(64, device="cpu")
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
    engine = make(64, **({"begin_at": 1000} if make is ApproximateEngine else {"device": "cpu"}))
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
    engine = make(DIMENSION, **({"begin_at": 20} if make is ApproximateEngine else {}))
    photos = photos_of(rng, 200)
    for photo in photos:
        engine.append(photo)
        engine.build()
    distinct = len(np.unique(np.concatenate(photos), axis=0))
    assert distinct < 0.8 * engine.starts.rows == 0.8 * sum(map(len, photos))
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


@pytest.fixture(scope="module")
def large() -> tuple[ApproximateEngine, ExactEngine, np.random.Generator]:
    """10,000 vectors, of which some wait beside the graph."""
    rng = np.random.default_rng(3)
    approximate = ApproximateEngine(32, expansion=256, begin_at=1000)
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
    assert loaded.starts.photos == 200
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
    assert asked == [
        expansion or int(approximate.EXPANSION * (engine.owners.vectors.rows / 100) ** 0.5)
    ]


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
