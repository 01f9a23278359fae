"""Vectors in memory, and the comparison of queries with all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from deployments.chunk_index.nearest import Nearest, offer
from deployments.compute.device import upload

# Rows in one tensor, by the device. Blocks can be added without a copy, and freed one by one. For a
# GPU they are large: each is a launch of a kernel in every search.
BLOCK_ROWS = {"cpu": 65_536, "cuda": 262_144}
# Vectors that are gathered before they are copied: a copy to a GPU has a fixed cost.
GATHERED_ROWS = {"cpu": 1, "cuda": 4096}
# Vectors that are read or hashed at a time while a snapshot is loaded.
LOADED_ROWS = 65_536
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
STEP_BYTES = {"cpu": 2**22, "cuda": 2**30}

# Else a GPU may add parts of a product in half precision, and exceed the error.
torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


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
        self._block_rows = BLOCK_ROWS[device.type]
        self._blocks: list[torch.Tensor] = []
        self._gathered: list[np.ndarray] = []  # the last vectors, which aren't in a block yet
        self._written = 0  # number of the first of these

    def begin_at(self, number: int) -> None:
        """Let the first vector have this number."""
        self.first = self.end = self._base = self._written = number

    def append(self, vectors: np.ndarray) -> None:
        """Add vectors, float16 `[n, d]`, which don't change any more."""
        end = self.end + len(vectors)
        # Memory is asked for here: no search may fail because of what was added before.
        while len(self._blocks) * self._block_rows < end - self._base:
            size = (self._block_rows, self.dimension)
            self._blocks.append(torch.empty(size, dtype=self.dtype, device=self.device))
        self._gathered.append(vectors)
        self.end = end
        if end - self._written >= GATHERED_ROWS[self.device.type]:
            self._write()

    def _write(self) -> None:
        """Copy what was gathered into the blocks, without waiting for a GPU."""
        if not self._gathered:
            return
        rest, row = upload(np.concatenate(self._gathered), self.device), self._written - self._base
        while len(rest):
            block, offset = divmod(row, self._block_rows)
            room = self._blocks[block][offset : offset + len(rest)]
            room.copy_(rest[: len(room)])
            rest, row = rest[len(room) :], row + len(room)
        self._gathered.clear()
        self._written = self.end

    def seal(self) -> None:
        """Free the room behind the last vector: none will be added."""
        self._write()
        rows = (self.end - self._base) % self._block_rows
        if rows:
            self._blocks[-1] = self._blocks[-1][: rows + -rows % GRAIN_ROWS].clone()

    def drop_before(self, number: int) -> None:
        """Drop the vectors before this one."""
        self._write()
        if number == self.end:
            self._blocks.clear()
            self.begin_at(number)
            return
        self.first = number
        dropped = (number - self._base) // self._block_rows
        del self._blocks[:dropped]
        self._base += dropped * self._block_rows

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
        for row in range(0, len(vectors), LOADED_ROWS):
            self.append(vectors[row : row + LOADED_ROWS])
        self._write()

    def kept(self, numbers: np.ndarray) -> torch.Tensor:
        """Return the vectors with some numbers, float16 `[n, d]`, on the CPU."""
        return self.rows(numbers).half().cpu()

    def rows(self, numbers: np.ndarray) -> torch.Tensor:
        """Return the vectors with some numbers, `[n, d]`, as they are kept, on their device."""
        self._write()
        if len(self._blocks) == 1:
            return self._blocks[0][upload(numbers - self._base, self.device)]
        order = np.argsort(numbers, kind="stable")
        places = numbers[order] - self._base
        ends = np.searchsorted(places, np.arange(len(self._blocks) + 1) * self._block_rows)
        offsets = upload(places % self._block_rows, self.device)
        rows = torch.empty((len(numbers), self.dimension), dtype=self.dtype, device=self.device)
        for block, (start, end) in zip(self._blocks, pairwise(ends.tolist()), strict=True):
            if start < end:
                torch.index_select(block, 0, offsets[start:end], out=rows[start:end])
        return rows[upload(np.argsort(order), self.device)]

    def search(
        self, queries: np.ndarray, searches: Sequence[Nearest], permitted: np.ndarray | None
    ) -> None:
        """Compare queries with all vectors, as many at a time as `STEP_BYTES` says.

        Args:
            queries: float32 `[q, d]`.
            searches: what they have found, and now find.
            permitted: bool `[end]`: which vectors may be found; None for all.
        """
        if self.first == self.end:
            return
        wanted = torch.tensor(queries, device=self.device).to(self.dtype)
        if len(wanted) > 1:
            wanted = F.pad(wanted, (0, 0, 0, -len(wanted) % GRAIN_QUERIES))
        ranges = list(self._ranges())
        block_bytes = self._block_rows * len(wanted) * self.dtype.itemsize
        step = max(1, STEP_BYTES[self.device.type] // block_bytes)
        most = min(step, len(ranges)) * self._block_rows
        room = torch.empty((most, len(wanted)), dtype=self.dtype, device=self.device)
        for at in range(0, len(ranges), step):
            _, start, _, base = ranges[at]
            first, filled = base + start - start % GRAIN_ROWS, 0
            for block, start, end, _ in ranges[at : at + step]:
                rows = block[start - start % GRAIN_ROWS : end + -end % GRAIN_ROWS]
                products = room[filled : filled + len(rows)]
                if len(wanted) == 1:  # where there is no AMX, much faster than with matrices
                    torch.mv(rows, wanted[0], out=products[:, 0])
                else:
                    torch.mm(rows, wanted.T, out=products)
                filled += len(rows)
            products = room[:filled]
            products[: max(self.first - first, 0)] = -torch.inf
            products[self.end - first :] = -torch.inf
            if permitted is not None:
                barred = upload(~permitted[first : first + filled], self.device)
                # For many queries on a CPU, a third of the time that a mask takes.
                products.index_fill_(0, barred.nonzero()[:, 0], -torch.inf)
            offer(searches, products, first)

    def _ranges(self) -> Iterator[tuple[torch.Tensor, int, int, int]]:
        """Yield each block, where its vectors begin and end, and the number of its first row."""
        self._write()
        bases = range(self._base, self.end, self._block_rows)
        for block, base in zip(self._blocks, bases, strict=True):
            yield block, max(self.first - base, 0), min(self.end - base, self._block_rows), base
