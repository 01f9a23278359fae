"""Engines that find the nearest photos among chunks: Inset's, and those of libraries, bare."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from benchmarks.chunk_vectors import CHUNKS, WANTED
from deployments.chunk_index.approximate import CONSTRUCTION, LINKS
from deployments.chunk_index.index import ChunkIndex
from deployments.settings import ChunkIndexSettings

ADDED = 10_500  # chunks that are added to a full index
WAITING = 65_536  # chunks that Inset's index lets wait to be linked


class Engine(Protocol):
    """What is measured.

    Attributes:
        efforts: how thoroughly it can search, from quick to thorough.
        can_remove: whether it can remove photos.
        is_inset: whether it is made to be searched while chunks are added.
    """

    efforts: ClassVar[Sequence[Any]]
    can_remove: ClassVar[bool]
    is_inset: ClassVar[bool]

    def add(self, chunks: np.ndarray, first: int) -> None:
        """Add photos, whose numbers begin with `first`: float16 `[photos, 35, d]`."""

    def search(self, query: np.ndarray, effort: Any) -> Any:
        """Search by one vector, float32 `[d]`; `photos` makes photos of the result."""

    def photos(self, found: Any) -> list[int]:
        """Return the numbers of the nearest photos, from the result of a search."""

    def remove(self, photo: int) -> None:
        """Remove a photo."""

    def save(self, path: Path) -> None:
        """Write the index to a file or folder that doesn't exist."""

    def load(self, path: Path) -> None:
        """Read what `save` wrote."""


class InsetEngine:
    """Our chunk index, as a replica uses it: photos in, photos out."""

    efforts: ClassVar[Sequence[Any]] = (None,)  # as configured by default
    can_remove: ClassVar[bool] = True
    is_inset: ClassVar[bool] = True

    def __init__(self, engine: Literal["exact", "approximate"], dimension: int) -> None:
        self.index = ChunkIndex(dimension, ChunkIndexSettings(engine=engine, device="cpu"))

    def add(self, chunks: np.ndarray, first: int) -> None:
        for number, vectors in enumerate(chunks, first):
            self.index.put(str(number), vectors)
            if self.index.waiting > WAITING:  # as in a service, which never falls behind far
                self.index.build()
        while self.index.build():
            pass

    def search(self, query: np.ndarray, effort: Any) -> list[int]:
        (found,) = self.index.search(query[None], WANTED)
        order = np.argsort([distances.min() for distances in found.distances], kind="stable")
        return [int(found.photos[place]) for place in order]

    def photos(self, found: list[int]) -> list[int]:
        return found

    def remove(self, photo: int) -> None:
        self.index.remove(str(photo))

    def save(self, path: Path) -> None:
        for number, part in enumerate(self.index.parts()):
            folder = path / f"{number:03}"
            folder.mkdir(parents=True)
            part.save(folder)

    def load(self, path: Path) -> None:
        self.index.load(sorted(path.iterdir()))


class Library:
    """A library's own index of chunks, with the chunk's number as its key.

    Attributes:
        index: of the library.
    """

    efforts: ClassVar[Sequence[Any]] = (32, 48, 64, 96, 128, 160, 192, 256, 384, 512)
    can_remove: ClassVar[bool] = True
    is_inset: ClassVar[bool] = False
    index: Any

    def photos(self, found: np.ndarray) -> list[int]:
        return list(dict.fromkeys((found[found >= 0] // CHUNKS).tolist()))[:WANTED]


class FaissHnsw(Library):
    """Hierarchical navigable small world graph of float16 vectors."""

    can_remove: ClassVar[bool] = False

    def __init__(self, dimension: int) -> None:
        import faiss

        self.faiss: Any = faiss
        self.index = faiss.IndexHNSWSQ(dimension, self.faiss.ScalarQuantizer.QT_fp16, LINKS, 0)
        self.index.is_trained = True
        self.index.hnsw.efConstruction = CONSTRUCTION

    def add(self, chunks: np.ndarray, first: int) -> None:
        for _, part in blocks(chunks):
            self.index.add(part.astype(np.float32))

    def search(self, query: np.ndarray, effort: int) -> np.ndarray:
        parameters = self.faiss.SearchParametersHNSW(efSearch=effort)
        return self.index.search(query[None], effort, params=parameters)[1][0]

    def remove(self, photo: int) -> None:
        raise NotImplementedError("FAISS removes nothing from this graph: see `can_remove`")

    def save(self, path: Path) -> None:
        self.faiss.write_index(self.index, str(path))

    def load(self, path: Path) -> None:
        self.index = self.faiss.read_index(str(path))


class FaissIvf(FaissHnsw):
    """Inverted lists of vectors in 8 bits a dimension: 2,048 lists, `effort` of them searched."""

    efforts: ClassVar[Sequence[Any]] = (16, 32, 64, 128, 256)
    can_remove: ClassVar[bool] = True

    def __init__(self, dimension: int) -> None:
        import faiss

        self.faiss = faiss
        eight_bits = self.faiss.ScalarQuantizer.QT_8bit
        self.index = self.faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatIP(dimension), dimension, 2048, eight_bits, 0
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
        self.index.remove_ids(keys_of(photo))


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
        for start, part in blocks(chunks):
            self.index.add(np.arange(len(part)) + (first + start) * CHUNKS, part)

    def search(self, query: np.ndarray, effort: int) -> np.ndarray:
        self.index.expansion_search = effort
        return self.index.search(query, effort).keys.astype(np.int64)

    def remove(self, photo: int) -> None:
        self.index.remove(keys_of(photo))

    def save(self, path: Path) -> None:
        self.index.save(path)

    def load(self, path: Path) -> None:
        self.index.load(sorted(path.iterdir()))


class Hnswlib(Library):
    """hnswlib: a graph of float32 vectors (it has no smaller format)."""

    def __init__(self, dimension: int) -> None:
        import hnswlib

        self.index = hnswlib.Index("ip", dimension)

    def add(self, chunks: np.ndarray, first: int) -> None:
        if not first:
            size = len(chunks) * CHUNKS + ADDED
            self.index.init_index(size, M=LINKS, ef_construction=CONSTRUCTION)
        for start, part in blocks(chunks):
            keys = np.arange(len(part)) + (first + start) * CHUNKS
            self.index.add_items(part.astype(np.float32), keys)

    def search(self, query: np.ndarray, effort: int) -> np.ndarray:
        self.index.set_ef(effort)
        return self.index.knn_query(query, effort)[0][0].astype(np.int64)

    def remove(self, photo: int) -> None:
        for key in keys_of(photo):
            self.index.mark_deleted(key)

    def save(self, path: Path) -> None:
        self.index.save_index(str(path))

    def load(self, path: Path) -> None:
        self.index.load_index(str(path))


# By name: from the dimension of the vectors to an empty index.
ENGINES: dict[str, Callable[[int], Engine]] = {
    "approximate": lambda dimension: InsetEngine("approximate", dimension),
    "exact": lambda dimension: InsetEngine("exact", dimension),
    "faiss-hnsw": FaissHnsw,
    "faiss-ivf": FaissIvf,
    "usearch": Usearch,
    "hnswlib": Hnswlib,
}


def blocks(chunks: np.ndarray, photos: int = 1024) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the chunks of some photos at a time: the first photo's place, and `[chunks, d]`."""
    for start in range(0, len(chunks), photos):
        yield start, chunks[start : start + photos].reshape(-1, chunks.shape[-1])


def keys_of(photo: int) -> np.ndarray:
    """Return the keys of a photo's chunks."""
    return np.arange(photo * CHUNKS, (photo + 1) * CHUNKS)
