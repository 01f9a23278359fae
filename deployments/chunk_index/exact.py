"""The exact engine: a query is compared with every vector."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from deployments.chunk_index.engines import NOTHING, Found, Starts, maxima, nearest
from deployments.compute.device import DTYPES, resolve_device

# Rows in one tensor. Blocks can be added without a copy, and freed one by one.
BLOCK_ROWS = 65_536
# In half precision, oneDNN compiles a kernel for each shape of a product. This takes as long as the
# product of 7,000 rows, and the last 1,024 kernels stay in memory, half a MiB each. So a product
# has a multiple of these rows and, but for a single query, a multiple of these queries. On a CPU
# with AMX, 16 queries take as long as one.
GRAIN_ROWS, GRAIN_QUERIES = 4096, 16
# How far a product of two unit vectors in this format may be from that with the query in float32:
# the query is rounded, and so is a result near 1.
PRODUCT_ERROR = {torch.float32: 1e-5, torch.float16: 2**-10, torch.bfloat16: 2**-7}


class ExactEngine:
    """Compares a query with every vector: one matrix product, then the maximum of each photo.

    If vectors are kept in half precision, the product is in half precision too. All candidates that
    could be among the answers are then compared again in float32. So the answer is that of float32
    on the vectors as they are kept.

    Args:
        dimension: length of a vector.
        device: `auto`, `cpu` or `cuda[:n]`.
        dtype: how vectors are kept. The store keeps float16, so float16 loses nothing and takes
            half the memory of float32; bfloat16 rounds similarities by about 0.004.

    Attributes:
        first: the first photo whose vectors are still here.
    """

    name = "ExactEngine"
    waiting = 0

    def __init__(
        self,
        dimension: int,
        *,
        device: str = "auto",
        dtype: str = "float16",
    ) -> None:
        self.dimension = dimension
        self.device = resolve_device(device)
        self.dtype = DTYPES[dtype]
        self.starts = Starts()
        self.first = 0
        self._base = self._end = 0  # the rows in the blocks
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

    def drop_before(self, photo: int) -> None:
        """Drop the vectors of the photos before this one."""
        self.first = photo
        dropped = (self.starts[photo] - self._base) // BLOCK_ROWS
        del self._blocks[:dropped]
        self._base += dropped * BLOCK_ROWS

    def _parts(self, start: int) -> list[torch.Tensor]:
        """Return all rows from `start` on, one tensor for each block."""
        parts = []
        for block, base in zip(self._blocks, range(self._base, self._end, BLOCK_ROWS), strict=True):
            parts.append(block[max(start - base, 0) : self._end - base])
        return parts

    def _products(self, start: int, queries: torch.Tensor) -> torch.Tensor:
        """Return the products of all rows from `start` on and all queries, float32 `[n, q]`."""
        products = []
        padded = F.pad(queries, (0, 0, 0, -len(queries) % GRAIN_QUERIES))
        for block, base in zip(self._blocks, range(self._base, self._end, BLOCK_ROWS), strict=True):
            first, last = max(start - base, 0), min(self._end - base, BLOCK_ROWS)
            before = first % GRAIN_ROWS
            rows = block[first - before : last + -last % GRAIN_ROWS]
            if len(queries) == 1:  # where there is no AMX, much faster than a product of matrices
                product = torch.mv(rows, queries[0])[:, None]
            else:
                product = (rows @ padded.T)[:, : len(queries)]
            products.append(product[before : before + last - first].float())
        return torch.cat(products)

    def _gather(self, rows: np.ndarray) -> torch.Tensor:
        """Return rows, given in ascending order, as float32 `[n, d]`."""
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
        """See `Engine.vectors`; the photos must be in ascending order."""
        return self._gather(self.starts.of(photos)[0]).cpu().numpy()

    @torch.inference_mode()
    def search(self, queries: np.ndarray, count: int, allowed: np.ndarray | None) -> list[Found]:
        """See `Engine.search`."""
        if self.first == self.starts.photos:
            return [NOTHING] * len(queries)
        exact = torch.tensor(queries, device=self.device)
        products = self._products(self.starts[self.first], exact.to(self.dtype))
        lengths = torch.from_numpy(np.diff(self.starts.array()[self.first :])).to(self.device)
        # Take the maximum of each photo first: sorting all chunks costs as much as the product.
        rough = torch.segment_reduce(products, "max", lengths=lengths, unsafe=True)
        if allowed is not None:
            rough[torch.from_numpy(~allowed[self.first :]).to(self.device)] = -torch.inf
        return [
            self._refine(query, similarities, count)
            for query, similarities in zip(exact, rough.T, strict=True)
        ]

    def _refine(self, query: torch.Tensor, rough: torch.Tensor, count: int) -> Found:
        """Return the nearest photos.

        Args:
            rough: the similarity of each photo, with the error of the product.
        """
        # One more than asked for, which is the horizon.
        threshold = rough.topk(min(count + 1, len(rough))).values[-1]
        reach = threshold - 2 * PRODUCT_ERROR[self.dtype]
        candidates = ((rough >= reach) & rough.isfinite()).nonzero().flatten()
        photos = candidates.cpu().numpy() + self.first
        if not len(photos):
            return NOTHING
        rows, lengths = self.starts.of(photos)
        similarities = (self._gather(rows) @ query).cpu().numpy()
        return nearest(photos, maxima(similarities, lengths), count)

    def build(self) -> bool:
        """Return False: there is nothing to build."""
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
