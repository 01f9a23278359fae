"""How long the exact engine takes to search many vectors, and how much memory."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.speed import per_second
from deployments.chunk_index.blocks import BLOCK_ROWS
from deployments.chunk_index.exact import ExactEngine
from deployments.chunk_index.owners import Starts

Rows = list[dict[str, Any]]

CHUNKS = 25  # of a photo
WANTED = 10  # photos


def searches(sizes: Sizes, device: torch.device, seconds: float) -> Rows:
    """Time searches for one query and for several, among made-up vectors in float16."""
    found: Rows = []
    for count in sizes.vectors:
        row = {"vectors": count, "dimension": sizes.dimension}
        try:
            engine = make_engine(count, sizes.dimension, device)
            found += [row | _search(engine, queries, device, seconds) for queries in sizes.queries]
            del engine  # before the next one is made
        except torch.OutOfMemoryError as error:
            print(f"{count:,} vectors: {str(error).splitlines()[0]}", file=sys.stderr)
            found.append(row)
    return found


def make_engine(count: int, dimension: int, device: torch.device) -> ExactEngine:
    """Return an engine of random vectors.

    They are made on the device, a block at a time: to bring a hundred million there takes minutes.
    """
    engine = ExactEngine(dimension, device=device.type)
    owners, blocks = engine.owners, engine._blocks
    ends = np.append(np.arange(0, count, CHUNKS), count)
    owners.chunks, owners.vectors = Starts(ends), Starts(ends)
    owners.ids = [f"{photo}" for photo in range(len(ends) - 1)]
    size = (BLOCK_ROWS[device.type], dimension)
    for _ in range(0, count, size[0]):
        blocks._blocks.append(normalize(torch.randn(size, device=device, dtype=torch.float16)))
    blocks.end = blocks._written = count
    engine.seal()
    return engine


def _search(
    engine: ExactEngine, queries: int, device: torch.device, seconds: float
) -> dict[str, Any]:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    wanted = normalize(torch.randn(queries, engine._blocks.dimension)).numpy()
    rate = per_second(lambda: engine.search(wanted, WANTED, None), device, seconds)
    memory = torch.cuda.max_memory_reserved() / 1e9 if device.type == "cuda" else None
    return {"queries": queries, "ms": 1000 / rate, "gigabytes": memory}
