"""How fast the bare networks are on this machine: the ceiling of what a service around them can do.

Random pictures of the real shapes, already in memory, go through YOLOv5s and through CLIP's image
tower. Nothing else happens: no decoding, no boxes, no crops, no second process. All cores compute,
in the environment of a replica. The variants take turns, and each figure is the median of a
variant's turns, so that a slow minute of the machine affects all of them.
"""

from __future__ import annotations

import copy
import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from benchmarks.processes import in_new_process
from deployments.compute.device import DTYPES, resolve_dtype
from deployments.compute.replicas import COMPUTING_REPLICA
from deployments.compute.weights import yolov5_weights
from deployments.segmenter.checkpoint import read_checkpoint
from deployments.segmenter.letterbox import letterbox
from deployments.segmenter.yolov5 import YoloV5, load_network
from deployments.settings import SegmenterSettings

CPU = torch.device("cpu")
# Of the detector's input by default, pixels: a square, and the canvas of a landscape photo of 4:3.
SIDE = SegmenterSettings().image_size
CANVASES = ((SIDE, SIDE), letterbox(3 * SIDE, 4 * SIDE, SIDE, stride=32).canvas)
BATCHES = (1, 4, 8, 32)
TURNS = 3
TURN_S = 0.5  # a turn lasts at least this long, and at least one forward pass
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


# From a batch, float32 `[n, 3, h, w]`, to a function that runs it once.
Prepare = Callable[[torch.Tensor], Callable[[], Any]]


def on_torch(network: nn.Module, dtype: str, memory_format: str) -> Prepare:
    """Return what runs a copy of a network by torch."""
    number_format, layout = DTYPES[dtype], FORMATS[memory_format]
    # torch's signatures lack the option for modules.
    own = copy.deepcopy(network).to(number_format).to(memory_format=layout)  # type: ignore[call-overload]

    def prepare(batch: torch.Tensor) -> Callable[[], Any]:
        laid_out = batch.to(number_format, memory_format=layout)
        return lambda: own(laid_out)

    return prepare


def on_openvino(network: nn.Module, dtype: str, memory_format: str) -> Prepare:
    """Return what runs a network by OpenVINO, from the pixels on; its layout is OpenVINO's own."""
    from deployments.compute.openvino import CompiledNetwork, convert

    compiled = CompiledNetwork(convert(network, side_of(network)), DTYPES[dtype])

    def prepare(batch: torch.Tensor) -> Callable[[], Any]:
        pixels = (255 * batch).to(torch.uint8).contiguous(memory_format=torch.channels_last)
        return lambda: compiled(pixels)

    return prepare


# From a network in float32, a number format and a memory format.
BACKENDS: dict[str, Callable[[nn.Module, str, str], Prepare]] = {
    "torch": on_torch,
    "openvino": on_openvino,
}


def side_of(network: nn.Module) -> int:
    """Return a side of the input that a network accepts, pixels."""
    if isinstance(network, YoloV5):
        return 2 * network.stride
    assert isinstance(network, CLIPVisionModelWithProjection)
    side = network.config.image_size
    assert isinstance(side, int)  # others are a pair, or None
    return side


def load_detector() -> YoloV5:
    """Return YOLOv5s in float32."""
    return load_network(read_checkpoint(yolov5_weights("yolov5s")), CPU, torch.float32)


def load_encoder(folder: Path) -> CLIPVisionModelWithProjection:
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
        ("detector", height, width, memory_format)
        for height, width in CANVASES
        for memory_format in FORMATS
    ]
    inputs.append(("encoder", image_size, image_size, "contiguous"))
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
                # The first turn allocates memory, and chooses kernels by shape.
                rates[way].append(way.batch * forwards_per_second(forward, TURN_S * bool(turn)))
                bar.update()
    return [float(np.median(rates[way][1:])) for way in ways]


def forwards_per_second(forward: Callable[[], Any], seconds: float) -> float:
    """Run a network again and again, at least once; return how often it ran per second."""
    began, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - began < seconds:
        forward()
        count += 1
    return count / (time.perf_counter() - began)


def rows(ways: Sequence[Variant], rates: Sequence[float]) -> list[dict[str, Any]]:
    """Return the figures of variants; ratios are to torch, float32, batch 1 with the same input."""
    known = dict(zip(ways, rates, strict=True))
    found = []
    for way, rate in known.items():
        simplest = way._replace(
            backend="torch", dtype="float32", memory_format="contiguous", batch=1
        )
        found.append(
            {
                **way._asdict(),
                "input": f"{way.height} x {way.width}",
                "per_second": rate,
                "ms": 1000 / rate,
                "ratio": rate / known[simplest] if simplest in known else None,
            }
        )
    return found


def measure(encoder: Path, dtypes: Sequence[str], batches: Sequence[int]) -> list[dict[str, Any]]:
    """Time all variants in this process.

    Args:
        encoder: folder of a CLIP.
    """
    tower = load_encoder(encoder)
    ways = variants(side_of(tower), dtypes, batches)
    return rows(ways, time_variants({"detector": load_detector(), "encoder": tower}, ways))


def ceiling(encoder: Path, dtypes: Sequence[str], batches: Sequence[int]) -> list[dict[str, Any]]:
    """Time all variants in a process with the environment of a replica."""
    environment = COMPUTING_REPLICA["runtime_env"]["env_vars"]
    return in_new_process(measure, encoder, dtypes, batches, environment=environment)


def best(found: Sequence[Mapping[str, Any]], network: str, **wanted: Any) -> float:
    """Return the most items per second among the rows of a network.

    Args:
        wanted: what else a row must have, e.g. `batch=1`.
    """
    return max(
        row["per_second"]
        for row in found
        if row["network"] == network and all(row[key] == value for key, value in wanted.items())
    )


def ceiling_rate(found: Sequence[Mapping[str, Any]], crops: float, backend: str) -> float:
    """Return how many photos a second are possible if only the networks take time.

    A photo costs one pass through the detector, on the canvas of a landscape photo, and its crops'
    share of passes through the encoder, each in the fastest way that was measured.

    Args:
        found: the rows of `ceiling`.
        crops: of a photo, on average.
        backend: runs both networks.
    """
    height, width = CANVASES[-1]
    detector = best(found, "detector", height=height, width=width, backend=backend)
    return 1 / (1 / detector + crops / best(found, "encoder", backend=backend))
