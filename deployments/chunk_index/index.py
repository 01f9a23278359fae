"""Find photos by their nearest chunks. The engines do the search itself."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from deployments.chunk_index.approximate import ApproximateEngine
from deployments.chunk_index.columns import MetadataColumns
from deployments.chunk_index.engines import Engine, Found, distances_of, measure
from deployments.chunk_index.exact import ExactEngine
from deployments.compute.device import resolve_device
from deployments.metadata import Filter
from deployments.records import (
    Metadata,
    Neighbours,
    content_hash,
)
from deployments.settings import ChunkIndexSettings

MEASURED_PHOTOS = 128  # photos whose chunks are measured at a time, in float64


class ChunkIndex:
    """Photos by id, which are found by their nearest chunks. It is thread-safe.

    Args:
        dimension: length of a vector.
        settings: the engine and its options. Engine `auto` is exact on a GPU, else approximate.

    Attributes:
        engine: the engine in use, `exact` or `approximate`.
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
        self._numbers: dict[str, int] = {}  # of the photos that are present
        self._ids: list[str | None] = []  # by number; None: removed
        self._present = np.zeros(0, bool)  # by number, with spare room
        self._hashes: list[int] = []  # content hashes, by number
        self._digest = 0
        self._columns = MetadataColumns()
        self._removed = 0  # chunks whose photo was removed
        self._lock = threading.Lock()

    @property
    def kind(self) -> dict[str, object]:
        """What a snapshot and an index must have in common, so that the index can load it."""
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
        """Number of vectors that wait for `build`; equal ones count once."""
        return self._engine.waiting

    @property
    def digest(self) -> str:
        """A hash of all ids and vectors, whatever their order: 16 hexadecimal digits."""
        return f"{self._digest:016x}"

    def put(self, id: str, vectors: np.ndarray, metadata: Metadata | None = None) -> None:
        """Add a photo, or replace it.

        Args:
            vectors: `[n, dimension]`, n at least 1, L2-normalised; rounded to float16.

        Raises:
            ValueError: the vectors have another shape.
        """
        vectors = np.asarray(vectors, np.float16)
        if vectors.ndim != 2 or vectors.shape[1] != self.dimension or not len(vectors):
            raise ValueError(f"vectors must be [n, {self.dimension}], not {list(vectors.shape)}")
        content = content_hash(id, vectors)
        with self._lock:
            self._remove(id)
            number = len(self._ids)
            self._engine.append(vectors, id)
            self._columns.put(number, metadata or {})
            self._ids.append(id)
            if number >= len(self._present):
                room = np.zeros(max(number, 1024), bool)
                self._present = np.concatenate([self._present, room])
            self._present[number] = True
            self._hashes.append(content)
            self._numbers[id] = number
            self._digest = (self._digest + content) % 2**64

    def remove(self, id: str) -> None:
        """Remove a photo, if it is there."""
        with self._lock:
            self._remove(id)

    def _remove(self, id: str) -> None:
        number = self._numbers.pop(id, None)
        if number is not None:
            self._ids[number] = None
            self._present[number] = False
            self._columns.remove(number)
            self._removed += self._engine.starts[number + 1] - self._engine.starts[number]
            self._digest = (self._digest - self._hashes[number]) % 2**64

    def search(
        self, queries: np.ndarray, counts: int | Sequence[int], filter: Filter | None = None
    ) -> list[Neighbours]:
        """Find the photos nearest to each query: those with the nearest chunks.

        Of photos that tie, those with the smallest ids are found. Only the photos that are found
        are measured, however many tie.

        Args:
            queries: float32 `[q, dimension]`, L2-normalised.
            counts: how many photos to find, for all queries or for each.
            filter: only photos that match it are found.
        """
        with self._lock:
            found = self._engine.search(queries, counts, self._allowed(filter))
            return [self._measure(*pair) for pair in zip(queries, found, strict=True)]

    def _allowed(self, filter: Filter | None) -> np.ndarray | None:
        if filter is None and not self._removed:
            return None
        present = self._present[: len(self._ids)]
        return present if filter is None else present & self._columns.select(filter, len(self._ids))

    def _measure(self, query: np.ndarray, found: Found) -> Neighbours:
        """Compute the distances from the query to all chunks of the photos found."""
        ids: list[str] = []
        distances: list[np.ndarray] = []
        for start in range(0, len(found.photos), MEASURED_PHOTOS):
            numbers = np.sort(found.photos[start : start + MEASURED_PHOTOS])
            of_chunks = distances_of(measure(self._engine.vectors(numbers), query))
            ends = np.cumsum(self._engine.starts.of(numbers)[1]).tolist()
            ids += [self._ids[number] for number in numbers.tolist()]
            distances += [of_chunks[start:end] for start, end in pairwise([0, *ends])]
        return Neighbours(ids, distances)

    def build(self) -> bool:
        """Do a part of the work that makes searches faster; return whether there is more.

        Only one thread may build and save.
        """
        with self._lock:
            more = self._engine.build()
        # Python's lock isn't fair: a search that waits for it needs a moment to take it.
        time.sleep(0.0005)
        return more

    def saver(self) -> Callable[[Path], None]:
        """Return a function that writes the index as it is now into an empty folder.

        It may run during `put`, `remove` and `search`, but not during `build`.
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
        """Load what was saved into an empty index.

        Raises:
            OSError, ValueError, KeyError, RuntimeError: files are missing or damaged. The index
                can't be used after that.
        """
        with self._lock:
            self._engine.load(folder)
            self._ids = json.loads((folder / "ids.json").read_text())
            self._hashes = np.load(folder / "hashes.npy").tolist()
            self._columns = MetadataColumns.load(folder / "metadata.npz")
            self._numbers = {id: n for n, id in enumerate(self._ids) if id is not None}
            if len(self._ids) != self._engine.starts.photos:
                raise ValueError("its files don't belong together")
            self._present = np.array([id is not None for id in self._ids], bool)
            present = self._present.nonzero()[0]
            self._removed = self._engine.starts.rows - int(self._engine.starts.of(present)[1].sum())
            self._digest = sum(self._hashes[number] for number in present) % 2**64
