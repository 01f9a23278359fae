"""Measure what one GPU does: the bare networks, each stage alone and all at once, and searches.

    scripts/bench.py gpu [--photos FOLDER] [--json FILE]
    python scripts/bench_gpu.py    # where there are torch, NumPy and Pillow; for the pipeline
                                   # also what the service needs

First it checks that this GPU computes the same as a CPU. Weights are random, because they are as
fast as trained ones. The detector's threshold is such that photos have six objects on average, and
with the tiles about 25 chunks. With `--device cpu` the same code runs with tiny sizes, as a test.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

# `deployments` isn't installed where this runs by itself.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.gpu.checks import checks
from benchmarks.gpu.decoders import DECODERS, LIMITS, Decoders
from benchmarks.gpu.networks import random_yolov5
from benchmarks.gpu.search import searches
from benchmarks.gpu.sizes import FULL, TINY, Sizes, make_photos, read_photos
from benchmarks.gpu.speed import MODES, ceilings
from benchmarks.gpu.throughput import (
    TRAINED_THRESHOLD,
    choose_threshold,
    decoding,
    make_photo_encoder,
    pipeline,
)
from common.tables import table

from deployments.compute.device import DTYPES, pinned
from deployments.decoding.image import decode
from deployments.segmenter.checkpoint import read_checkpoint

Rows = list[dict[str, Any]]

NO_GPU = (
    "Torch sees no GPU: run this on a machine with one, or with --device cpu, which runs the same "
    "code with tiny sizes."
)
COLUMNS = {
    "checks": {
        "what": ("on this device, against one CPU", "{}"),
        "value": ("is", "{:.5f}"),
        "limit": ("may be", "{:.5f}"),
        "fine": ("fine", "{}"),
    },
    "ceilings": {
        "network": ("network", "{}"),
        "input": ("input", "{}"),
        "dtype": ("dtype", "{}"),
        "mode": ("mode", "{}"),
        "batch": ("batch", "{}"),
        "per_second": ("items/s", "{:,.0f}"),
        "ms": ("ms/batch", "{:.3f}"),
        "teraflops": ("TFLOP/s", "{:.1f}"),
        "share": ("of the matrix rate", "{:.1%}"),
    },
    "decoding": {
        "workers": ("decoding in", "{}"),
        "number": ("number", "{}"),
        "per_second": ("photos/s", "{:,.0f}"),
        "per_worker": ("photos/s of one", "{:,.0f}"),
    },
    "pipeline": {
        "encoder": ("encoder", "{}"),
        "stage": ("stage", "{}"),
        "per_second": ("photos/s", "{:,.0f}"),
        "chunks": ("chunks/photo", "{:.1f}"),
        "process_ms": ("CPU time of the process, ms/photo", "{:.2f}"),
        "of_decoding": ("of what the cores decode", "{:.2f}"),
        "of_stages": ("of the stages, one after the other", "{:.2f}"),
    },
    "search": {
        "vectors": ("vectors", "{:,}"),
        "dimension": ("dimension", "{}"),
        "queries": ("queries at a time", "{}"),
        "ms": ("ms", "{:.2f}"),
        "gigabytes": ("memory of the GPU, GB", "{:.1f}"),
    },
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="(%(default)s)")
    parser.add_argument(
        "--photos", type=Path, metavar="FOLDER", help="JPEGs (made-up ones of 640 x 480)"
    )
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="a trained YOLOv5 (random ones of YOLOv5s)"
    )
    parser.add_argument(
        "--encoders",
        nargs="+",
        choices=FULL.encoders,
        default=list(FULL.encoders),
        help="(%(default)s)",
    )
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=DTYPES,
        default=["bfloat16", "float32"],
        help="number formats of the networks; the pipeline takes the first one (%(default)s)",
    )
    parser.add_argument(
        "--modes",
        nargs="+",
        choices=MODES,
        default=["eager", "graph"],
        help="ways to launch a network; compile takes minutes (%(default)s)",
    )
    parser.add_argument(
        "--parts", nargs="+", choices=COLUMNS, default=list(COLUMNS), help="(%(default)s)"
    )
    parser.add_argument(
        "--batch", type=int, metavar="N", help="photos that go through the pipeline together (32)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="that decode (%(default)s: as many as cores)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=0.5,
        help="for each figure; the pipeline 20 times that (%(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")


def run(arguments: argparse.Namespace) -> None:
    """Measure, and print each table as soon as it is there."""
    if arguments.device == "cpu":
        sizes = TINY
        torch.set_num_threads(
            1
        )  # with so little work, several threads would only wait for each other
    elif torch.cuda.is_available():
        sizes = FULL
    else:
        sys.exit(NO_GPU)
    sizes = sizes._replace(encoders={name: sizes.encoders[name] for name in arguments.encoders})
    photos = (
        read_photos(arguments.photos)
        if arguments.photos
        else make_photos(sizes.photo, sizes.photos)
    )
    size = arguments.batch or sizes.batch
    # Before anything is computed: the processes are copies of this one.
    decoders: dict[str, Decoders] = {
        name: kind(photos, arguments.workers, size) for name, kind in DECODERS.items()
    }
    try:
        tables = dict(_measure(arguments, sizes._replace(batch=size), photos, decoders))
    finally:
        for decoder in decoders.values():
            decoder.close()
    if arguments.json:
        results = {"machine": _describe(arguments), "tables": tables}
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


def _measure(
    arguments: argparse.Namespace,
    sizes: Sizes,
    photos: list[bytes],
    decoders: dict[str, Decoders],
) -> Iterator[tuple[str, Rows]]:
    """Measure the parts asked for; print each table, and yield it by its name."""
    device, dtype = torch.device(arguments.device), DTYPES[arguments.dtypes[0]]
    # Products of float32 are computed in TF32, as convolutions are by default.
    torch.set_float32_matmul_precision("high")
    detector = (
        read_checkpoint(arguments.weights) if arguments.weights else random_yolov5(sizes.width)
    )
    some = [decode(photo, LIMITS).pixels for photo in photos[: 8 * sizes.batch]]
    print(", ".join(f"{key} {value}" for key, value in _describe(arguments).items()))

    def from_bytes(encoder: str) -> Rows:
        threshold = TRAINED_THRESHOLD
        if arguments.weights is None:
            threshold = choose_threshold(detector, some, sizes, device)
        batch = [pinned(some[n % len(some)], device) for n in range(sizes.batch)]
        with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
            made = make_photo_encoder(
                Path(folder), sizes, encoder, detector, threshold, device, arguments.dtypes[0]
            )
            return pipeline(encoder, made, photos, batch, decoded, 5 * arguments.seconds)

    parts = {
        "checks": lambda: checks(sizes, detector, device, dtype),
        "ceilings": lambda: ceilings(
            sizes, detector, device, arguments.dtypes, arguments.modes, arguments.seconds
        ),
        "decoding": lambda: decoded,
        "pipeline": lambda: [row for name in sizes.encoders for row in from_bytes(name)],
        "search": lambda: searches(sizes, device, arguments.seconds),
    }
    decoded: Rows = []
    for name in (part for part in parts if part in arguments.parts):
        if name in ("decoding", "pipeline") and not decoded:
            decoded = decoding(decoders, device, arguments.workers, 5 * arguments.seconds)
        rows = parts[name]()
        print(f"\n{table(rows, COLUMNS[name])}", flush=True)
        yield name, rows


def _describe(arguments: argparse.Namespace) -> dict[str, str]:
    gpu = torch.cuda.get_device_name() if arguments.device == "cuda" else "none, tiny sizes"
    return {"GPU": gpu, "cores": str(os.cpu_count()), "torch": torch.__version__}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_arguments(parser)
    run(parser.parse_args())


if __name__ == "__main__":
    main()
