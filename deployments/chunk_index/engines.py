"""Nearest photos among many: an exact engine, and one that walks a graph.

Both hold photos, numbered from 0 in the order they came, each with one vector for each of its
chunks. A photo is as similar to a query as its most similar chunk. Vectors are only ever appended;
which photos count is said with each search.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Protocol

import faiss
import numpy as np
import torch

from deployments.compute.device import DTYPES, resolve_device

# Rows in one tensor. Blocks make room without copying what is there, and give memory back.
BLOCK_ROWS = 65_536
# How far a product of two unit vectors in this format may be from that of the query in float32:
# the rounding of the query, and of a result near 1.
PRODUCT_ERROR = {torch.float32: 1e-5, torch.float16: 2**-10, torch.bfloat16: 2**-7}

# The graph: links of a vector (M; the lowest level has twice as many), from how many candidates the
# links of a new vector are chosen (efConstruction), and how many candidates a search keeps
# (efSearch). The more versions of a picture lie close together, the more it takes to find the
# nearest: the last two grow with the square root of the number of chunks beyond a million.
LINKS = 32
CONSTRUCTION = 64
EXPANSION = 160
GROWTH_CHUNKS = 1_000_000
# Vectors linked in one go: searches wait for it, so it is small (64 take some 20 ms on two cores);
# but each go has a fixed cost, so it is more when much waits.
LINK_ROWS = 64
MOST_LINK_ROWS = 1024
# Of the photos below this share are told the graph; of more, those not allowed are left out after.
BARRED_SHARE = 0.5
# Photos whose vectors are copied to float32 at a time to be compared.
COMPARED_PHOTOS = 1024
# Torch works on more numbers than this with several threads.
TORCH_GRAIN = 32_768
FEW_NUMBERS = 16 * TORCH_GRAIN
# To walk on by one candidate takes about as long as to compare so many vectors.
WALK_COST = 40


class Found(NamedTuple):
    """What one query found.

    Attributes:
        photos: int64 `[m]`, the nearest photos, nearest first; m is at most what was asked for.
        similarities: float32 `[m]`, cosine similarity of each one's most similar chunk.
        horizon: no other photo is more similar than this; -inf if there is no other.
    """

    photos: np.ndarray
    similarities: np.ndarray
    horizon: float


NOTHING = Found(np.zeros(0, np.int64), np.zeros(0, np.float32), -np.inf)


class Engine(Protocol):
    """Photos to search. Methods must not run at the same time, but for what `saver` returns."""

    starts: Starts

    @property
    def waiting(self) -> int:
        """Number of chunks that `build` has yet to work on."""

    def append(self, vectors: np.ndarray) -> None:
        """Add a photo: float16 `[n, d]`, n at least 1, L2-normalised."""

    def search(self, queries: np.ndarray, count: int, allowed: np.ndarray | None) -> list[Found]:
        """Find the `count` nearest photos of each query.

        Args:
            queries: float32 `[q, d]`, L2-normalised.
            allowed: bool `[photos]`: which photos count; None for all.
        """

    def vectors(self, photos: np.ndarray) -> np.ndarray:
        """Return all vectors of some photos, float32 `[n, d]`."""

    def build(self) -> bool:
        """Do a little of the work that makes searches faster; returns whether there is more."""

    def saver(self) -> Callable[[Path], None]:
        """Return a function that writes the engine as it is now into a folder.

        It may run while photos are appended and searched, but not beside `build`.
        """

    def load(self, folder: Path) -> None:
        """Read what was saved into an empty engine."""


class Starts:
    """Where the rows of each photo begin."""

    def __init__(self, starts: np.ndarray | None = None) -> None:
        self._starts = np.zeros(1, np.int64) if starts is None else starts
        self.photos = len(self._starts) - 1

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self._starts[self.photos])

    def append(self, rows: int) -> None:
        """Add a photo."""
        if self.photos + 1 == len(self._starts):
            self._starts = np.concatenate([self._starts, np.empty_like(self._starts)])
        self._starts[self.photos + 1] = self._starts[self.photos] + rows
        self.photos += 1

    def __getitem__(self, photo: int) -> int:
        """Return the first row of a photo; of the number of photos: the number of rows."""
        return int(self._starts[photo])

    def array(self) -> np.ndarray:
        """Return int64 `[photos + 1]`, a view."""
        return self._starts[: self.photos + 1]

    def of(self, photos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of some photos, one photo after the other, and how many each has."""
        starts, lengths = self._starts[photos], self._starts[photos + 1] - self._starts[photos]
        before = np.cumsum(lengths) - lengths
        return np.arange(lengths.sum()) + np.repeat(starts - before, lengths), lengths

    def owners(self, rows: np.ndarray) -> np.ndarray:
        """Return the photo of each row."""
        return np.searchsorted(self.array(), rows, side="right") - 1


class ExactEngine:
    """Compares a query with every vector: one matrix product, then the maximum of each photo.

    Vectors kept in half precision are searched in it, and what could be among the answers by
    that is compared again in float32: the answer is that of float32 on the vectors as kept.

    Args:
        dimension: length of a vector.
        device: `auto`, `cpu` or `cuda[:n]`.
        dtype: how vectors are kept. The store keeps float16, so float16 takes half the memory of
            float32 and loses nothing; bfloat16 rounds similarities by about 0.004.
        starts: where the rows of each photo begin.
        first: the vectors of the photos before this one are not here.
    """

    waiting = 0

    def __init__(
        self,
        dimension: int,
        *,
        device: str = "auto",
        dtype: str = "float16",
        starts: Starts | None = None,
        first: int = 0,
    ) -> None:
        self.dimension = dimension
        self.device = resolve_device(device)
        self.dtype = DTYPES[dtype]
        self.starts = starts or Starts()
        self.first = first
        self._base = self._end = self.starts[first]  # the rows that are in the blocks
        self._blocks: list[torch.Tensor] = []

    def append(self, vectors: np.ndarray) -> None:
        """See `Engine.append`."""
        self._write(vectors)
        self.starts.append(len(vectors))

    def _write(self, vectors: np.ndarray) -> None:
        rest = torch.tensor(vectors).to(self.device, self.dtype)
        while len(rest):
            block, offset = divmod(self._end - self._base, BLOCK_ROWS)
            if block == len(self._blocks):
                size = (BLOCK_ROWS, self.dimension)
                self._blocks.append(torch.empty(size, dtype=self.dtype, device=self.device))
            room = self._blocks[block][offset : offset + len(rest)]
            room.copy_(rest[: len(room)])
            rest = rest[len(room) :]
            self._end += len(room)

    def give_up(self, photos: int) -> None:
        """Forget the vectors of the photos before this one."""
        self.first = photos
        gone = (self.starts[photos] - self._base) // BLOCK_ROWS
        del self._blocks[:gone]
        self._base += gone * BLOCK_ROWS

    def _parts(self, start: int) -> list[torch.Tensor]:
        """Return all rows from `start` on, block by block."""
        parts = []
        for block, base in zip(self._blocks, range(self._base, self._end, BLOCK_ROWS), strict=True):
            parts.append(block[max(start - base, 0) : self._end - base])
        return parts

    def _gather(self, rows: np.ndarray) -> torch.Tensor:
        """Return some rows, which are in ascending order, as float32."""
        blocks, offsets = np.divmod(rows - self._base, BLOCK_ROWS)
        ends = np.searchsorted(blocks, np.arange(len(self._blocks) + 1))
        return torch.cat(
            [
                block[torch.from_numpy(offsets[start:end]).to(self.device)].float()
                for block, (start, end) in zip(self._blocks, pairwise(ends), strict=True)
                if start < end
            ]
        )

    def vectors(self, photos: np.ndarray) -> np.ndarray:
        """See `Engine.vectors`; of photos in ascending order."""
        return self._gather(self.starts.of(photos)[0]).cpu().numpy()

    @torch.inference_mode()
    def search(self, queries: np.ndarray, count: int, allowed: np.ndarray | None) -> list[Found]:
        """See `Engine.search`."""
        if self.first == self.starts.photos:
            return [NOTHING] * len(queries)
        exact = torch.tensor(queries, device=self.device)
        rough = exact.to(self.dtype)
        parts = self._parts(self.starts[self.first])
        products = torch.cat([_products(part, rough) for part in parts])
        lengths = torch.from_numpy(np.diff(self.starts.array()[self.first :])).to(self.device)
        # The maximum of each photo first: to sort all chunks costs as much as the product.
        nearest = torch.segment_reduce(products, "max", lengths=lengths, unsafe=True)
        if allowed is not None:
            nearest[torch.from_numpy(~allowed[self.first :]).to(self.device)] = -torch.inf
        return [
            self._refine(query, similarities, count)
            for query, similarities in zip(exact, nearest.T, strict=True)
        ]

    def _refine(self, query: torch.Tensor, nearest: torch.Tensor, count: int) -> Found:
        """Return the nearest photos, given how near each is but for the error of the product."""
        # One more than asked for: it is the horizon.
        threshold = nearest.topk(min(count + 1, len(nearest))).values[-1]
        reach = threshold - 2 * PRODUCT_ERROR[self.dtype]
        candidates = ((nearest >= reach) & nearest.isfinite()).nonzero().flatten()
        photos = candidates.cpu().numpy() + self.first
        if not len(photos):
            return NOTHING
        rows, lengths = self.starts.of(photos)
        similarities = (self._gather(rows) @ query).cpu().numpy()
        return _nearest(photos, _maxima(similarities, lengths), count)

    def build(self) -> bool:
        """There is nothing to build."""
        return False

    def saver(self) -> Callable[[Path], None]:
        """See `Engine.saver`."""
        starts, first = self.starts.array().copy(), self.first
        parts = self._parts(self.starts[first])

        def save(folder: Path) -> None:
            np.save(folder / "starts.npy", starts)
            shape = (int(starts[-1] - starts[first]), self.dimension)
            file = np.lib.format.open_memmap(
                folder / "vectors.npy", mode="w+", dtype=np.float16, shape=shape
            )
            row = 0
            for part in parts:
                file[row : row + len(part)] = part.half().cpu().numpy()
                row += len(part)
            file.flush()

        return save

    def load(self, folder: Path) -> None:
        """See `Engine.load`."""
        self.starts = Starts(np.load(folder / "starts.npy"))
        vectors = np.load(folder / "vectors.npy", mmap_mode="r")
        self._base = self._end = self.starts.rows - len(vectors)
        self.first = int(np.searchsorted(self.starts.array(), self._base))
        for row in range(0, len(vectors), BLOCK_ROWS):
            self._write(vectors[row : row + BLOCK_ROWS])


class ApproximateEngine:
    """Walks a graph from neighbour to neighbour (HNSW), so that a search sees few vectors.

    Photos that aren't in the graph yet are compared one by one: a photo is found as soon as it is
    appended, and `build` moves it into the graph.

    The graph is FAISS's: Malkov and Yashunin, "Efficient and robust approximate nearest neighbor
    search using Hierarchical Navigable Small World graphs", 2016.

    Args:
        dimension: length of a vector.
        expansion: how many candidates a search keeps (efSearch): more find more, and take longer.
            None: 160 among up to a million chunks, 506 among ten million.
        begin_at: how many chunks there must be before a graph is built. Below it, comparing all of
            them is exact, and fast enough.
    """

    def __init__(
        self, dimension: int, *, expansion: int | None = None, begin_at: int = 50_000
    ) -> None:
        self.dimension = dimension
        self.expansion = expansion
        self.begin_at = begin_at
        self._graph = faiss.IndexHNSWSQ(
            dimension, faiss.ScalarQuantizer.QT_fp16, LINKS, faiss.METRIC_INNER_PRODUCT
        )
        self._graph.is_trained = True  # float16 has nothing to learn
        self._tail = ExactEngine(dimension, device="cpu")

    @property
    def starts(self) -> Starts:
        """Of all photos, in the graph or not."""
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
        self._tail.give_up(last + 1)
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
        return [_merge(*both, count) for both in zip(linked, waiting, strict=True)]

    def _search_graph(
        self, queries: np.ndarray, count: int, allowed: np.ndarray | None
    ) -> list[Found]:
        """Search the photos in the graph; those not allowed are walked through, but not found."""
        photos = members = self._tail.first
        selector = {}
        if allowed is not None:
            allowed = allowed[:photos]
            members = np.count_nonzero(allowed)
        share = members / photos
        if share < BARRED_SHARE:
            bits = np.repeat(allowed, np.diff(self.starts.array()[: photos + 1]))
            bitmap = np.packbits(bits, bitorder="little")
            selector = {"sel": faiss.IDSelectorBitmap(bitmap)}
        # The fewer count, the more are walked through until so many of them are found.
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
            for query, *chunks in zip(unfinished, rows, similarities, strict=True):
                found[query] = self._by_photo(*chunks, count, allowed)
            unfinished = np.array([i for i in unfinished if len(found[i].photos) < count], int)
            expansion *= 4
        if len(unfinished):
            compared = self._compare(queries[unfinished], count, photos, allowed)
            for query, answer in zip(unfinished, compared, strict=True):
                found[query] = answer
        return found

    def _growth(self) -> float:
        """How many more candidates are looked at than among a million chunks."""
        return max(1, self._graph.ntotal / GROWTH_CHUNKS) ** 0.5

    def _compare(
        self, queries: np.ndarray, count: int, photos: int, allowed: np.ndarray | None
    ) -> list[Found]:
        """Compare the queries with all vectors in the graph that are allowed, some at a time."""
        members = np.arange(photos) if allowed is None else allowed.nonzero()[0]
        best = []
        for start in range(0, len(members), COMPARED_PHOTOS):
            part = members[start : start + COMPARED_PHOTOS]
            products = self._linked_vectors(part) @ queries.T
            best.append(_maxima(products, self.starts.of(part)[1]))
        if not best:
            return [NOTHING] * len(queries)
        return [_nearest(members, column, count) for column in np.concatenate(best).T]

    def _by_photo(
        self, rows: np.ndarray, similarities: np.ndarray, count: int, allowed: np.ndarray | None
    ) -> Found:
        """Group what a walk found, most similar first; -1 stands for nothing."""
        real = rows >= 0
        owners, similarities = self.starts.owners(rows[real]), similarities[real]
        photos, first = np.unique(owners, return_index=True)
        if allowed is not None:
            photos, first = photos[allowed[photos]], first[allowed[photos]]
        found = _nearest(photos, similarities[first], count)
        if len(photos) <= count and len(similarities):
            # The walk went no further than this.
            found = found._replace(horizon=float(similarities[-1]))
        return found

    def saver(self) -> Callable[[Path], None]:
        """See `Engine.saver`."""
        save_tail = self._tail.saver()

        def save(folder: Path) -> None:
            save_tail(folder)
            # The vectors apart, because `load` wants room behind them.
            faiss.write_index(self._graph, str(folder / "graph.faiss"), faiss.IO_FLAG_SKIP_STORAGE)
            np.save(folder / "linked.npy", self._linked())

        return save

    def load(self, folder: Path) -> None:
        """See `Engine.load`."""
        self._tail.load(folder)
        self._graph = faiss.read_index(str(folder / "graph.faiss"))
        # What was read has no room; of the links, which take less, a copy is made that has.
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
    """Make an empty FAISS array this large, with room to grow by a quarter.

    An array without room is copied when it grows, while searches wait: gigabytes, with the first
    photo after loading. What is larger than its room doubles it, and room that is not used takes
    no memory.
    """
    array.resize(size * 5 // 8)
    array.resize(size * 5 // 8 + 1)
    array.resize(size)


def _float32(vectors: np.ndarray) -> np.ndarray:
    """Convert from float16. Of a few, in parts so small that torch uses one thread: to wake others
    takes longer.
    """
    half = torch.from_numpy(vectors)
    if half.numel() > FEW_NUMBERS:
        return half.float().numpy()
    single = torch.empty(half.shape)
    step = max(1, TORCH_GRAIN // half.shape[1])
    for few, converted in zip(half.split(step), single.split(step), strict=True):
        converted.copy_(few)
    return single.numpy()


def _products(vectors: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """Return float32 `[n, q]`."""
    if len(queries) == 1:  # on CPUs much faster than a product of matrices
        return torch.mv(vectors, queries[0]).float()[:, None]
    return (vectors @ queries.T).float()


def _maxima(similarities: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the maximum of each photo; its chunks lie one after the other."""
    return np.maximum.reduceat(similarities, np.cumsum(lengths) - lengths, axis=0)


def _nearest(photos: np.ndarray, similarities: np.ndarray, count: int) -> Found:
    """Return the most similar of these photos, and how similar the next one is."""
    order = np.argsort(-similarities, kind="stable")
    horizon = float(similarities[order[count]]) if len(order) > count else -np.inf
    return Found(photos[order[:count]], similarities[order[:count]], horizon)


def _merge(one: Found, other: Found, count: int) -> Found:
    """Return the nearest of two answers about different photos."""
    both = _nearest(
        np.concatenate([one.photos, other.photos]),
        np.concatenate([one.similarities, other.similarities]),
        count,
    )
    return both._replace(horizon=max(both.horizon, one.horizon, other.horizon))
