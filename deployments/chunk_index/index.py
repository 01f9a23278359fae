"""Photos by id, found by the nearest of their chunks. The engines do the search itself."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from deployments.chunk_index.approximate import ApproximateEngine
from deployments.chunk_index.columns import MetadataColumns
from deployments.chunk_index.engines import Engine, Found
from deployments.chunk_index.exact import ExactEngine
from deployments.compute.device import resolve_device
from deployments.metadata import Filter
from deployments.records import (
    Metadata,
    Neighbours,
    content_hash,
)
from deployments.settings import ChunkIndexSettings


class ChunkIndex:
    """Photos by id, found by the nearest of their chunks; safe to use from several threads.

    Args:
        dimension: length of a vector.
        settings: which engine, and its options. Engine `auto` is exact on a GPU, else approximate.

    Attributes:
        engine: which one it is, `exact` or `approximate`.
    """

    def __init__(
        self,
        dimension: int,
        settings: ChunkIndexSettings = ChunkIndexSettings(),  # noqa: B008  (frozen)
    ) -> None:
        self.dimension = dimension
        self.engine: Literal["exact", "approximate"]
        if settings.engine == "auto":
            on_gpu = resolve_device(settings.device).type == "cuda"
            self.engine = "exact" if on_gpu else "approximate"
        else:
            self.engine = settings.engine
        self._engine: Engine
        if self.engine == "exact":
            self._engine = ExactEngine(dimension, device=settings.device, dtype=settings.dtype)
        else:
            self._engine = ApproximateEngine(dimension, expansion=settings.expansion)
        self._numbers: dict[str, int] = {}  # of the photos that are here
        self._ids: list[str | None] = []  # by number; None: removed
        self._here = np.zeros(0, bool)  # by number, and room for more
        self._hashes: list[int] = []  # by number; of the content
        self._digest = 0
        self._columns = MetadataColumns()
        self._removed = 0  # chunks whose photo was removed
        self._lock = threading.Lock()

    @property
    def kind(self) -> dict[str, object]:
        """What must be the same for `load` to read what was saved."""
        return {"engine": self._engine.name, "dimension": self.dimension}

    @property
    def photos(self) -> int:
        """Number of photos."""
        return len(self._numbers)

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return self._engine.starts.rows - self._removed

    @property
    def removed(self) -> int:
        """Number of chunks that are no longer found, but still take memory."""
        return self._removed

    @property
    def waiting(self) -> int:
        """Number of chunks that `build` has yet to work on."""
        return self._engine.waiting

    @property
    def digest(self) -> str:
        """What all photos and their vectors amount to, in any order: 16 hexadecimal digits."""
        return f"{self._digest:016x}"

    def put(self, id: str, vectors: np.ndarray, metadata: Metadata | None = None) -> None:
        """Add a photo, or replace it.

        Args:
            vectors: `[n, dimension]`, n at least 1, L2-normalised; kept as float16 at best.

        Raises:
            ValueError: vectors of another shape.
        """
        vectors = np.asarray(vectors, np.float16)
        if vectors.ndim != 2 or vectors.shape[1] != self.dimension or not len(vectors):
            raise ValueError(f"vectors must be [n, {self.dimension}], not {list(vectors.shape)}")
        content = content_hash(id, vectors)
        with self._lock:
            self._remove(id)
            number = len(self._ids)
            self._engine.append(vectors)
            self._columns.put(number, metadata or {})
            self._ids.append(id)
            if number >= len(self._here):
                self._here = np.concatenate([self._here, np.zeros(max(number, 1024), bool)])
            self._here[number] = True
            self._hashes.append(content)
            self._numbers[id] = number
            self._digest = (self._digest + content) % 2**64

    def remove(self, id: str) -> None:
        """Forget a photo; one that isn't there is no error."""
        with self._lock:
            self._remove(id)

    def _remove(self, id: str) -> None:
        number = self._numbers.pop(id, None)
        if number is not None:
            self._ids[number] = None
            self._here[number] = False
            self._columns.remove(number)
            self._removed += self._engine.starts[number + 1] - self._engine.starts[number]
            self._digest = (self._digest - self._hashes[number]) % 2**64

    def search(
        self, queries: np.ndarray, count: int, filter: Filter | None = None
    ) -> list[Neighbours]:
        """Find the photos nearest to each query: those with the nearest chunks.

        Args:
            queries: float32 `[q, dimension]`, L2-normalised.
            count: how many photos to find.
            filter: photos that don't match it don't count.
        """
        with self._lock:
            found = self._engine.search(queries, count, self._allowed(filter))
            return [self._measure(*pair) for pair in zip(queries, found, strict=True)]

    def _allowed(self, filter: Filter | None) -> np.ndarray | None:
        if filter is None and not self._removed:
            return None
        here = self._here[: len(self._ids)]
        return here if filter is None else here & self._columns.select(filter, len(self._ids))

    def _measure(self, query: np.ndarray, found: Found) -> Neighbours:
        """Compare the query with all chunks of what was found."""
        horizon = (
            float(_distances(np.float64(found.horizon))) if np.isfinite(found.horizon) else np.inf
        )
        if not len(found.photos):
            return Neighbours([], [], horizon)
        numbers = np.sort(found.photos)
        distances = _distances(self._engine.vectors(numbers) @ query)
        ends = np.cumsum(self._engine.starts.of(numbers)[1]).tolist()
        return Neighbours(
            [self._ids[number] for number in numbers.tolist()],
            [distances[start:end] for start, end in pairwise([0, *ends])],
            horizon,
        )

    def build(self) -> bool:
        """Do a little of the work that makes searches faster; returns whether there is more.

        Only one thread may build and save.
        """
        with self._lock:
            more = self._engine.build()
        # Python's lock is not handed on: searches that wait for it need a moment to take it.
        time.sleep(0.0005)
        return more

    def saver(self) -> Callable[[Path], None]:
        """Return a function that writes the index as it is now into an empty folder.

        It may run while others put, remove and search, but not beside `build`.
        """
        with self._lock:
            save_engine = self._engine.saver()
            ids, hashes = list(self._ids), np.array(self._hashes, np.uint64)
            columns = copy.deepcopy(self._columns)

        def save(folder: Path) -> None:
            save_engine(folder)
            (folder / "ids.json").write_text(json.dumps(ids))
            np.save(folder / "hashes.npy", hashes)
            columns.save(folder / "metadata.npz")

        return save

    def load(self, folder: Path) -> None:
        """Read what was saved into an empty index.

        Raises:
            OSError, ValueError, KeyError, RuntimeError: it isn't there, or isn't whole. The index
                can't be used then.
        """
        with self._lock:
            self._engine.load(folder)
            self._ids = json.loads((folder / "ids.json").read_text())
            self._hashes = np.load(folder / "hashes.npy").tolist()
            self._columns = MetadataColumns.load(folder / "metadata.npz")
            self._numbers = {id: n for n, id in enumerate(self._ids) if id is not None}
            if len(self._ids) != self._engine.starts.photos:
                raise ValueError("its parts don't belong together")
            self._here = np.array([id is not None for id in self._ids], bool)
            here = self._here.nonzero()[0]
            self._removed = self._engine.starts.rows - int(self._engine.starts.of(here)[1].sum())
            self._digest = sum(self._hashes[number] for number in here) % 2**64


def _distances(similarities: np.ndarray) -> np.ndarray:
    """Cosine distances, rounded: the last bits depend on how many queries went together,
    and equal pictures should tie.
    """
    return np.clip(1 - similarities.astype(np.float64), 0, 2).round(6)
