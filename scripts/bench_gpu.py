"""Measure the way of photos on one GPU: its ceilings, its stages alone, and all of them at once.

    scripts/bench.py gpu [--photos FOLDER] [--json FILE]
    python scripts/bench_gpu.py    # where there are torch, NumPy and Pillow, and nothing else

First it checks that this GPU computes what a CPU does. Weights are random, for they are as fast as
trained ones; the detector's threshold is such that photos have six objects in the mean, and with
the tiles some 40 chunks. With `--device cpu` the same code runs with tiny sizes, to see that it
does.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

# `deployments` isn't installed where this runs by itself.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.gpu.checks import checks
from benchmarks.gpu.decoders import AHEAD, DECODERS, LIMITS, Batches, Processes, Threads
from benchmarks.gpu.networks import make_detector, make_tower, random_yolov5
from benchmarks.gpu.pipeline import Pipeline
from benchmarks.gpu.sizes import FULL, TINY, Sizes, make_photos, read_photos
from benchmarks.gpu.speed import MODES, ceilings, per_second
from common.tables import table

from deployments.compute import images
from deployments.compute.device import DTYPES, pinned
from deployments.compute.images import decode
from deployments.segmenter.checkpoint import Checkpoint, read_checkpoint

Rows = list[dict[str, Any]]

OBJECTS = 6  # of a photo, in the mean
TRAINED_THRESHOLD = 0.1  # the service's, for weights that were trained
NO_GPU = (
    "There is no GPU that torch sees: run this where one is, or with --device cpu, which runs the "
    "same code with tiny sizes."
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
        "thread_ms": ("driving thread, ms/photo", "{:.3f}"),
        "of_stage": ("of its slowest stage", "{:.2f}"),
        "of_bound": ("of what cores, bus and GPU allow", "{:.2f}"),
    },
}


# Decoding


def decoding(
    decoders: dict[str, Threads | Processes], device: torch.device, workers: int, seconds: float
) -> Rows:
    """Count what the cores decode while they have nothing else to do."""
    found = []
    for name, decoder in decoders.items():
        with closing(decoder.batches(device)) as batches:
            for _ in range(AHEAD):
                next(batches)
            began, count = time.perf_counter(), 0
            while time.perf_counter() - began < seconds:
                count += len(next(batches))
            rate = count / (time.perf_counter() - began)
        found.append(
            {"workers": name, "number": workers, "per_second": rate, "per_worker": rate / workers}
        )
    return found


# The pipeline


def make_pipeline(
    sizes: Sizes, encoder: str, detector: Checkpoint, trained: bool, photos: list[np.ndarray],
    device: torch.device, dtype: torch.dtype,
) -> Pipeline:  # fmt: skip
    """Return a pipeline that finds `OBJECTS` in a photo in the mean, or what a trained one does."""
    shape = sizes.encoders[encoder]
    pipeline = Pipeline(
        make_detector(detector, device, dtype), make_tower(shape, device, dtype),
        threshold=TRAINED_THRESHOLD, image_size=sizes.image_size, crop_size=shape.image_size,
        device=device, dtype=dtype,
    )  # fmt: skip
    if not trained:
        most = OBJECTS * len(photos) + 1
        highest = torch.zeros(most, device=device)
        for start in range(0, len(photos), sizes.batch):
            with torch.inference_mode():
                some = pipeline.upload(photos[start : start + sizes.batch])
                for _, _, rows in pipeline.predict(some):
                    confidences = (rows[..., 4:5] * rows[..., 5:]).amax(2).flatten()
                    highest = torch.cat((highest, confidences)).topk(most).values
        pipeline.threshold = highest[-1].item()
    return pipeline


@torch.inference_mode()
def stages(pipeline: Pipeline, batch: list[np.ndarray], seconds: float) -> dict[str, float]:
    """Return the photos a second of each stage on the device, when it has it for itself."""
    photos = pipeline.upload(batch)
    predictions = pipeline.predict(photos)
    boxes = pipeline.choose(predictions)
    crops = pipeline.cut(photos, boxes)
    alone = {
        "upload": lambda: pipeline.upload(batch),
        "canvases, detector": lambda: pipeline.predict(photos),
        "suppression, boxes": lambda: pipeline.choose(predictions),
        "crops": lambda: pipeline.cut(photos, boxes),
        "normalise, encoder": lambda: pipeline.encode(crops),
    }
    return {
        name: len(batch) * per_second(run, pipeline.device, seconds) for name, run in alone.items()
    }


def whole(pipeline: Pipeline, batches: Batches, seconds: float) -> dict[str, float]:
    """Run everything for a while; returns photos a second, chunks, and the thread's own time."""
    with closing(pipeline.run(batches)) as results:
        for _ in range(AHEAD):
            next(results)
        began, cpu = time.perf_counter(), time.thread_time()
        photos = chunks = 0
        while time.perf_counter() - began < seconds:
            done = next(results)
            photos += len(done.photos)
            chunks += len(done.vectors)
        took, cpu = time.perf_counter() - began, time.thread_time() - cpu
    return {
        "per_second": photos / took, "chunks": chunks / photos, "thread_ms": 1000 * cpu / photos,
    }  # fmt: skip


def pipelines(
    encoder: str,
    pipeline: Pipeline,
    decoders: dict[str, Threads | Processes],
    decoded: Rows,
    batch: list[np.ndarray],
    seconds: float,
) -> Rows:
    """Measure the stages of a pipeline, then all of it with each kind of decoders.

    The stages on the GPU share it, so together they allow no more than the sum of their times. The
    bus and the cores work beside it.
    """
    alone = stages(pipeline, batch, seconds)
    on_gpu = 1 / sum(1 / rate for name, rate in alone.items() if name != "upload")
    found = [
        *({"stage": f"decoding in {row['workers']}", "per_second": row["per_second"]}
          for row in decoded),
        *({"stage": name, "per_second": rate} for name, rate in alone.items()),
        {"stage": "the GPU's together", "per_second": on_gpu},
        {"stage": "all, photos decoded before"}
        | whole(pipeline, itertools.repeat(batch), seconds),
    ]  # fmt: skip
    for row in decoded:
        with closing(decoders[row["workers"]].batches(pipeline.device)) as batches:
            done = whole(pipeline, batches, 4 * seconds)
        rate = done["per_second"]
        found.append(
            {
                "stage": f"**all, decoding in {row['workers']}**",
                **done,
                "of_stage": rate / min(row["per_second"], *alone.values()),
                "of_bound": rate / min(row["per_second"], alone["upload"], on_gpu),
            }
        )
    return [{"encoder": encoder, **row} for row in found]


# The command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="(%(default)s)")
    parser.add_argument(
        "--photos", type=Path, metavar="FOLDER", help="JPEGs (some are made up: 640 x 480)"
    )
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="a trained YOLOv5 (random ones of YOLOv5s)"
    )
    parser.add_argument(
        "--encoders", nargs="+", choices=FULL.encoders, default=list(FULL.encoders),
        help="(%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, default=["bfloat16", "float32"],
        help="number formats of the networks; the pipeline takes the first one (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--modes", nargs="+", choices=MODES, default=["eager", "graph"],
        help="ways to launch a network; compile takes minutes (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--parts", nargs="+", choices=COLUMNS, default=list(COLUMNS), help="(%(default)s)"
    )
    parser.add_argument(
        "--batch", type=int, metavar="N", help="photos that go through the pipeline together (32)"
    )
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), metavar="N",
        help="that decode (%(default)s: as many as cores)",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=float, default=0.5,
        help="for each figure; the pipeline 20 times that (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")


def run(arguments: argparse.Namespace) -> None:
    """Measure, and print each table as soon as it is there."""
    if arguments.device == "cpu":
        sizes = TINY
        torch.set_num_threads(1)  # with so little to do they would only wait for one another
    elif torch.cuda.is_available():
        sizes = FULL
    else:
        sys.exit(NO_GPU)
    sizes = sizes._replace(encoders={name: sizes.encoders[name] for name in arguments.encoders})
    photos = (
        read_photos(arguments.photos) if arguments.photos
        else make_photos(sizes.photo, sizes.photos)
    )  # fmt: skip
    size = arguments.batch or sizes.batch
    # Before anything is computed: the processes are copies of this one.
    decoders = {name: kind(photos, arguments.workers, size) for name, kind in DECODERS.items()}
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
    decoders: dict[str, Threads | Processes],
) -> Iterator[tuple[str, Rows]]:
    """Measure all parts that are asked for; prints tables, and yields them by their names."""
    device, dtype = torch.device(arguments.device), DTYPES[arguments.dtypes[0]]
    # Products of float32 in TF32, as convolutions are by default.
    torch.set_float32_matmul_precision("high")
    detector = (
        read_checkpoint(arguments.weights) if arguments.weights else random_yolov5(sizes.width)
    )
    some = [decode(photo, LIMITS).pixels for photo in photos[: 8 * sizes.batch]]
    print(", ".join(f"{key} {value}" for key, value in _describe(arguments).items()))

    def pipeline(encoder: str) -> Rows:
        made = make_pipeline(
            sizes, encoder, detector, arguments.weights is not None, some, device, dtype
        )
        batch = [pinned(some[n % len(some)], device) for n in range(sizes.batch)]
        return pipelines(encoder, made, decoders, decoded, batch, 5 * arguments.seconds)

    parts = {
        "checks": lambda: checks(sizes, detector, device, dtype),
        "ceilings": lambda: ceilings(
            sizes, detector, device, arguments.dtypes, arguments.modes, arguments.seconds
        ),
        "decoding": lambda: decoded,
        "pipeline": lambda: [row for name in sizes.encoders for row in pipeline(name)],
    }
    decoded: Rows = []
    with patch.object(images, "MATRICES_ON", {device.type}):  # a GPU's way, whatever the device
        for name in (part for part in parts if part in arguments.parts):
            if name in ("decoding", "pipeline") and not decoded:
                seconds = 5 * arguments.seconds
                decoded = decoding(decoders, device, arguments.workers, seconds)
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
