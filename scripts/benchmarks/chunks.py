"""Measure ways to find the nearest photos among many chunks, side by side.

    scripts/bench.py chunks --photos FOLDER... [--chunks 1000000] [--dimension 512]

**The vectors.** Of each photo the whole and 34 tiles (2 x 2 and 3 x 3, half overlapping) are scaled
to 128 x 128 and embedded with YOLOv5s's backbone (the means of its three last feature maps, 896
numbers, reduced to the wanted dimension by principal components, L2-normalised): a network trained
on photos, whose weights the service downloads anyway. The queries are other parts of the same
photos, with brightness and colour changed and JPEG quality 40 to 80. Then the photos are
multiplied: a new photo is a mixture of two real ones, tile by tile (10 to 50 % of the second),
moved by what sets a random tile of a third photo apart from that photo's mean. So the chunks of a
photo stay alike, photos form clusters, and the space between real photos fills up, as it does in a
growing collection. Uniform noise would do none of this.

**What is measured**, each engine in a process of its own: chunks linked per second from nothing;
then chunks added per second (by Inset's engines while another thread searches, 20 times a second);
the memory of the process per chunk, but for files it reads; seconds to load what was saved (from
the page cache); and one query at a time, the time of each, and the share of the ten nearest
*photos* that was found. Inset's engines answer photos with the distances of all of their chunks.
Libraries are measured bare: chunks, and grouping them is outside the clock; their graphs have as
many links as ours, and each is searched as thoroughly as recall 0.99 takes, or as its list of
efforts goes.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageEnhance
from tqdm import tqdm

from deployments.chunk_index.engines import CONSTRUCTION, LINKS
from deployments.chunk_index.index import ChunkIndex
from deployments.compute.device import HUGE_PAGES_REPLICA
from deployments.compute.weights import yolov5_weights
from deployments.segmenter.checkpoint import read_checkpoint
from deployments.segmenter.yolov5 import load_network

TILES = (1, 2, 3)
CHUNKS = sum((2 * n - 1) ** 2 for n in TILES)  # of a photo
SIDE = 128  # pixels
WANTED = 10  # photos
GOAL = 0.99
ADDED = 10_500  # chunks
QUERIES = 500


# Vectors


def tiles(width: int, height: int) -> Iterator[tuple[float, float, float, float]]:
    """Yield the boxes of the whole picture and of its half overlapping tiles."""
    for n in TILES:
        w, h = width / n, height / n
        for row in range(2 * n - 1):
            for column in range(2 * n - 1):
                yield column * w / 2, row * h / 2, column * w / 2 + w, row * h / 2 + h


def disturbed_part(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Cut a part of 20 to 60 % of each side, as somebody else might have saved it."""
    w, h = (rng.uniform(0.2, 0.6, 2) * image.size).astype(int)
    x, y = (rng.uniform(0, 1, 2) * (image.width - w, image.height - h)).astype(int)
    part = image.crop((x, y, x + w, y + h))
    part = ImageEnhance.Brightness(part).enhance(rng.uniform(0.8, 1.2))
    part = ImageEnhance.Color(part).enhance(rng.uniform(0.7, 1.3))
    saved = io.BytesIO()
    part.save(saved, "JPEG", quality=int(rng.integers(40, 81)))
    return Image.open(saved)


class Embedder:
    """YOLOv5s's backbone, pooled: uint8 `[n, 128, 128, 3]` to float32 `[n, 896]`."""

    def __init__(self) -> None:
        checkpoint = read_checkpoint(yolov5_weights("yolov5s"))
        self.network = load_network(checkpoint, torch.device("cpu"), torch.float32)
        self.means: list[torch.Tensor] = []
        for layer in (4, 6, 9):  # the ends of the stages at strides 8, 16 and 32
            self.network.model[layer].register_forward_hook(self._remember)

    def _remember(self, module: torch.nn.Module, args: Any, output: torch.Tensor) -> None:
        self.means.append(output.mean((2, 3)))

    @torch.inference_mode()
    def __call__(self, crops: np.ndarray) -> np.ndarray:
        self.means.clear()
        self.network(torch.from_numpy(crops).permute(0, 3, 1, 2))
        return torch.cat(self.means, 1).numpy()


def embed(files: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Return the chunks of photos, float32 `[n, 35, 896]`, and a query of each, `[n, 896]`."""
    embedder, rng, found = Embedder(), np.random.default_rng(0), []
    for file in tqdm(files, unit="photo", desc="embedding"):
        image = Image.open(file).convert("RGB")
        parts = [image.resize((SIDE, SIDE), 2, box) for box in tiles(*image.size)]
        parts.append(disturbed_part(image, rng).resize((SIDE, SIDE), 2))
        found.append(embedder(np.stack([np.asarray(part) for part in parts])))
    both = np.stack(found)
    return both[:, :-1], both[:, -1]


def unit(vectors: np.ndarray) -> np.ndarray:
    """L2-normalise the last axis."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def reduce(
    chunks: np.ndarray, queries: np.ndarray, dimension: int
) -> tuple[np.ndarray, np.ndarray]:
    """Project on the principal components of the chunks."""
    flat = chunks.reshape(-1, chunks.shape[-1])
    mean = flat.mean(0)
    _, _, components = np.linalg.svd(flat[::5] - mean, full_matrices=False)
    components = components[:dimension].T
    return tuple(unit((v - mean) @ components).astype(np.float32) for v in (chunks, queries))


def multiply(real: np.ndarray, photos: int, file: Path) -> None:
    """Write the chunks of many photos: the real ones first, then mixtures of them."""
    rng = np.random.default_rng(0)
    shape = (photos, *real.shape[1:])
    file = np.lib.format.open_memmap(file, mode="w+", dtype=np.float16, shape=shape)
    file[: len(real)] = real[:photos]
    for start in tqdm(range(len(real), photos, 1024), desc="multiplying", unit="kphoto"):
        part = file[start : start + 1024]
        one, two, three = rng.integers(0, len(real), (3, len(part)))
        share = rng.uniform(0.1, 0.5, (len(part), 1, 1)).astype(np.float32)
        tile = rng.integers(0, CHUNKS, (len(part), CHUNKS))
        apart = real[three[:, None], tile] - real[three].mean(1, keepdims=True)
        part[:] = unit((1 - share) * real[one] + share * real[two] + 0.3 * apart)


class Vectors(NamedTuple):
    """What is searched, and by what.

    Attributes:
        chunks: float16 `[photos, 35, d]`, memory-mapped.
        queries: float32 `[q, d]`.
        nearest: the ten nearest photos of each query, int64 `[q, 10]`.
    """

    chunks: np.ndarray
    queries: np.ndarray
    nearest: np.ndarray


def prepare(folder: Path, photos: list[Path], chunks: int, dimension: int) -> None:
    """Make the files that `read` reads, unless they are there."""
    base = folder / "base.npz"
    if not base.exists():
        if not photos:
            sys.exit("Say which photos to make vectors of: --photos FOLDER")
        files = [
            file
            for path in photos
            for file in sorted(path.rglob("*"))
            if file.suffix.lower() in {".jpg", ".jpeg", ".png"}
        ]
        if len(files) < 100:
            sys.exit(f"There are {len(files)} photos (JPEG, PNG) in there: 100 are the fewest.")
        embedded = embed(files)
        np.savez(base, chunks=embedded[0], queries=embedded[1])
    here = folder / f"{chunks}x{dimension}"
    if (here / "nearest.npy").exists():
        return
    here.mkdir(exist_ok=True)
    with np.load(base) as arrays:
        real, queries = reduce(arrays["chunks"], arrays["queries"], dimension)
    queries = queries[np.random.default_rng(1).permutation(len(queries))[:QUERIES]]
    multiply(real, chunks // CHUNKS, here / "chunks.npy")
    np.save(here / "queries.npy", queries)
    np.save(here / "nearest.npy", nearest(np.load(here / "chunks.npy", mmap_mode="r"), queries))


def nearest(chunks: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Compare everything in float32: the ten nearest photos of each query."""
    best, numbers = [], []
    by = torch.from_numpy(queries)
    for start in tqdm(range(0, len(chunks), 1024), desc="comparing all", unit="kphoto"):
        part = torch.from_numpy(chunks[start : start + 1024].astype(np.float32))
        found = (part @ by.T).amax(1).topk(min(WANTED, len(part)), 0)
        best.append(found.values)
        numbers.append(found.indices + start)
    order = torch.cat(best).topk(WANTED, 0).indices
    return torch.cat(numbers).gather(0, order).T.numpy()


def read(folder: Path, chunks: int, dimension: int) -> Vectors:
    """Return what `prepare` made."""
    here = folder / f"{chunks}x{dimension}"
    mapped = np.load(here / "chunks.npy", mmap_mode="r")
    return Vectors(mapped, np.load(here / "queries.npy"), np.load(here / "nearest.npy"))


# Engines


class Inset:
    """Our chunk index, as a replica uses it: photos in, photos out."""

    def __init__(self, engine: str, dimension: int) -> None:
        self.index = ChunkIndex(dimension, engine=engine, device="cpu")
        self.efforts = (None,)  # as configured by default

    def add(self, chunks: np.ndarray, first: int) -> None:
        for number, vectors in enumerate(chunks, first):
            self.index.put(str(number), vectors)
            if self.index.waiting > 65_536:  # as when a service indexes: it never falls behind far
                self.index.build()
        while self.index.build():
            pass

    def search(self, query: np.ndarray, effort: None) -> list[int]:
        (found,) = self.index.search(query[None], WANTED)
        order = np.argsort([distances.min() for distances in found.distances], kind="stable")
        return [int(found.photos[place]) for place in order]

    def remove(self, photo: int) -> None:
        self.index.remove(str(photo))

    def save(self, path: Path) -> None:
        path.mkdir()
        self.index.saver()(path)

    def load(self, path: Path) -> None:
        self.index.load(path)


class Library:
    """A library's own index of chunks, with the chunk's number as its key."""

    efforts = (32, 48, 64, 96, 128, 160, 192, 256, 384, 512)

    def group(self, chunks: np.ndarray) -> list[int]:
        return list(dict.fromkeys((chunks[chunks >= 0] // CHUNKS).tolist()))[:WANTED]


class FaissHnsw(Library):
    """Hierarchical navigable small world graph of float16 vectors."""

    def __init__(self, dimension: int) -> None:
        import faiss

        self.faiss = faiss
        self.index = faiss.IndexHNSWSQ(dimension, faiss.ScalarQuantizer.QT_fp16, LINKS, 0)
        self.index.is_trained = True
        self.index.hnsw.efConstruction = CONSTRUCTION

    def add(self, chunks: np.ndarray, first: int) -> None:
        for start in range(0, len(chunks), 1024):
            part = chunks[start : start + 1024]
            self.index.add(part.reshape(-1, part.shape[-1]).astype(np.float32))

    def search(self, query: np.ndarray, effort: int) -> np.ndarray:
        parameters = self.faiss.SearchParametersHNSW(efSearch=effort)
        return self.index.search(query[None], effort, params=parameters)[1][0]

    remove = None

    def save(self, path: Path) -> None:
        self.faiss.write_index(self.index, str(path))

    def load(self, path: Path) -> None:
        self.index = self.faiss.read_index(str(path))


class FaissIvf(FaissHnsw):
    """Inverted lists of vectors in 8 bits a dimension: 2,048 lists, `effort` of them searched."""

    efforts = (16, 32, 64, 128, 256)

    def __init__(self, dimension: int) -> None:
        import faiss

        self.faiss = faiss
        self.index = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatIP(dimension), dimension, 2048, faiss.ScalarQuantizer.QT_8bit, 0
        )
        self.index.cp.niter = 8

    def add(self, chunks: np.ndarray, first: int) -> None:
        if not self.index.is_trained:
            sample = np.random.default_rng(0).permutation(len(chunks))[:2400]
            self.index.train(chunks[sample].reshape(-1, chunks.shape[-1]).astype(np.float32))
        super().add(chunks, first)

    def search(self, query: np.ndarray, effort: int) -> np.ndarray:
        self.index.nprobe = effort
        return self.index.search(query[None], 160)[1][0]

    def remove(self, photo: int) -> None:
        self.index.remove_ids(np.arange(photo * CHUNKS, (photo + 1) * CHUNKS))


class Usearch(Library):
    """usearch: a graph of float16 vectors."""

    def __init__(self, dimension: int) -> None:
        from usearch.index import Index

        self.index = Index(
            ndim=dimension,
            metric="ip",
            dtype="f16",
            connectivity=LINKS,
            expansion_add=CONSTRUCTION,
        )

    def add(self, chunks: np.ndarray, first: int) -> None:
        for start in range(0, len(chunks), 1024):
            part = chunks[start : start + 1024].reshape(-1, chunks.shape[-1])
            keys = np.arange(len(part)) + (first + start) * CHUNKS
            self.index.add(keys, part)

    def search(self, query: np.ndarray, effort: int) -> np.ndarray:
        self.index.expansion_search = effort
        return self.index.search(query, effort).keys.astype(np.int64)

    def remove(self, photo: int) -> None:
        self.index.remove(np.arange(photo * CHUNKS, (photo + 1) * CHUNKS))

    def save(self, path: Path) -> None:
        self.index.save(path)

    def load(self, path: Path) -> None:
        self.index.load(path)


class Hnswlib(Library):
    """hnswlib: a graph of float32 vectors (it has no smaller format)."""

    def __init__(self, dimension: int) -> None:
        import hnswlib

        self.index = hnswlib.Index("ip", dimension)

    def add(self, chunks: np.ndarray, first: int) -> None:
        if not first:
            size = len(chunks) * CHUNKS + ADDED
            self.index.init_index(size, M=LINKS, ef_construction=CONSTRUCTION)
        for start in range(0, len(chunks), 1024):
            part = chunks[start : start + 1024].reshape(-1, chunks.shape[-1]).astype(np.float32)
            self.index.add_items(part, np.arange(len(part)) + (first + start) * CHUNKS)

    def search(self, query: np.ndarray, effort: int) -> np.ndarray:
        self.index.set_ef(effort)
        return self.index.knn_query(query, effort)[0][0].astype(np.int64)

    def remove(self, photo: int) -> None:
        for chunk in range(photo * CHUNKS, (photo + 1) * CHUNKS):
            self.index.mark_deleted(chunk)

    def save(self, path: Path) -> None:
        self.index.save_index(str(path))

    def load(self, path: Path) -> None:
        self.index.load_index(str(path))


ENGINES: dict[str, Callable[[int], Any]] = {
    "approximate": lambda dimension: Inset("approximate", dimension),
    "exact": lambda dimension: Inset("exact", dimension),
    "faiss-hnsw": FaissHnsw,
    "faiss-ivf": FaissIvf,
    "usearch": Usearch,
    "hnswlib": Hnswlib,
}


# Measuring


def own_bytes() -> int:
    """Memory of this process that is no file: the vectors it reads from are mapped."""
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in status if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def search_all(engine: Any, vectors: Vectors, effort: int | None) -> dict[str, float]:
    """Search one query at a time."""
    for query in vectors.queries[:20]:
        engine.search(query, effort)
    times, hits = [], 0
    for query, expected in zip(vectors.queries, vectors.nearest, strict=True):
        begun = time.perf_counter()
        found = engine.search(query, effort)
        times.append(1000 * (time.perf_counter() - begun))
        if isinstance(engine, Library):
            found = engine.group(found)
        hits += len(set(found) & set(expected.tolist()))
    p50, p99 = np.percentile(times, [50, 99])
    return {"effort": effort, "p50": p50, "p99": p99, "recall": hits / vectors.nearest.size}


def add_while_searching(engine: Any, vectors: Vectors) -> dict[str, float]:
    """Add photos; Inset's engines are searched meanwhile, the libraries aren't made for it."""
    added = vectors.chunks[: ADDED // CHUNKS].astype(np.float32)
    added = unit(added + 0.02 * np.random.default_rng(2).normal(size=added.shape))
    added = added.astype(np.float16)
    stop, times = threading.Event(), []

    def serve() -> None:
        for query in vectors.queries:
            begun = time.perf_counter()
            engine.search(query, None)
            times.append(1000 * (time.perf_counter() - begun))
            if stop.wait(0.05):
                return

    searcher = threading.Thread(target=serve)
    if isinstance(engine, Inset):
        searcher.start()
    begun = time.perf_counter()
    engine.add(added, len(vectors.chunks))
    result = {"add": added.shape[0] * CHUNKS / (time.perf_counter() - begun)}
    stop.set()
    if times:
        searcher.join()
        result["busy_p99"] = np.percentile(times, 99)
    return result


def measure(name: str, folder: Path, chunks: int, dimension: int, saved: Path, send: Any) -> None:
    """Build, add, search, remove, save."""
    vectors = read(folder, chunks, dimension)
    engine = ENGINES[name](dimension)
    before, begun = own_bytes(), time.perf_counter()
    engine.add(vectors.chunks, 0)
    result = {"build": vectors.chunks.shape[0] * CHUNKS / (time.perf_counter() - begun)}
    for effort in engine.efforts:
        result |= search_all(engine, vectors, effort)
        if result["recall"] >= GOAL:
            break
    result["memory"] = (own_bytes() - before) / (len(vectors.chunks) * CHUNKS)
    engine.save(saved)
    result |= add_while_searching(engine, vectors)
    if engine.remove:
        begun = time.perf_counter()
        for photo in range(100):
            engine.remove(photo)
        result["remove"] = 10 * (time.perf_counter() - begun)
    send.send(result)


def measure_loading(name: str, dimension: int, saved: Path, send: Any) -> None:
    """Load what was saved."""
    engine = ENGINES[name](dimension)
    begun = time.perf_counter()
    engine.load(saved)
    send.send({"load": time.perf_counter() - begun})


def in_a_process(work: Callable[..., None], *args: Any) -> dict[str, float]:
    """Run in a fresh process, so that memory is this engine's own."""
    spawn = multiprocessing.get_context("spawn")
    receive, send = spawn.Pipe(duplex=False)
    process = spawn.Process(target=work, args=(*args, send))
    process.start()
    send.close()
    try:
        return receive.recv()
    except EOFError:
        return {}
    finally:
        process.join()


COLUMNS = {
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


def chunks(arguments: argparse.Namespace) -> None:
    """Print the table."""
    # As in a replica; for the processes of the engines.
    os.environ |= HUGE_PAGES_REPLICA["runtime_env"]["env_vars"]
    folder = arguments.work
    folder.mkdir(exist_ok=True)
    prepare(folder, arguments.photos, arguments.chunks, arguments.dimension)
    photos = len(read(folder, arguments.chunks, arguments.dimension).chunks)
    print(f"\n{photos * CHUNKS:,} chunks x {arguments.dimension} of {photos:,} photos\n")
    print("| | " + " | ".join(title for title, _ in COLUMNS.values()) + " |")
    print("|---" * (len(COLUMNS) + 1) + "|", flush=True)
    for name in arguments.engines:
        saved = folder / f"saved-{name}"
        result = in_a_process(measure, name, folder, arguments.chunks, arguments.dimension, saved)
        if result:
            result |= in_a_process(measure_loading, name, arguments.dimension, saved)
        cells = [
            form.format(result[key]) if result.get(key) is not None else ""
            for key, (_, form) in COLUMNS.items()
        ]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
        if saved.is_dir():
            shutil.rmtree(saved)
        else:
            saved.unlink(missing_ok=True)
