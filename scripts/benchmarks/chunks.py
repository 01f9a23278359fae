"""Measure ways to find the nearest photos among many chunks, side by side.

    scripts/bench.py chunks --photos FOLDER... [--chunks 1000000] [--dimension 512]

`benchmarks.chunk_vectors` says what the vectors are. Each engine is measured in a process of its
own: chunks linked per second in an empty index; then chunks added per second (to Inset's engines
while another thread searches, 20 times a second); the memory of the process per chunk, except for
files it reads; seconds to load what was saved (from the page cache); and one query at a time, the
time of each, and the share of the ten nearest *photos* that was found.

Inset's engines answer photos with the distances of all of their chunks. Libraries are measured
bare: they answer chunks, and grouping these is not timed. Their graphs have as many links as ours,
and each is searched with the first effort of its list that reaches recall 0.99, or with the last.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common.backbone import unit
from common.tables import cells, markdown_head, markdown_row, titles, write_table

from benchmarks.chunk_engines import ADDED, ENGINES, Engine
from benchmarks.chunk_vectors import CHUNKS, Vectors, prepare, read
from benchmarks.processes import in_new_process
from deployments.compute.replicas import HUGE_PAGES_REPLICA

GOAL = 0.99  # recall
REMOVED = 100  # photos
PAUSE_S = 0.05  # between two searches while chunks are added

COLUMNS = {
    "engine": ("", "{}"),
    "build": ("build, chunks/s", "{:,.0f}"),
    "add": ("add, chunks/s", "{:,.0f}"),
    "busy_p99": ("p99 while adding, ms", "{:.1f}"),
    "remove": ("remove a photo, ms", "{:.3f}"),
    "memory": ("memory, B/chunk", "{:,.0f}"),
    "load": ("load, s", "{:.1f}"),
    "effort": ("effort", "{}"),
    "p50": ("p50, ms", "{:.2f}"),
    "p99": ("p99, ms", "{:.2f}"),
    "recall": ("photo recall@10", "{:.4f}"),
}


def run(arguments: argparse.Namespace) -> None:
    """Measure, print each row of the table as soon as it is there, and write the table.

    Raises:
        OSError: it can't be written.
    """
    folder = arguments.work
    folder.mkdir(exist_ok=True)
    prepare(folder, arguments.photos, arguments.chunks, arguments.dimension)
    photos = len(read(folder, arguments.chunks, arguments.dimension).chunks)
    print(f"\n{photos * CHUNKS:,} chunks x {arguments.dimension} of {photos:,} photos\n")
    lines = markdown_head(titles(COLUMNS))
    print("\n".join(lines), flush=True)
    for row in measure_engines(arguments.engines, folder, arguments.chunks, arguments.dimension):
        lines.append(markdown_row(cells(row, COLUMNS)))
        print(lines[-1], flush=True)
    if arguments.write:
        write_table(arguments.write, "\n".join(lines))


def measure_engines(
    names: list[str], folder: Path, chunks: int, dimension: int
) -> Iterator[dict[str, Any]]:
    """Measure each engine in new processes, so that their memory is this engine's own.

    Args:
        names: of `ENGINES`.
        folder: has the vectors; the engines save there for a while.
    """
    environment = HUGE_PAGES_REPLICA["runtime_env"]["env_vars"]  # as in a replica
    for name in names:
        saved = folder / f"saved-{name}"
        row: dict[str, Any] = {"engine": name}
        try:
            row |= in_new_process(
                measure, name, folder, chunks, dimension, saved, environment=environment
            )
            row |= in_new_process(measure_loading, name, dimension, saved, environment=environment)
        except Exception as error:  # a library is missing, or the memory was too small
            print(f"{name}: {error!r}", file=sys.stderr)
        yield row
        if saved.is_dir():
            shutil.rmtree(saved)
        else:
            saved.unlink(missing_ok=True)


def measure(name: str, folder: Path, chunks: int, dimension: int, saved: Path) -> dict[str, Any]:
    """Build, search, save, add and remove; return the figures."""
    vectors = read(folder, chunks, dimension)
    engine = ENGINES[name](dimension)
    before, began = own_bytes(), time.perf_counter()
    engine.add(vectors.chunks, 0)
    row: dict[str, Any] = {"build": vectors.chunks.shape[0] * CHUNKS / seconds_since(began)}
    for effort in engine.efforts:
        row |= search_all(engine, vectors, effort)
        if row["recall"] >= GOAL:
            break
    row["memory"] = (own_bytes() - before) / (len(vectors.chunks) * CHUNKS)
    engine.save(saved)
    row |= add_while_searching(engine, vectors)
    if engine.can_remove:
        began = time.perf_counter()
        for photo in range(REMOVED):
            engine.remove(photo)
        row["remove"] = 1000 * seconds_since(began) / REMOVED
    return row


def measure_loading(name: str, dimension: int, saved: Path) -> dict[str, float]:
    """Load what was saved; return the figure."""
    engine = ENGINES[name](dimension)
    began = time.perf_counter()
    engine.load(saved)
    return {"load": seconds_since(began)}


def search_all(engine: Engine, vectors: Vectors, effort: Any) -> dict[str, Any]:
    """Search by one query at a time; return the figures."""
    for query in vectors.queries[:20]:
        engine.search(query, effort)
    times, hits = [], 0
    for query, expected in zip(vectors.queries, vectors.nearest, strict=True):
        began = time.perf_counter()
        found = engine.search(query, effort)
        times.append(1000 * seconds_since(began))
        hits += len(set(engine.photos(found)) & set(expected.tolist()))
    p50, p99 = np.percentile(times, [50, 99])
    return {"effort": effort, "p50": p50, "p99": p99, "recall": hits / vectors.nearest.size}


def add_while_searching(engine: Engine, vectors: Vectors) -> dict[str, float]:
    """Add photos; return the figures.

    Inset's engines are searched at the same time; the libraries don't support that.
    """
    added = vectors.chunks[: ADDED // CHUNKS].astype(np.float32)
    added = unit(added + 0.02 * np.random.default_rng(2).normal(size=added.shape))
    added = added.astype(np.float16)
    stop = threading.Event()
    times: list[float] = []

    def search() -> None:
        for query in vectors.queries:
            began = time.perf_counter()
            engine.search(query, None)
            times.append(1000 * seconds_since(began))
            if stop.wait(PAUSE_S):
                return

    searcher = threading.Thread(target=search)
    if engine.is_inset:
        searcher.start()
    began = time.perf_counter()
    engine.add(added, len(vectors.chunks))
    row = {"add": added.shape[0] * CHUNKS / seconds_since(began)}
    stop.set()
    if engine.is_inset:
        searcher.join()
        row["busy_p99"] = float(np.percentile(times, 99))
    return row


def own_bytes() -> int:
    """Return the memory of this process except files: the vectors it reads are mapped."""
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in status if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def seconds_since(began: float) -> float:
    """Return the time since a moment of `time.perf_counter`."""
    return time.perf_counter() - began
