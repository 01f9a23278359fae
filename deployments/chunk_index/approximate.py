"""The approximate engine: a search walks a graph, and compares only a few vectors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import torch

from deployments.chunk_index.engines import NOTHING, Found, Starts, maxima, merge, nearest
from deployments.chunk_index.exact import ExactEngine

# The graph: the links of each vector (M; the lowest level has twice as many), the candidates among
# which the links of a new vector are chosen (efConstruction), and the candidates that a search
# keeps (efSearch). The denser the vectors lie, the more candidates are needed to find the nearest.
# So beyond a million chunks the last two grow with the square root of their number.
LINKS = 32
CONSTRUCTION = 64
EXPANSION = 160
GROWTH_CHUNKS = 1_000_000
# Vectors that are linked in one step. Searches wait for a step, so it is small (64 take about 20 ms
# on two cores). But a step has a fixed cost, so it is larger when many vectors wait.
LINK_ROWS = 64
MOST_LINK_ROWS = 1024
# If a smaller share of the photos is allowed, FAISS gets a selector of them. Otherwise the photos
# that aren't allowed are dropped from what it found.
SELECTOR_SHARE = 0.5
# Photos whose vectors are converted to float32 and compared at a time.
COMPARED_PHOTOS = 1024
# Torch uses several threads for more numbers than this.
TORCH_GRAIN = 32_768
FEW_NUMBERS = 16 * TORCH_GRAIN
# One more candidate of a walk takes about as long as comparing this many vectors.
WALK_COST = 40


class ApproximateEngine:
    """Walks a graph from neighbour to neighbour (HNSW), so that a search compares few vectors.

    Photos that aren't in the graph yet are compared one by one. So a photo is found as soon as it
    is appended; `build` moves it into the graph.

    The graph is FAISS's: Malkov and Yashunin, "Efficient and robust approximate nearest neighbor
    search using Hierarchical Navigable Small World graphs", 2016.

    Args:
        dimension: length of a vector.
        expansion: how many candidates a search keeps (efSearch). More candidates find more photos,
            but take longer. None: 160 for up to a million chunks, 506 for ten million.
        begin_at: with fewer chunks no graph is built: comparing all of them is exact, and fast
            enough.
    """

    name = "ApproximateEngine"

    def __init__(
        self, dimension: int, *, expansion: int | None = None, begin_at: int = 50_000
    ) -> None:
        self.dimension = dimension
        self.expansion = expansion
        self.begin_at = begin_at
        self._graph = faiss.IndexHNSWSQ(
            dimension, faiss.ScalarQuantizer.QT_fp16, LINKS, faiss.METRIC_INNER_PRODUCT
        )
        self._graph.is_trained = True  # float16 needs no training
        self._tail = ExactEngine(dimension, device="cpu")

    @property
    def starts(self) -> Starts:
        """Where the rows of each photo begin, in the graph or not."""
        return self._tail.starts

    @property
    def waiting(self) -> int:
        """See `Engine.waiting`."""
        return self.starts.rows - self._graph.ntotal

    def append(self, vectors: np.ndarray) -> None:
        """See `Engine.append`."""
        self._tail.append(vectors)

    def build(self) -> bool:
        """Link some photos into the graph."""
        if self.waiting == 0 or self.starts.rows < self.begin_at:
            return False
        rows = min(max(LINK_ROWS, self.waiting // 64), MOST_LINK_ROWS, self.waiting)
        first, row = self._tail.first, self._graph.ntotal + rows - 1
        last = int(self.starts.owners(np.array([row]))[0])
        self._graph.hnsw.efConstruction = int(CONSTRUCTION * self._growth())
        self._graph.add(self._tail.vectors(np.arange(first, last + 1)))
        self._tail.drop_before(last + 1)
        return self.waiting > 0

    def vectors(self, photos: np.ndarray) -> np.ndarray:
        """See `Engine.vectors`."""
        linked = photos[photos < self._tail.first]
        if len(linked) == len(photos):
            return self._linked_vectors(linked)
        waiting = self._tail.vectors(photos[len(linked) :])
        return np.concatenate([self._linked_vectors(linked), waiting])

    def _linked_vectors(self, photos: np.ndarray) -> np.ndarray:
        rows, _ = self.starts.of(photos)
        return _float32(self._linked()[rows])

    def _linked(self) -> np.ndarray:
        """Return the vectors in the graph, float16 `[n, d]`, a view of FAISS's own array."""
        size = self._graph.ntotal * self.dimension * 2
        if not size:
            return np.empty((0, self.dimension), np.float16)
        codes = faiss.downcast_index(self._graph.storage).codes
        return faiss.rev_swig_ptr(codes.data(), size).view(np.float16).reshape(-1, self.dimension)

    def search(self, queries: np.ndarray, count: int, allowed: np.ndarray | None) -> list[Found]:
        """See `Engine.search`."""
        waiting = self._tail.search(queries, count, allowed)
        if not self._graph.ntotal:
            return waiting
        linked = self._search_graph(queries, count, allowed)
        if not self.waiting:
            return linked
        return [merge(*both, count) for both in zip(linked, waiting, strict=True)]

    def _search_graph(
        self, queries: np.ndarray, count: int, allowed: np.ndarray | None
    ) -> list[Found]:
        """Search the photos in the graph; those not allowed are walked through, but not found."""
        photos = members = self._tail.first
        selector = {}
        if allowed is not None:
            allowed = allowed[:photos]
            members = int(np.count_nonzero(allowed))
        share = members / photos
        if allowed is not None and share < SELECTOR_SHARE:
            bits = np.repeat(allowed, np.diff(self.starts.array()[: photos + 1]))
            bitmap = np.packbits(bits, bitorder="little")
            selector = {"sel": faiss.IDSelectorBitmap(bitmap)}
        # The fewer photos are allowed, the more candidates a walk passes until it found enough.
        expansion = self.expansion or EXPANSION * self._growth()
        expansion = max(expansion, 4 * count) / max(share, 1e-9)
        comparing = share * self._graph.ntotal
        found: list[Found] = [NOTHING] * len(queries)
        unfinished = np.arange(len(queries))
        # A walk may end with too few photos: many of its chunks can belong to one photo.
        while len(unfinished) and count < members and expansion * WALK_COST < comparing:
            parameters = faiss.SearchParametersHNSW(efSearch=int(expansion), **selector)
            similarities, rows = self._graph.search(
                queries[unfinished], int(expansion), params=parameters
            )
            for query, of_query, how_similar in zip(unfinished, rows, similarities, strict=True):
                found[query] = self._by_photo(of_query, how_similar, count, allowed)
            unfinished = np.array([i for i in unfinished if len(found[i].photos) < count], int)
            expansion *= 4
        if len(unfinished):
            compared = self._compare(queries[unfinished], count, photos, allowed)
            for query, answer in zip(unfinished, compared, strict=True):
                found[query] = answer
        return found

    def _growth(self) -> float:
        """Return the factor for the number of candidates: 1 up to a million chunks."""
        return max(1, self._graph.ntotal / GROWTH_CHUNKS) ** 0.5

    def _compare(
        self, queries: np.ndarray, count: int, photos: int, allowed: np.ndarray | None
    ) -> list[Found]:
        """Compare the queries with all allowed vectors in the graph, some photos at a time."""
        members = np.arange(photos) if allowed is None else allowed.nonzero()[0]
        best = []
        for start in range(0, len(members), COMPARED_PHOTOS):
            part = members[start : start + COMPARED_PHOTOS]
            products = self._linked_vectors(part) @ queries.T
            best.append(maxima(products, self.starts.of(part)[1]))
        if not best:
            return [NOTHING] * len(queries)
        return [nearest(members, column, count) for column in np.concatenate(best).T]

    def _by_photo(
        self, rows: np.ndarray, similarities: np.ndarray, count: int, allowed: np.ndarray | None
    ) -> Found:
        """Group the rows that a walk found, most similar first, by photo; -1 is no row."""
        real = rows >= 0
        owners, similarities = self.starts.owners(rows[real]), similarities[real]
        photos, first = np.unique(owners, return_index=True)
        if allowed is not None:
            photos, first = photos[allowed[photos]], first[allowed[photos]]
        found = nearest(photos, similarities[first], count)
        if len(photos) <= count and len(similarities):
            # The walk went no further than its last row.
            found = found._replace(horizon=float(similarities[-1]))
        return found

    def saver(self) -> Callable[[Path], None]:
        """See `Engine.saver`."""
        save_tail = self._tail.saver()

        def save(folder: Path) -> None:
            save_tail(folder)
            # The vectors are saved separately, because `load` needs spare room behind them.
            faiss.write_index(self._graph, str(folder / "graph.faiss"), faiss.IO_FLAG_SKIP_STORAGE)
            np.save(folder / "linked.npy", self._linked())

        return save

    def load(self, folder: Path) -> None:
        """See `Engine.load`."""
        self._tail.load(folder)
        self._graph = faiss.read_index(str(folder / "graph.faiss"))
        # Arrays from a file have no spare room. The links are small enough to be copied to one.
        for array in (self._graph.hnsw.neighbors, self._graph.hnsw.offsets):
            size = array.size()
            array.resize(size + 1)
            array.resize(size)
        linked = np.load(folder / "linked.npy", mmap_mode="r")
        storage = faiss.IndexScalarQuantizer(
            self.dimension, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        )
        storage.is_trained = True
        _resize_with_room(storage.codes, linked.nbytes)
        storage.ntotal = len(linked)
        self._graph.storage, self._graph.own_fields = storage, True
        storage.this.disown()
        self._linked()[:] = linked


def _resize_with_room(array: faiss.MaybeOwnedVectorUInt8, size: int) -> None:
    """Resize an empty FAISS array, with spare room to grow by a quarter.

    Without it, the first photo after loading would copy the array, perhaps gigabytes, while
    searches wait. An array that outgrows its room doubles it. Unused room takes no memory.
    """
    array.resize(size * 5 // 8)
    array.resize(size * 5 // 8 + 1)
    array.resize(size)


def _float32(vectors: np.ndarray) -> np.ndarray:
    """Convert from float16.

    If there are few numbers, they are converted in parts so small that torch uses one thread:
    waking others would take longer.
    """
    half = torch.from_numpy(vectors)
    if half.numel() > FEW_NUMBERS:
        return half.float().numpy()
    single = torch.empty(half.shape)
    step = max(1, TORCH_GRAIN // half.shape[1])
    for few, converted in zip(half.split(step), single.split(step), strict=True):
        converted.copy_(few)
    return single.numpy()
