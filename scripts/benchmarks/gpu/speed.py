"""How fast the bare networks are on a GPU, and how close to the rate of its matrix units."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.networks import make_detector, make_tower, operations
from benchmarks.gpu.sizes import Sizes
from deployments.compute.device import DTYPES
from deployments.segmenter.checkpoint import Checkpoint
from deployments.segmenter.letterbox import letterbox

Rows = list[dict[str, Any]]


def run_eager(network: nn.Module, example: torch.Tensor) -> Callable[[], Any]:
    """Launch each operation of a forward pass by itself."""
    return lambda: network(example)


def run_graph(network: nn.Module, example: torch.Tensor) -> Callable[[], Any]:
    """Launch a whole forward pass at once; the input is copied to the captured memory."""
    static = example.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            network(static)
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        network(static)

    def run() -> None:
        static.copy_(example)
        captured.replay()

    return run


def run_compiled(network: nn.Module, example: torch.Tensor) -> Callable[[], Any]:
    """Launch what torch compiles a forward pass to."""
    torch._dynamo.reset()
    compiled = torch.compile(network)
    return lambda: compiled(example)


# From a network and an input to a function that runs it once.
MODES: dict[str, Callable[[nn.Module, torch.Tensor], Callable[[], Any]]] = {
    "eager": run_eager,
    "graph": run_graph,
    "compile": run_compiled,
}


@torch.inference_mode()
def ceilings(
    sizes: Sizes,
    detector: Checkpoint,
    device: torch.device,
    dtypes: Sequence[str],
    modes: Sequence[str],
    seconds: float,
) -> Rows:
    """Time the bare networks, and a large product in bfloat16 to compare them with."""
    matrix = torch.randn(sizes.matrix, sizes.matrix, device=device).bfloat16()
    peak = 2 * sizes.matrix**3 * per_second(lambda: matrix @ matrix, device, seconds)
    found: Rows = [
        {
            "network": "product of matrices",
            "input": " x ".join([f"{sizes.matrix}"] * 3),
            "dtype": "bfloat16",
            "teraflops": peak / 1e12,
            "share": 1.0,
        }
    ]
    for name, dtype, network, example in _networks(sizes, detector, device, dtypes):
        work = operations(network, example)
        batches = sizes.batches + (sizes.crops if name != "yolov5s" else ())
        for mode, batch in itertools.product(modes, batches):
            row = {
                "network": name,
                "input": " x ".join(map(str, example.shape[2:])),
                "mode": mode,
                "dtype": "float32 (TF32)" if dtype == "float32" else dtype,
                "batch": batch,
            }
            try:
                run = MODES[mode](network, example.repeat(batch, 1, 1, 1))
                rate = batch * per_second(run, device, seconds)
            except Exception as error:  # this machine can't do it
                reason = str(error).strip().split("\n")[0]
                print(f"{name}, {dtype}, {mode}, batch {batch}: {reason}", file=sys.stderr)
            else:
                row |= {"per_second": rate, "ms": 1000 * batch / rate}
                row |= {"teraflops": rate * work / 1e12, "share": rate * work / peak}
            found.append(row)
    return found


def _networks(
    sizes: Sizes, detector: Checkpoint, device: torch.device, dtypes: Sequence[str]
) -> Iterator[tuple[str, str, nn.Module, torch.Tensor]]:
    """Yield each network in each number format: name, format, network, and a batch of one."""
    width, height = sizes.photo
    canvas = letterbox(height, width, sizes.image_size, 32).canvas
    pixels = torch.randint(0, 256, (1, *canvas, 3), dtype=torch.uint8, device=device)
    for dtype in dtypes:
        network = make_detector(detector, device, DTYPES[dtype])
        yield "yolov5s", dtype, network, pixels.permute(0, 3, 1, 2)
    for name, shape in sizes.encoders.items():
        for dtype in dtypes:
            side = shape.image_size
            example = torch.randn(1, 3, side, side, device=device, dtype=DTYPES[dtype])
            yield name, dtype, make_tower(shape, device, DTYPES[dtype]), example


def per_second(run: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Return how often a function runs in a second, with all that it starts on the device."""
    run()
    count = 1
    while True:
        synchronize(device)
        began = time.perf_counter()
        for _ in range(count):
            run()
        synchronize(device)
        took = time.perf_counter() - began
        if took >= seconds:
            return count / took
        count = max(count + 1, min(10 * count, int(count * 1.3 * seconds / max(took, 1e-9))))


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
