"""The approximate engine: a search walks a graph, and compares only a few vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import faiss
import numpy as np
import torch

from deployments.chunk_index.blocks import LOADED_ROWS, PRODUCT_ERROR, Blocks
from deployments.chunk_index.engines import Found, measure_each
from deployments.chunk_index.nearest import Nearest, conclude
from deployments.chunk_index.owners import Owners

# The graph: the links of each vector (M; the lowest level has twice as many), the candidates among
# which the links of a new vector are chosen (efConstruction), and the candidates that a search
# keeps (efSearch). The denser the vectors lie, the more candidates are needed to find the nearest.
# So beyond a million chunks the last two grow with the square root of their number. If the nearest
# are spread over several graphs, fewer are needed in each: in proportion to the square root of its
# share of all chunks.
LINKS = 32
CONSTRUCTION = 64
EXPANSION = 160
GROWTH_CHUNKS = 1_000_000
# Vectors that are linked in one step. Searches wait for a step, so it is small (64 take about 20 ms
# on two cores). But a step has a fixed cost, so it is larger when many vectors wait.
LINK_ROWS = 64
MOST_LINK_ROWS = 1024
LINK_BYTES = 300  # what the links of a vector take in a saved graph
# Vectors that are converted to float32 and compared at a time.
COMPARED_ROWS = 32_768
# Torch uses several threads for more numbers than this.
TORCH_GRAIN = 32_768
FEW_NUMBERS = 16 * TORCH_GRAIN
# One more candidate of a walk takes about as long as comparing this many vectors.
WALK_COST = 40


class ApproximateEngine:
    """Walks a graph from neighbour to neighbour (HNSW), so that a search compares few vectors.

    Vectors that aren't in the graph yet are compared one by one. So a photo is found as soon as it
    is appended; `build` moves its vectors into the graph.

    The graph is FAISS's: Malkov and Yashunin, "Efficient and robust approximate nearest neighbor
    search using Hierarchical Navigable Small World graphs", 2016.

    Args:
        dimension: length of a vector.
        expansion: how many candidates a search keeps (efSearch). More candidates find more photos,
            but take longer. None: 160 for up to a million vectors, 506 for ten million.
    """

    name = "ApproximateEngine"

    def __init__(self, dimension: int, *, expansion: int | None = None) -> None:
        self.dimension = dimension
        self.expansion = expansion
        self._graph = faiss.IndexHNSWSQ(
            dimension, faiss.ScalarQuantizer.QT_fp16, LINKS, faiss.METRIC_INNER_PRODUCT
        )
        self._graph.is_trained = True  # float16 needs no training
        self._waiting = Blocks(dimension, torch.device("cpu"), torch.float16)
        self.owners = Owners(dimension, self._kept)

    @property
    def waiting(self) -> int:
        """See `Engine.waiting`."""
        return self._waiting.end - self._waiting.first

    @property
    def saved_bytes(self) -> int:
        """See `Engine.saved_bytes`."""
        return self.owners.vectors.rows * (2 * self.dimension + LINK_BYTES)

    def append(self, vectors: np.ndarray, id: str = "") -> None:
        """See `Engine.append`."""
        self._waiting.append(self.owners.append(vectors.astype(np.float16, copy=False), id))

    def build(self) -> bool:
        """Link some vectors into the graph."""
        if self.waiting == 0:
            return False
        rows = min(max(LINK_ROWS, self.waiting // 64), MOST_LINK_ROWS, self.waiting)
        numbers = np.arange(self._waiting.first, self._waiting.first + rows)
        self._graph.hnsw.efConstruction = int(CONSTRUCTION * self._growth())
        self._graph.add(_float32(self._kept(numbers)))
        self._waiting.drop_before(self._graph.ntotal)
        return self.waiting > 0

    def vectors(self, photos: np.ndarray) -> np.ndarray:
        """See `Engine.vectors`."""
        return _float32(self._kept(self.owners.numbers(photos)))

    def _kept(self, numbers: np.ndarray) -> np.ndarray:
        """Return the vectors with some numbers, float16 `[n, d]`."""
        waiting = numbers >= self._graph.ntotal
        if not waiting.any():
            return self._linked()[numbers]
        if waiting.all():
            return self._waiting.kept(numbers).numpy()
        vectors = np.empty((len(numbers), self.dimension), np.float16)
        vectors[~waiting] = self._linked()[numbers[~waiting]]
        vectors[waiting] = self._waiting.kept(numbers[waiting])
        return vectors

    def _linked(self) -> np.ndarray:
        """Return the vectors in the graph, float16 `[n, d]`, a view of FAISS's own array."""
        size = self._graph.ntotal * self.dimension * 2
        if not size:
            return np.empty((0, self.dimension), np.float16)
        codes = faiss.downcast_index(self._graph.storage).codes
        return faiss.rev_swig_ptr(codes.data(), size).view(np.float16).reshape(-1, self.dimension)

    @torch.inference_mode()
    def search(
        self,
        queries: np.ndarray,
        counts: int | Sequence[int],
        allowed: np.ndarray | None,
        share: float = 1,
    ) -> list[Found]:
        """See `Engine.search`."""
        # Only vectors that wait are compared in half precision.
        error = PRODUCT_ERROR[torch.float16 if self.waiting else torch.float32]
        searches = [
            Nearest(self.owners, count, allowed, error)
            for count in np.broadcast_to(counts, len(queries)).tolist()
        ]
        permitted = self.owners.permitted(allowed)
        self._waiting.search(queries, searches, permitted)
        if self._graph.ntotal:
            thorough = self.expansion or EXPANSION * self._growth() * share**0.5
            of_photos = 1 if allowed is None else np.count_nonzero(allowed) / len(allowed)
            self._search_graph(queries, searches, permitted, thorough, float(of_photos))
        return conclude(
            searches,
            lambda numbers, of: measure_each(torch.from_numpy(self._kept(numbers)), queries, of),
        )

    def _search_graph(
        self,
        queries: np.ndarray,
        searches: Sequence[Nearest],
        permitted: np.ndarray | None,
        thorough: float,
        share: float,
    ) -> None:
        """Search the vectors in the graph; those not allowed are walked through, but not found.

        Args:
            permitted: see `Owners.permitted`; FAISS gets it as a selector.
            thorough: how many candidates a walk keeps if all photos are allowed.
            share: of the photos that are allowed.
        """
        selector: dict[str, faiss.IDSelector] = {}
        comparing = self._graph.ntotal
        if permitted is not None:
            permitted = permitted[: self._graph.ntotal]
            bitmap = np.packbits(permitted, bitorder="little")
            selector = {"sel": faiss.IDSelectorBitmap(bitmap)}
            comparing = int(np.count_nonzero(permitted))
            share = comparing / self._graph.ntotal
            if not comparing:
                return
        # The fewer vectors are allowed, the more candidates a walk passes until it found enough.
        # How many this search needs says its own count, not that of others in its batch.
        counts = np.array([search.count for search in searches])
        expansions = np.maximum(thorough, 4 * counts) / share
        unfinished = np.arange(len(searches))
        # A walk may end with too few photos: many of its vectors can belong to one photo.
        while len(unfinished):
            effort = expansions[unfinished]
            is_quick = (effort < np.inf) & (np.minimum(effort, 2**31) * WALK_COST < comparing)
            walking, compared = unfinished[is_quick], unfinished[~is_quick]
            if len(compared):
                self._compare(queries[compared], [searches[n] for n in compared], permitted)
            lacking = []
            for expansion in np.unique(expansions[walking]):
                together = walking[expansions[walking] == expansion]
                parameters = faiss.SearchParametersHNSW(efSearch=int(expansion), **selector)
                similarities, rows = self._graph.search(
                    queries[together], int(expansion), params=parameters
                )
                for n, of_query, how_similar in zip(together, rows, similarities, strict=True):
                    real = of_query >= 0
                    if not searches[n].walked(of_query[real], how_similar[real]):
                        lacking.append(n)
                        # A walk that had room for all vectors can't find more.
                        is_last = expansion >= self._graph.ntotal
                        expansions[n] = np.inf if is_last else 4 * expansion
            unfinished = np.array(lacking, int)

    def _growth(self) -> float:
        """Return the factor for the number of candidates: 1 up to a million vectors."""
        return max(1, self._graph.ntotal / GROWTH_CHUNKS) ** 0.5

    def _compare(
        self, queries: np.ndarray, searches: Sequence[Nearest], permitted: np.ndarray | None
    ) -> None:
        """Compare the queries with all allowed vectors in the graph, some at a time."""
        every = np.arange(self._graph.ntotal) if permitted is None else permitted.nonzero()[0]
        for start in range(0, len(every), COMPARED_ROWS):
            numbers = every[start : start + COMPARED_ROWS]
            products = queries @ _float32(self._linked()[numbers]).T
            for search, similarities in zip(searches, products, strict=True):
                near = similarities > search.reach
                search.add(numbers[near], similarities[near])

    def seal(self) -> None:
        """See `Engine.seal`."""
        self.owners.seal()

    def saver(self) -> Callable[[Path], None]:
        """See `Engine.saver`."""
        save_owners, save_waiting = self.owners.saver(), self._waiting.saver()

        def save(folder: Path) -> None:
            save_owners(folder)
            save_waiting(folder / "vectors.npy")
            # The vectors are saved separately, because `load` needs spare room behind them.
            faiss.write_index(self._graph, str(folder / "graph.faiss"), faiss.IO_FLAG_SKIP_STORAGE)
            np.save(folder / "linked.npy", self._linked())

        return save

    def load(self, folder: Path, *, sealed: bool = False) -> None:
        """See `Engine.load`."""
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
        self._waiting.begin_at(len(linked))
        self._waiting.load(folder / "vectors.npy")
        parts = np.split(self._linked(), range(LOADED_ROWS, len(linked), LOADED_ROWS))
        self.owners.load(folder, None if sealed else chain(parts, self._waiting.parts()))
        if self.owners.vectors.rows != self._waiting.end:
            raise ValueError("its files don't belong together")


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
