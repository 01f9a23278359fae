"""Find photos by their nearest chunks. The engines do the search itself."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from deployments.chunk_index.approximate import ApproximateEngine
from deployments.chunk_index.columns import MetadataColumns, grown
from deployments.chunk_index.engines import Engine, Found, distances_of, measure
from deployments.chunk_index.exact import ExactEngine
from deployments.compute.device import resolve_device
from deployments.errors import Unavailable
from deployments.metadata import Filter
from deployments.records import (
    Metadata,
    Neighbours,
    content_hash,
)
from deployments.settings import ChunkIndexSettings

# How many photos' vectors are hashed again for `ChunkIndex.digest`, and how many of them at a time:
# 64 photos of 35 chunks take about 2 ms.
SAMPLE_PHOTOS = 256
PIECE_PHOTOS = 64
# What a chunk takes in a saved graph, beside its vector, and a photo with its id and metadata.
LINK_BYTES = 300
PHOTO_BYTES = 500
MEASURED_PHOTOS = 128  # photos whose chunks are measured at a time, in float64


class ChunkIndex:
    """Photos by id, which are found by their nearest chunks. It is thread-safe.

    Args:
        dimension: length of a vector.
        settings: the engine and its options. Engine `auto` is exact on a GPU, else approximate.

    A change that fails halfway leaves the rows of the engine and the photos out of step, or may do
    so. Then the index is broken: it refuses to be searched, saved and changed.

    Attributes:
        engine: the engine in use, `exact` or `approximate`.
        broken: whether it must be thrown away.
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
        self._settings = settings
        # Then the vectors in the engine aren't those that were put.
        self._rounds = self.engine == "exact" and settings.dtype == "bfloat16"
        self._lock = threading.Lock()
        self.broken = False
        self._empty()

    def _empty(self) -> None:
        self._engine: Engine
        if self.engine == "exact":
            self._engine = ExactEngine(
                self.dimension, device=self._settings.device, dtype=self._settings.dtype
            )
        else:
            self._engine = ApproximateEngine(self.dimension, expansion=self._settings.expansion)
        self._numbers: dict[str, int] = {}  # of the photos that are present
        self._ids: list[str | None] = []  # by number; None: removed
        self._present = np.zeros(0, bool)  # by number, with spare room
        self._hashes = np.zeros(0, np.uint64)  # content hashes, by number, with spare room
        self._digest = 0
        self._columns = MetadataColumns()
        self._removed = 0  # chunks whose photo was removed

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
    def saved_bytes(self) -> int:
        """How many bytes `saver` writes, about; rather more than less."""
        links = 0 if self.engine == "exact" else LINK_BYTES
        of_chunks = self._engine.starts.rows * (2 * self.dimension + links)
        return of_chunks + len(self._ids) * PHOTO_BYTES

    @property
    def digest(self) -> str:
        """A hash of all ids and vectors, whatever their order: 16 hexadecimal digits.

        It adds up what each photo had when it was put. For some photos, and always for the newest,
        this is corrected by what the engine has now. So it shows when rows and photos are out of
        step: from the first such photo on, all are.
        """
        with self._lock:
            photos = self._sample()
        drift = 0
        for start in range(0, len(photos), PIECE_PHOTOS):  # so that searches needn't wait
            with self._lock:
                drift += self._drift(photos[start : start + PIECE_PHOTOS])
        return f"{(self._digest + drift) % 2**64:016x}"

    def _sample(self) -> np.ndarray:
        """Return the numbers of some photos in ascending order, the newest among them."""
        present = self._present[: len(self._ids)].nonzero()[0]
        if len(present) <= SAMPLE_PHOTOS:
            return present
        drawn = np.random.default_rng().integers(len(present), size=SAMPLE_PHOTOS - 1)
        return present[np.unique([*drawn, len(present) - 1])]

    def _drift(self, photos: np.ndarray) -> int:
        """Return how the hashes of what the engine has differ from those of what was put."""
        photos = photos[self._present[photos]]
        if self._rounds or not len(photos):
            return 0
        vectors = self._engine.vectors(photos)
        ends = np.cumsum(self._engine.starts.of(photos)[1]).tolist()
        return sum(
            content_hash(str(self._ids[number]), vectors[start:end]) - int(self._hashes[number])
            for number, (start, end) in zip(photos.tolist(), pairwise([0, *ends]), strict=True)
        )

    def put(self, id: str, vectors: np.ndarray, metadata: Metadata | None = None) -> None:
        """Add a photo, or replace it.

        Args:
            vectors: `[n, dimension]`, n at least 1, L2-normalised; rounded to float16.

        Raises:
            ValueError: the vectors have another shape; nothing has changed.
            Unavailable: the index is broken.
        """
        vectors = np.asarray(vectors, np.float16)
        if vectors.ndim != 2 or vectors.shape[1] != self.dimension or not len(vectors):
            raise ValueError(f"vectors must be [n, {self.dimension}], not {list(vectors.shape)}")
        content = content_hash(id, vectors)
        with self._lock:
            self._refuse_if_broken()
            number = len(self._ids)
            self._make_room(number + 1)
            write_metadata = self._columns.prepare(number, metadata or {})
            with self._changing():
                self._engine.append(vectors, id)
                write_metadata()
                self._ids.append(id)
                self._hashes[number] = content
                self._remove(id)
                self._present[number] = True
                self._numbers[id] = number
                self._digest = (self._digest + content) % 2**64

    def _make_room(self, photos: int) -> None:
        if photos > len(self._present):
            size = max(2 * photos, 1024)
            present, hashes = grown(self._present, size), grown(self._hashes, size)
            self._present, self._hashes = present, hashes

    def remove(self, id: str) -> None:
        """Remove a photo, if it is there.

        Raises:
            Unavailable: the index is broken.
        """
        with self._lock:
            self._refuse_if_broken()
            with self._changing():
                self._remove(id)

    def _remove(self, id: str) -> None:
        number = self._numbers.pop(id, None)
        if number is not None:
            self._ids[number] = None
            self._present[number] = False
            self._columns.remove(number)
            self._removed += self._engine.starts[number + 1] - self._engine.starts[number]
            self._digest = (self._digest - int(self._hashes[number])) % 2**64

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Take the index as broken unless all of the block is executed."""
        try:
            yield
        except BaseException:
            self.broken = True
            raise

    def _refuse_if_broken(self) -> None:
        if self.broken:
            raise Unavailable(
                "A change of the index failed halfway, so it is being loaded anew. Try again."
            )

    def give_up(self) -> None:
        """Free what the index holds; it is broken from then on."""
        with self._lock:
            self.broken = True
            self._empty()

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

        Raises:
            Unavailable: the index is broken.
        """
        with self._lock:
            self._refuse_if_broken()
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

        Raises:
            Unavailable: the index is broken.
        """
        with self._lock:
            self._refuse_if_broken()
            with self._changing():
                more = self._engine.build()
        # Python's lock isn't fair: a search that waits for it needs a moment to take it.
        time.sleep(0.0005)
        return more

    def saver(self) -> Callable[[Path], None]:
        """Return a function that writes the index as it is now into an empty folder.

        It may run during `put`, `remove` and `search`, but not during `build`.

        Raises:
            Unavailable: the index is broken.
        """
        with self._lock:
            self._refuse_if_broken()
            save_engine = self._engine.saver()
            ids = list(self._ids)
            hashes = self._hashes[: len(ids)]  # which never change
            save_columns = self._columns.saver()

        def save(folder: Path) -> None:
            save_engine(folder)
            with (folder / "ids.json").open("w") as file:
                json.dump(ids, file)  # in pieces, so that searches go on meanwhile
            np.save(folder / "hashes.npy", hashes)
            save_columns(folder / "metadata.npz")

        return save

    def load(self, folder: Path) -> None:
        """Load what was saved into an empty index.

        Raises:
            OSError, ValueError, KeyError, RuntimeError: files are missing or damaged. The index is
                broken then.
        """
        with self._lock, self._changing():
            self._engine.load(folder)
            self._ids = json.loads((folder / "ids.json").read_text())
            self._hashes = np.load(folder / "hashes.npy")
            self._columns = MetadataColumns.load(folder / "metadata.npz")
            self._numbers = {id: n for n, id in enumerate(self._ids) if id is not None}
            if not len(self._ids) == len(self._hashes) == self._engine.starts.photos:
                raise ValueError("its files don't belong together")
            self._present = np.array([id is not None for id in self._ids], bool)
            present = self._present.nonzero()[0]
            self._removed = self._engine.starts.rows - int(self._engine.starts.of(present)[1].sum())
            self._digest = sum(self._hashes[present].tolist()) % 2**64
            if self._drift(self._sample()):
                raise ValueError("its rows and photos don't belong together")
