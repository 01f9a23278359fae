"""Vectors in memory, and the comparison of queries with all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from deployments.chunk_index.nearest import Nearest, offer

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
# Bytes that the products of one step may take; at least one block is compared at a time. On a CPU
# they should stay in its caches; a GPU waits for the CPU after each step.
STEP_BYTES = {"cpu": 2**22, "cuda": 2**28}


class Blocks:
    """Vectors, numbered in the order of arrival, of which the first ones may be dropped.

    If they are kept in half precision, products are in half precision too. What could be among the
    answers is then compared again.

    Attributes:
        first: number of the first vector that is still here.
        end: the number that the next vector gets.
    """

    def __init__(self, dimension: int, device: torch.device, dtype: torch.dtype) -> None:
        self.dimension, self.device, self.dtype = dimension, device, dtype
        self.first = self.end = 0
        self._base = 0  # number of the first row in the first block
        self._blocks: list[torch.Tensor] = []

    def begin_at(self, number: int) -> None:
        """Let the first vector have this number."""
        self.first = self.end = self._base = number

    def append(self, vectors: np.ndarray) -> None:
        """Add vectors, float16 `[n, d]`."""
        rest = torch.tensor(vectors).to(self.device, self.dtype)
        while len(rest):
            block, offset = divmod(self.end - self._base, BLOCK_ROWS)
            if block == len(self._blocks):
                size = (BLOCK_ROWS, self.dimension)
                self._blocks.append(torch.empty(size, dtype=self.dtype, device=self.device))
            room = self._blocks[block][offset : offset + len(rest)]
            room.copy_(rest[: len(room)])
            rest = rest[len(room) :]
            self.end += len(room)

    def drop_before(self, number: int) -> None:
        """Drop the vectors before this one."""
        if number == self.end:
            self._blocks.clear()
            self.begin_at(number)
            return
        self.first = number
        dropped = (number - self._base) // BLOCK_ROWS
        del self._blocks[:dropped]
        self._base += dropped * BLOCK_ROWS

    def parts(self) -> Iterator[np.ndarray]:
        """Yield all vectors, float16 `[n, d]`, some at a time."""
        for block, start, end, _ in self._ranges():
            yield block[start:end].half().cpu().numpy()

    def saver(self) -> Callable[[Path], None]:
        """Return a function that writes the vectors as they are now into a file."""
        parts = [block[start:end] for block, start, end, _ in self._ranges()]
        shape = (self.end - self.first, self.dimension)

        def save(path: Path) -> None:
            file = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
            row = 0
            for part in parts:
                file[row : row + len(part)] = part.half().cpu().numpy()
                row += len(part)
            file.flush()

        return save

    def load(self, path: Path) -> None:
        """Add the vectors of a file."""
        vectors = np.load(path, mmap_mode="r")
        for row in range(0, len(vectors), BLOCK_ROWS):
            self.append(vectors[row : row + BLOCK_ROWS])

    def kept(self, numbers: np.ndarray) -> torch.Tensor:
        """Return the vectors with some numbers, float16 `[n, d]`, on the CPU."""
        blocks, offsets = np.divmod(numbers - self._base, BLOCK_ROWS)
        if len(blocks) and blocks.min() == blocks.max():
            places = torch.from_numpy(offsets).to(self.device)
            return self._blocks[blocks[0]][places].half().cpu()
        vectors = torch.empty((len(numbers), self.dimension), dtype=torch.float16)
        for block in np.unique(blocks).tolist():
            here = np.flatnonzero(blocks == block)
            places = torch.from_numpy(offsets[here]).to(self.device)
            vectors[torch.from_numpy(here)] = self._blocks[block][places].half().cpu()
        return vectors

    def search(
        self, queries: np.ndarray, searches: Sequence[Nearest], permitted: np.ndarray | None
    ) -> None:
        """Compare queries with all vectors.

        Args:
            queries: float32 `[q, d]`.
            searches: what they have found, and now find.
            permitted: bool `[end]`: which vectors may be found; None for all.
        """
        if self.first == self.end:
            return
        wanted = torch.tensor(queries, device=self.device).to(self.dtype)
        padded = F.pad(wanted, (0, 0, 0, -len(wanted) % GRAIN_QUERIES))
        ranges = list(self._ranges())
        row_bytes = self.dtype.itemsize * (len(padded) if len(wanted) > 1 else 1)
        step = max(1, STEP_BYTES[self.device.type] // (row_bytes * BLOCK_ROWS))
        for at in range(0, len(ranges), step):
            products, numbers = [], []
            for block, start, end, base in ranges[at : at + step]:
                before = start - start % GRAIN_ROWS
                rows = block[before : end + -end % GRAIN_ROWS]
                if len(wanted) == 1:  # where there is no AMX, much faster than with matrices
                    product = torch.mv(rows, wanted[0])[None]
                else:
                    product = (padded @ rows.T)[: len(wanted)]
                product[:, : start - before] = -torch.inf
                product[:, end - before :] = -torch.inf
                if permitted is not None:
                    barred = torch.from_numpy(~permitted[base + start : base + end])
                    product[:, start - before : end - before].masked_fill_(
                        barred.to(self.device), -torch.inf
                    )
                products.append(product)
                numbers.append(np.arange(base + before, base + before + product.shape[1]))
            offer(
                searches,
                torch.cat(products, 1) if len(products) > 1 else products[0],
                np.concatenate(numbers),
            )

    def _ranges(self) -> Iterator[tuple[torch.Tensor, int, int, int]]:
        """Yield each block, where its vectors begin and end, and the number of its first row."""
        for block, base in zip(self._blocks, range(self._base, self.end, BLOCK_ROWS), strict=True):
            yield block, max(self.first - base, 0), min(self.end - base, BLOCK_ROWS), base
