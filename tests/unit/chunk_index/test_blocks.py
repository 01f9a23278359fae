"""Blocks of vectors: they make no difference, and products have few shapes and a bound."""

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from deployments.chunk_index import blocks
from deployments.chunk_index.approximate import ApproximateEngine
from deployments.chunk_index.exact import ExactEngine
from tests.unit.chunk_index.photos import DIMENSION, assert_nearest, names, photos_of, unit


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
    engine = ApproximateEngine(DIMENSION)
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
