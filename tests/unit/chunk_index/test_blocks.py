"""Blocks of vectors: they make no difference, and products have few shapes and a bound."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from deployments.chunk_index import blocks, nearest
from deployments.chunk_index.approximate import ApproximateEngine
from deployments.chunk_index.exact import ExactEngine
from tests.support.running.examples import examples
from tests.unit.chunk_index.photos import DIMENSION, assert_nearest, names, photos_of, unit


class HalfProducts(TorchFunctionMode):
    """Notes the shapes of the products of half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[torch.Size, ...]] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.mv, torch.mm) and args[0].dtype == torch.float16:
            self.shapes.add(tuple(operand.shape for operand in args))
        return func(*args, **(kwargs or {}))


def test_products_of_half_precision_have_few_shapes():
    """A kernel is compiled for each, and kept: 600 MiB for a thousand of them."""
    rng = np.random.default_rng(3)
    engine = ApproximateEngine(DIMENSION)
    with HalfProducts() as products:
        for photos in range(1, 60):
            engine.append(unit(rng.normal(size=(rng.integers(100, 300), DIMENSION))))
            engine._waiting.drop_before(photos * 60)
            queries = unit(rng.normal(size=(photos % 32 + 1, DIMENSION))).astype(np.float32)
            engine.search(queries, 3, np.arange(photos) >= photos - 1)
    assert 2 <= len(products.shapes) <= 9


@given(
    seed=st.integers(0, 2**32 - 1),
    step_bytes=st.sampled_from([1, 2**12, 2**20]),
    gathered=st.sampled_from([1, 50, 10_000]),
    piece=st.sampled_from([1, 7, 1000]),
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=20),
    barred=st.sampled_from([0, 0.3, 0.8]),
)
@settings(max_examples=examples(60))
def test_sizes_make_no_difference(seed, step_bytes, gathered, piece, counts, barred):
    """Photos lie across the ends of blocks, which are compared in one or several steps.

    Some vectors have only been gathered. As on a GPU, and as on a CPU.
    """
    rng = np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_ROWS", {"cpu": 64})
        patch.setattr(blocks, "GRAIN_ROWS", 64)
        patch.setattr(blocks, "GATHERED_ROWS", {"cpu": gathered})
        patch.setattr(blocks, "STEP_BYTES", {"cpu": step_bytes})
        patch.setattr(nearest, "GROUP", 8)
        patch.setattr(nearest, "PIECE_GROUPS", piece)
        patch.setattr(nearest, "PIECE_ROWS", piece)
        patch.setattr(nearest, "FEW", 4)
        photos, ids = photos_of(rng, 200), names(rng, 200)
        engine = ExactEngine(DIMENSION, device="cpu")
        queries = unit(rng.normal(size=(len(counts), DIMENSION))).astype(np.float32)
        queries[::2] = unit(photos[7][0].astype(np.float32))
        for size in (100, 200):
            for photo, id in zip(photos[size - 100 : size], ids[size - 100 : size], strict=True):
                engine.append(photo, id)
            allowed = rng.random(size) >= barred
            answers = engine.search(queries, counts, allowed if barred else None)
            for query, count, found in zip(queries, counts, answers, strict=True):
                assert_nearest(found, photos[:size], ids[:size], query, count, allowed)
        np.testing.assert_array_equal(
            engine.vectors(np.array([199, 40])), np.concatenate([photos[199], photos[40]])
        )


def test_if_the_nearest_are_of_too_few_photos_more_are_looked_at(monkeypatch):
    """And only for the queries that need it."""
    monkeypatch.setattr(blocks, "BLOCK_ROWS", {"cpu": blocks.GRAIN_ROWS})
    asked, best = [], nearest._best
    monkeypatch.setattr(
        nearest, "_best", lambda *args: asked.append((args[2].tolist(), args[3])) or best(*args)
    )
    rng = np.random.default_rng(6)
    queries = unit(rng.normal(size=(3, 32))).astype(np.float32)
    photos = [unit(rng.normal(size=(2, 32))).astype(np.float16) for _ in range(3000)]
    photos[1000] = unit(queries[1] + 0.02 * rng.normal(size=(100, 32))).astype(np.float16)
    engine = ExactEngine(32, device="cpu")
    for photo in photos:
        engine.append(photo)
    answers = engine.search(queries, [2, 3, 3], None)
    for query, count, found in zip(queries, [2, 3, 3], answers, strict=True):
        assert_nearest(found, photos, [""] * 3000, query, count)
    assert asked == [([0], 8), ([1, 2], 12), ([1], 48)]


def test_what_was_gathered_is_in_what_is_saved(monkeypatch, tmp_path):
    monkeypatch.setattr(blocks, "BLOCK_ROWS", {"cpu": 64})
    monkeypatch.setattr(blocks, "GATHERED_ROWS", {"cpu": 100})
    rng = np.random.default_rng(4)
    engine = ExactEngine(DIMENSION, device="cpu")
    photos = photos_of(rng, 130)
    for photo in photos:
        engine.append(photo)
    assert engine._blocks._gathered
    engine.saver()(tmp_path)
    loaded = ExactEngine(DIMENSION, device="cpu")
    loaded.load(tmp_path)
    every = np.arange(130)
    np.testing.assert_array_equal(loaded.vectors(every), engine.vectors(every))


def test_a_sealed_engine_keeps_no_room_to_grow(monkeypatch, tmp_path):
    monkeypatch.setattr(blocks, "GRAIN_ROWS", 64)
    rng = np.random.default_rng(5)
    engine, photos, ids = ExactEngine(DIMENSION, device="cpu"), photos_of(rng, 90), names(rng, 90)
    for photo, id in zip(photos, ids, strict=True):
        engine.append(photo, id)
    engine.seal()
    engine.saver()(tmp_path)
    loaded = ExactEngine(DIMENSION, device="cpu")
    loaded.load(tmp_path, sealed=True)
    query = unit(rng.normal(size=DIMENSION)).astype(np.float32)
    for each in (engine, loaded):
        (block,) = each._blocks._blocks
        assert 0 <= len(block) - each.owners.vectors.rows < 64
        (found,) = each.search(query[None], 5, None)
        assert_nearest(found, photos, ids, query, 5)


def test_what_is_linked_takes_its_blocks_with_it(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ROWS", {"cpu": 7})
    rng = np.random.default_rng(2)
    engine = ApproximateEngine(DIMENSION)
    for photo in photos_of(rng, 80):
        engine.append(photo)
    assert engine.build()
    assert len(engine._waiting._blocks) <= engine.waiting // 7 + 2
    while engine.build():
        pass
    assert not engine._waiting._blocks


def test_what_the_products_take_is_bounded(monkeypatch):
    """All queries with all vectors at once would take 11 GiB for 40 million chunks."""
    monkeypatch.setattr(blocks, "BLOCK_ROWS", {"cpu": blocks.GRAIN_ROWS})
    offered = []
    monkeypatch.setattr(blocks, "offer", lambda _, products, first: offered.append(products.nbytes))
    rng = np.random.default_rng(8)
    vectors = blocks.Blocks(DIMENSION, torch.device("cpu"), torch.float16)
    for _ in range(40):
        vectors.append(unit(rng.normal(size=(blocks.GRAIN_ROWS, DIMENSION))).astype(np.float16))
    for queries in (1, 32):
        vectors.search(np.zeros((queries, DIMENSION), np.float32), [], None)
    assert sum(offered) == 2 * (1 + 32) * 40 * blocks.GRAIN_ROWS
    assert max(offered) <= blocks.STEP_BYTES["cpu"]
