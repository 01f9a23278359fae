"""The exact engine: a query is compared with every vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from deployments.chunk_index.blocks import PRODUCT_ERROR, Blocks
from deployments.chunk_index.engines import Found, measure_each
from deployments.chunk_index.nearest import Nearest, conclude
from deployments.chunk_index.owners import Owners
from deployments.compute.device import DTYPES, resolve_device


class ExactEngine:
    """Compares a query with every vector.

    All candidates that could be among the answers are then compared again, in float64. So the
    answer is that of float64 on the vectors as they are kept.

    Args:
        dimension: length of a vector.
        device: `auto`, `cpu` or `cuda[:n]`.
        dtype: how vectors are kept. The store keeps float16, so float16 loses nothing and takes
            half the memory of float32; bfloat16 rounds similarities by about 0.004.
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
        self._blocks = Blocks(dimension, resolve_device(device), DTYPES[dtype])
        self.owners = Owners(dimension, self._kept)

    @property
    def saved_bytes(self) -> int:
        """See `Engine.saved_bytes`."""
        return self.owners.vectors.rows * 2 * self._blocks.dimension

    def append(self, vectors: np.ndarray, id: str = "") -> None:
        """See `Engine.append`."""
        half = torch.tensor(vectors).half()
        if self._blocks.dtype == torch.bfloat16:  # float16 can express what that leaves
            half = half.bfloat16().half()
        self._blocks.append(self.owners.append(half.numpy(), id))

    def _kept(self, numbers: np.ndarray) -> np.ndarray:
        return self._blocks.kept(numbers).numpy()

    def vectors(self, photos: np.ndarray) -> np.ndarray:
        """See `Engine.vectors`."""
        return self._blocks.kept(self.owners.numbers(photos)).float().numpy()

    @torch.inference_mode()
    def search(
        self,
        queries: np.ndarray,
        counts: int | Sequence[int],
        allowed: np.ndarray | None,
        share: float = 1,
    ) -> list[Found]:
        """See `Engine.search`."""
        error = PRODUCT_ERROR[self._blocks.dtype]
        searches = [
            Nearest(self.owners, count, allowed, error)
            for count in np.broadcast_to(counts, len(queries)).tolist()
        ]
        self._blocks.search(queries, searches, self.owners.permitted(allowed))
        return conclude(
            searches, lambda numbers, of: measure_each(self._blocks.rows(numbers), queries, of)
        )

    def build(self) -> bool:
        """Return False: there is nothing to build."""
        return False

    def seal(self) -> None:
        """See `Engine.seal`."""
        self.owners.seal()
        self._blocks.seal()

    def saver(self) -> Callable[[Path], None]:
        """See `Engine.saver`."""
        save_owners, save_vectors = self.owners.saver(), self._blocks.saver()

        def save(folder: Path) -> None:
            save_owners(folder)
            save_vectors(folder / "vectors.npy")

        return save

    def load(self, folder: Path, *, sealed: bool = False) -> None:
        """See `Engine.load`."""
        self._blocks.load(folder / "vectors.npy")
        self.owners.load(folder, None if sealed else self._blocks.parts())
        if self.owners.vectors.rows != self._blocks.end:
            raise ValueError("its files don't belong together")
        if sealed:
            self.seal()
