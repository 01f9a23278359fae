"""Measure the whole service on a machine with a GPU, with nothing but this repository.

    scripts/bench.py gpu-service [--photos FOLDER] [--weights FILE] [--json FILE]

It takes about four minutes and downloads nothing. It needs Python 3.11 with the project's
dependencies, as scripts/setup installs them. The service is that of serve_config.gpu.yaml with the
encoder models/compact. Unless others are given, photos are made up, and the detector is a YOLOv5s
with random weights, whose threshold is such that it finds about six objects in a photo.

Before the service starts, the cores decode the photos and do nothing else: no service that decodes
on them could be faster. Later its clients, threads of one process, share the cores with it. With
`--device cpu` the same code runs with serve_config.yaml and tiny sizes, as a test.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from common.client import IMAGE
from common.own_service import OwnService
from common.paths import ROOT
from common.photos import find_images
from common.tables import table

from benchmarks import service
from benchmarks.closed_loop import ClosedLoop, Stretch, steady
from benchmarks.gpu.decoders import DECODERS, LIMITS
from benchmarks.gpu.networks import random_yolov5, write_checkpoint
from benchmarks.gpu.sizes import COMPACT, FULL, TINY, Sizes, make_photos
from benchmarks.gpu.throughput import TRAINED_THRESHOLD, choose_threshold, decoding
from benchmarks.service import SEARCH_COLUMNS, STARTUP_COLUMNS, Pictures, prepared
from deployments.decoding.image import decode

Rows = list[dict[str, Any]]


class Load(NamedTuple):
    """What is done on a device.

    Attributes:
        base: the service's config, in the repository's root.
        sizes: of photos and networks.
        in_flight: photos at a time, each number measured alone.
        together: photos in one request, where they come so.
        clients: that search, each number measured alone.
        seconds: how long each is measured, at least.
    """

    base: str
    sizes: Sizes
    in_flight: tuple[int, ...]
    together: int
    clients: tuple[int, ...]
    seconds: float


LOADS = {
    "cuda": Load("serve_config.gpu.yaml", FULL, (32, 128), 32, (1, 16, 64), 15),
    "cpu": Load("serve_config.yaml", TINY, (2,), 2, (1, 2), 0.1),
}
CPU = torch.device("cpu")
EXAMPLES = 32  # photos by which the threshold of random weights is chosen
BOUNDARY = "photo"
COLUMNS = {
    "starting": STARTUP_COLUMNS,
    "decoding": {
        "workers": ("decoding in", "{}"),
        "number": ("number", "{}"),
        "per_second": ("photos/s", "{:,.0f}"),
    },
    "indexing": {
        "requests": ("requests in flight", "{}"),
        "together": ("photos in each", "{}"),
        "photos": ("photos", "{:,}"),
        "errors": ("errors", "{}"),
        "per_second": ("photos/s", "{:,.0f}"),
        "chunks": ("chunks/photo", "{:.1f}"),
        "p50": ("p50, ms", "{:,.0f}"),
        "p99": ("p99, ms", "{:,.0f}"),
        "gpu_busy": ("GPU busy", "{:.0%}"),
        "of_decoding": ("of what the cores decode", "{:.2f}"),
    },
    "searching": SEARCH_COLUMNS,
    "goals": {
        "what": ("", "{}"),
        "value": ("is", "{:,.2f}"),
        "goal": ("should be", "{}"),
        "reached": ("reached", "{}"),
    },
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--device", default="cuda", choices=LOADS, help="(%(default)s)")
    parser.add_argument(
        "--photos", nargs="+", type=Path, metavar="FOLDER", help="JPEGs (made-up ones)"
    )
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="a trained YOLOv5 (random ones of YOLOv5s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")


def run(arguments: argparse.Namespace) -> None:
    """Measure, and print each table as soon as it is there."""
    load, tables = LOADS[arguments.device], {}
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        files = find_images(arguments.photos or [], {".jpg", ".jpeg"})
        if arguments.photos and not files:
            sys.exit("There are no JPEGs in there.")
        files = files or write_photos(Path(folder), load.sizes)
        for name, rows in measure(load, files, arguments.weights, Path(folder)):
            print(f"\n{table(rows, COLUMNS[name])}", flush=True)
            tables[name] = rows
    if arguments.json:
        arguments.json.write_text(json.dumps({"cores": os.cpu_count(), "tables": tables}) + "\n")


def measure(
    load: Load, files: list[Path], weights: Path | None, folder: Path
) -> Iterator[tuple[str, Rows]]:
    """Yield each table by its name.

    Args:
        weights: of a trained YOLOv5; None for random ones.
        folder: gets these.
    """
    photos = [file.read_bytes() for file in files]
    decoded = decode_alone(photos, load)
    yield "decoding", decoded
    segmenter: dict[str, Any] = {"image_size": load.sizes.image_size}
    if weights is None:
        segmenter |= make_detector(folder / "random.pt", photos, load.sizes)
    else:
        segmenter |= {
            "model_name_or_path": str(weights.resolve()),
            "confidence_threshold": TRAINED_THRESHOLD,
        }
    pictures = Pictures(files)
    with prepared(ROOT / COMPACT, {"segmenter": segmenter}, base=load.base) as running:
        yield "starting", [service.startup(running, pictures)]
        indexed = index(running, pictures, load, max(row["per_second"] for row in decoded))
        yield "indexing", indexed
        searched = service.search(running, pictures, load.clients, load.seconds)
        yield "searching", searched
    yield "goals", compare(indexed, searched)


def write_photos(folder: Path, sizes: Sizes) -> list[Path]:
    """Write made-up photos; return their files."""
    files = []
    for number, photo in enumerate(make_photos(sizes.photo, sizes.photos)):
        files.append(folder / f"{number:03}.jpg")
        files[-1].write_bytes(photo)
    return files


def make_detector(file: Path, photos: list[bytes], sizes: Sizes) -> dict[str, Any]:
    """Write a YOLOv5 with random weights; return the options of a segmenter that uses it."""
    detector = random_yolov5(sizes.width)
    write_checkpoint(detector, file)
    some = [decode(photo, LIMITS).pixels for photo in photos[:EXAMPLES]]
    threshold = choose_threshold(detector, some, sizes, CPU)
    return {"model_name_or_path": str(file), "confidence_threshold": threshold}


def decode_alone(photos: list[bytes], load: Load) -> Rows:
    """Measure what the cores decode a second while they have nothing else to do."""
    workers = len(os.sched_getaffinity(0))
    found: Rows = []
    for name, kind in DECODERS.items():
        decoder = kind(photos, workers, load.sizes.batch)
        try:
            found += decoding({name: decoder}, CPU, workers, load.seconds / 3)
        finally:
            decoder.close()
    return found


def index(running: OwnService, pictures: Pictures, load: Load, decoded: float) -> Rows:
    """Index photos, alone and several in a request.

    Args:
        decoded: photos a second that the cores decode.
    """
    service.warm_up(running, pictures)
    requests = [(number, 1) for number in load.in_flight]
    requests.append((max(1, max(load.in_flight) // load.together), load.together))
    rows = []
    for number, together in requests:
        bodies, content = pictures.photos, IMAGE
        if together > 1:
            bodies = (multipart(list(islice(pictures.photos, together))) for _ in count())
            content = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        with (
            watching_gpu() as busy,
            ClosedLoop(running.url, "/index", bodies, number, chunks_of_each, content) as loop,
        ):
            (stretch,) = steady([loop], load.seconds)
        rows.append(
            {
                "requests": number,
                "together": together,
                **index_figures(stretch, together),
                "gpu_busy": float(np.mean(busy)) if busy else None,
            }
        )
    return [row | {"of_decoding": row["per_second"] / decoded} for row in rows]


def index_figures(stretch: Stretch, together: int) -> dict[str, Any]:
    """Return the figures of photos that were sent, so many in each request."""
    chunks = [number for answer in stretch.good for number in answer.found]
    return {
        "photos": len(chunks),
        "errors": together * len(stretch.answers) - len(chunks),
        "per_second": len(chunks) / stretch.seconds,
        "chunks": float(np.mean(chunks)) if chunks else None,
        **stretch.latency,
    }


def multipart(photos: list[bytes]) -> bytes:
    """Return the body of a request with several photos, which don't contain its boundary's line."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="photo.jpg"'
    parts = [head.encode() + b"\r\n\r\n" + photo + b"\r\n" for photo in photos]
    return b"".join([*parts, f"--{BOUNDARY}--\r\n".encode()])


def chunks_of_each(content: bytes) -> list[int]:
    """Return the number of chunks of each photo that was stored, from an answer of `/index`."""
    images = json.loads(content)["images"]
    return [len(image["chunks"]) for image in images if image["status"] != "failed"]


@contextmanager
def watching_gpu() -> Iterator[list[float]]:
    """Yield a list that has, after the block, the share of time in which the GPU was busy.

    It has one for each half second, and none where there is no `nvidia-smi`.
    """
    shares: list[float] = []
    command = shutil.which("nvidia-smi")
    if command is None:
        yield shares
        return
    query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "500"]
    with (
        tempfile.TemporaryFile("w+") as output,
        subprocess.Popen([command, *query], stdout=output, text=True) as watching,
    ):
        try:
            yield shares
        finally:
            watching.terminate()
            watching.wait()
        output.seek(0)
        shares += [int(line) / 100 for line in output if line.strip().isdigit()]


def compare(indexed: Rows, searched: Rows) -> Rows:
    """Hold the figures against the goals for one GPU: of indexing the best."""
    one, crowd = searched[0], searched[-1]
    best, rate, p50 = max(row["of_decoding"] for row in indexed), crowd["per_second"], one["p50"]
    goals = [
        ("photos/s of what the cores decode", best, "at least 0.7", best >= 0.7),
        (f"searches/s, clients: {crowd['clients']}", rate, "at least 1,000", rate >= 1000),
        (f"search p50, ms, clients: {one['clients']}", p50, "at most 15", p50 <= 15),
    ]
    return [
        {"what": what, "value": value, "goal": goal, "reached": "yes" if reached else "no"}
        for what, value, goal, reached in goals
    ]
