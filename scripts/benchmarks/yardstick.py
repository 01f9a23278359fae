"""Measure the yardstick, `benchmarks.plain`.

It has two rows: `plain` with the libraries' defaults, in float32, photo by photo; and `plain,
tuned` with the service's number format, detector batch and memory layout, in the environment of a
replica (the allocator's and OpenMP's). So the gain of the design is separate from that of settings.

Run as a module, it measures one of them, as the JSON on its standard input says. That process is no
copy of the command's, because it must hold nothing but the yardstick.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
from common.paths import IMPORT_PATH

from benchmarks.closed_loop import percentiles
from benchmarks.memory import MIB, Peak
from benchmarks.photos import cut_queries, endless
from benchmarks.plain import Plain
from deployments.compute.replicas import COMPUTING_REPLICA
from deployments.settings import SegmenterSettings

THREADS = 8
COLUMNS = {
    "script": ("script", "{}"),
    "photos": ("photos", "{}"),
    "photos_per_second": ("photos/s", "{:.2f}"),
    "crops_per_photo": ("crops/photo", "{:.1f}"),
    "crops_per_second": ("crops/s", "{:.1f}"),
    "p50": ("search p50, ms", "{:.1f}"),
    "p95": ("p95, ms", "{:.1f}"),
    "p99": ("p99, ms", "{:.1f}"),
    "searches_per_second": (f"searches/s, {THREADS} threads", "{:.1f}"),
    "pss": ("peak PSS, MiB", "{:,.0f}"),
    "ratio": ("photos/s against plain", "{:.2f}"),
}


def measure_both(
    encoder: Path, segmenter: dict[str, Any], files: Sequence[Path], photos: int, seconds: float
) -> list[dict[str, Any]]:
    """Measure both rows, each in a process of its own.

    Args:
        encoder: folder of a CLIP.
        segmenter: options, as in serve_config.yaml.
        files: the photos, and what queries are cut from.
        photos: how many are indexed; the files again and again.
        seconds: how long searches are measured, for each number of threads.

    Raises:
        subprocess.CalledProcessError: one ended with an error, which it has printed.
    """
    order = {
        "encoder": str(encoder),
        "segmenter": segmenter,
        "files": [str(file) for file in files],
        "photos": photos,
        "seconds": seconds,
    }
    environment = COMPUTING_REPLICA["runtime_env"]["env_vars"]
    first = in_a_process(order | {"tuned": False}, {})
    tuned = in_a_process(order | {"tuned": True}, environment)
    return [
        {"script": name, **row, "ratio": row["photos_per_second"] / first["photos_per_second"]}
        for name, row in (("plain", first), ("plain, tuned", tuned))
    ]


def in_a_process(order: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
    """Measure in a new process, and its memory from outside.

    Raises:
        subprocess.CalledProcessError: it ended with an error, which it has printed.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.yardstick"],
        env=os.environ | environment | {"PYTHONPATH": IMPORT_PATH},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        processes = [psutil.Process(child.pid)]
        with Peak(lambda: processes, period_s=1) as peak:
            answer, _ = child.communicate(json.dumps(order))
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, child.args)
    return json.loads(answer) | {"pss": peak.pss / MIB}


def measure(order: dict[str, Any]) -> dict[str, Any]:
    """Index and search in this process."""
    files = [Path(file) for file in order["files"]]
    photos = list(itertools.islice(endless(files), order["photos"]))
    queries = cut_queries(files)
    settings = SegmenterSettings.model_validate(order["segmenter"])
    script = Plain(Path(order["encoder"]), settings, order["tuned"])
    with tempfile.TemporaryDirectory() as folder:
        script.index(photos[: script.batch], Path(folder))  # the first forward passes are slow
        began = time.perf_counter()
        script.index(photos, Path(folder))
        indexing_s = time.perf_counter() - began
    alone, _ = search_for(script, queries, 1, order["seconds"])
    together, searching_s = search_for(script, queries, THREADS, order["seconds"])
    return {
        "photos": len(photos),
        "photos_per_second": len(photos) / indexing_s,
        "crops_per_photo": len(script.chunks) / len(photos),
        "crops_per_second": len(script.chunks) / indexing_s,
        **percentiles(alone),
        "searches_per_second": len(together) / searching_s,
    }


def search_for(
    script: Plain, queries: Sequence[bytes], threads: int, seconds: float
) -> tuple[list[float], float]:
    """Search from several threads.

    Args:
        seconds: the least duration.

    Returns:
        The time of each search, ms, and that of all together, seconds.
    """
    began = time.perf_counter()

    def work(number: int) -> list[float]:
        times = []
        for query in itertools.islice(itertools.cycle(queries), number, None):
            start = time.perf_counter()
            script.search(query)
            end = time.perf_counter()
            times.append(1000 * (end - start))
            if end - began > seconds:
                break
        return times

    with ThreadPoolExecutor(threads) as pool:
        times = [ms for of_thread in pool.map(work, range(threads)) for ms in of_thread]
    return times, time.perf_counter() - began


if __name__ == "__main__":
    print(json.dumps(measure(json.load(sys.stdin))))
