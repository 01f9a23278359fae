"""How fast the bare networks are on this machine: the ceiling of what a service around them can do.

Random pictures of the real shapes, already in memory, go through YOLOv5s and through CLIP's image
tower, and nothing else happens: no decoding, no boxes, no crops, no second process. All cores, and
the environment of a replica (`device.COMPUTING_REPLICA`). The variants take turns, and
each figure is the median of its turns, so that a slow minute of the machine is nobody's alone.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from deployments.compute.device import COMPUTING_REPLICA, DTYPES, resolve_dtype
from deployments.compute.weights import yolov5_weights
from deployments.segmenter.checkpoint import read_checkpoint
from deployments.segmenter.yolov5 import load_network

CPU = torch.device("cpu")
# Of the detector's input, pixels: a square, and the canvas of a landscape photo of 4:3.
CANVASES = ((640, 640), (480, 640))
BATCHES = (1, 4, 8, 32)
TURNS = 3
TURN_S = 0.5  # at least; and at least one forward pass
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

COLUMNS = {
    "network": ("network", "{}"),
    "input": ("input", "{}"),
    "backend": ("backend", "{}"),
    "dtype": ("dtype", "{}"),
    "memory_format": ("memory format", "{}"),
    "batch": ("batch", "{}"),
    "per_second": ("items/s", "{:.1f}"),
    "ms": ("ms/item", "{:.2f}"),
    "ratio": ("against torch, float32, batch 1", "{:.2f}"),
}


class Variant(NamedTuple):
    """A way to run a network.

    Attributes:
        network: `detector` or `encoder`.
        height, width: of its input, pixels.
    """

    network: str
    height: int
    width: int
    backend: str
    dtype: str
    memory_format: str
    batch: int


# From a batch, float32 `[n, 3, h, w]`, to what runs it once.
Prepare = Callable[[torch.Tensor], Callable[[], Any]]


def on_torch(network: nn.Module, dtype: str, memory_format: str) -> Prepare:
    """Run a network as it is."""
    of_tensors = {"dtype": DTYPES[dtype], "memory_format": FORMATS[memory_format]}
    network = copy.deepcopy(network).to(**of_tensors)

    def prepare(batch: torch.Tensor) -> Callable[[], Any]:
        batch = batch.to(**of_tensors)
        return lambda: network(batch)

    return prepare


def on_openvino(network: nn.Module, dtype: str, memory_format: str) -> Prepare:
    """Run a network in OpenVINO, which begins with the pixels, and lays them out by itself."""
    from deployments.compute.openvino import CompiledNetwork, convert

    side = network.config.image_size if hasattr(network, "config") else 2 * network.stride
    compiled = CompiledNetwork(convert(network, side), DTYPES[dtype])

    def prepare(batch: torch.Tensor) -> Callable[[], Any]:
        pixels = (255 * batch).to(torch.uint8).contiguous(memory_format=torch.channels_last)
        return lambda: compiled(pixels)

    return prepare


# What makes a network in float32 run in a number format and a memory format.
BACKENDS: dict[str, Callable[[nn.Module, str, str], Prepare]] = {
    "torch": on_torch,
    "openvino": on_openvino,
}


def load_detector() -> nn.Module:
    """Return YOLOv5s in float32."""
    return load_network(read_checkpoint(yolov5_weights("yolov5s")), CPU, torch.float32)


def load_encoder(folder: Path) -> nn.Module:
    """Return a CLIP's image tower in float32."""
    model = CLIPVisionModelWithProjection.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
    return model.eval().requires_grad_(False)


def make_vit_b_32(folder: Path) -> None:
    """Write a CLIP image tower of ViT-B/32's shape; random weights are as fast as trained ones."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPVisionModelWithProjection(CLIPVisionConfig()).save_pretrained(folder)


def default_dtypes() -> list[str]:
    """Return the number formats to compare: bfloat16 only where the hardware computes in it."""
    return ["float32"] + ["bfloat16"] * (resolve_dtype("auto", CPU) == torch.bfloat16)


def variants(image_size: int, dtypes: Sequence[str], batches: Sequence[int]) -> list[Variant]:
    """Return all ways to run both networks.

    Args:
        image_size: side of the encoder's input, pixels.
    """
    inputs = [
        *(("detector", height, width, memory_format) for height, width in CANVASES
          for memory_format in FORMATS),
        ("encoder", image_size, image_size, "contiguous"),
    ]  # fmt: skip
    return [
        Variant(network, height, width, backend, dtype, memory_format, batch)
        for network, height, width, memory_format in inputs
        for backend in BACKENDS
        if backend == "torch" or memory_format == "contiguous"
        for dtype in dtypes
        for batch in batches
    ]


def time_variants(networks: dict[str, nn.Module], ways: Sequence[Variant]) -> list[float]:
    """Return items per second of each variant.

    Args:
        networks: in float32, by the names of the variants.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    prepared: dict[tuple[str, ...], Prepare] = {}
    rates: dict[Variant, list[float]] = defaultdict(list)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(), tqdm(total=(1 + TURNS) * len(ways), unit="turn") as bar:
        for turn in range(1 + TURNS):
            for way in ways:
                key = (way.network, way.backend, way.dtype, way.memory_format)
                if key not in prepared:
                    prepared[key] = BACKENDS[way.backend](
                        networks[way.network], way.dtype, way.memory_format
                    )
                shape = (way.batch, 3, way.height, way.width)
                forward = prepared[key](torch.rand(shape, generator=generator))
                # The first turn warms up: memory, and the kernels that are chosen by shape.
                rates[way].append(way.batch * forwards_per_second(forward, TURN_S * bool(turn)))
                bar.update()
    return [float(np.median(rates[way][1:])) for way in ways]


def forwards_per_second(forward: Callable[[], Any], seconds: float) -> float:
    """Run a network over and over for at least so long, and at least once."""
    began, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - began < seconds:
        forward()
        count += 1
    return count / (time.perf_counter() - began)


def rows(ways: Sequence[Variant], rates: Sequence[float]) -> list[dict[str, Any]]:
    """Return the figures of variants, whose ratios are to the plainest way to run the same."""
    known = dict(zip(ways, rates, strict=True))
    found = []
    for way, rate in known.items():
        plainest = way._replace(
            backend="torch", dtype="float32", memory_format="contiguous", batch=1
        )
        found.append(
            {
                **way._asdict(),
                "input": f"{way.height} x {way.width}",
                "per_second": rate,
                "ms": 1000 / rate,
                "ratio": rate / known[plainest] if plainest in known else None,
            }
        )
    return found


def measure(encoder: Path, dtypes: Sequence[str], batches: Sequence[int]) -> list[dict[str, Any]]:
    """Time all variants in this process.

    Args:
        encoder: folder of a CLIP.
    """
    networks = {"detector": load_detector(), "encoder": load_encoder(encoder)}
    ways = variants(networks["encoder"].config.image_size, dtypes, batches)
    return rows(ways, time_variants(networks, ways))


def ceiling(encoder: Path, dtypes: Sequence[str], batches: Sequence[int]) -> list[dict[str, Any]]:
    """Time all variants in a process with the environment of a replica."""
    before = dict(os.environ)
    os.environ |= COMPUTING_REPLICA["runtime_env"]["env_vars"]
    try:
        # Spawned: the allocator and OpenMP read the environment when a process begins.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            return process.submit(measure, encoder, dtypes, batches).result()
    finally:
        os.environ.clear()
        os.environ |= before


def best(found: Sequence[dict[str, Any]], network: str, **wanted: Any) -> float:
    """Return the most items per second among the rows of a network.

    Args:
        wanted: what else a row must have, e.g. `batch=1`.
    """
    return max(
        row["per_second"]
        for row in found
        if row["network"] == network and all(row[key] == value for key, value in wanted.items())
    )


def ceiling_rate(found: Sequence[dict[str, Any]], crops: float, backend: str) -> float:
    """Return how many photos a second there could be if only the networks took time.

    A photo costs one pass through the detector, on the canvas of a landscape photo, and its crops'
    share of passes through the encoder, each in the fastest way that was measured.

    Args:
        found: what `ceiling` returned.
        crops: of a photo.
        backend: what runs both networks.
    """
    height, width = CANVASES[-1]
    detector = best(found, "detector", height=height, width=width, backend=backend)
    return 1 / (1 / detector + crops / best(found, "encoder", backend=backend))
