"""Find photos by their nearest chunks. The engines do the search itself."""

from __future__ import annotations

import threading
import time
import uuid
from bisect import bisect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Literal

import numpy as np

from deployments.chunk_index.approximate import ApproximateEngine
from deployments.chunk_index.engines import (
    Engine,
    Found,
    distances_of,
    places_of_nearest,
)
from deployments.chunk_index.exact import ExactEngine
from deployments.chunk_index.segments import Segment
from deployments.chunk_index.snapshots import Part
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
# With fewer chunks no graph is built: comparing all of them is exact, and fast enough.
GRAPH_CHUNKS = 50_000
# Photos that are moved in one step of a renewal. Searches wait for a step: 8 photos of 35 chunks
# take about 2 ms.
MOVED_PHOTOS = 8
PRESENT = "present.npy"  # in a snapshot, which photos are present: that changes in all segments
MEASURED_PHOTOS = 128  # photos whose chunks are measured at a time, in float64


class ChunkIndex:
    """Photos by id, which are found by their nearest chunks. It is thread-safe.

    Photos are numbered in the order of arrival, and lie in segments. They are added to the last
    one, which is sealed when it is full. A search looks into each.

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
        self._segments = [Segment(self._make_engine(), first=0)]
        self._numbers: dict[str, int] = {}  # of the photos that are present
        self._digest = 0

    def _make_engine(self) -> Engine:
        settings = self._settings
        if self.engine == "exact":
            return ExactEngine(self.dimension, device=settings.device, dtype=settings.dtype)
        return ApproximateEngine(self.dimension, expansion=settings.expansion)

    @property
    def kind(self) -> dict[str, object]:
        """What a snapshot and an index must have in common, so that the index can load it."""
        return {"engine": self._segments[-1].engine.name, "dimension": self.dimension}

    @property
    def photos(self) -> int:
        """Number of photos."""
        return len(self._numbers)

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return sum(segment.rows - segment.removed for segment in self._segments)

    @property
    def removed(self) -> int:
        """Number of chunks that are no longer found, but still take memory."""
        return sum(segment.removed for segment in self._segments)

    @property
    def waiting(self) -> int:
        """Number of vectors that wait for `build`; equal ones in a segment count once."""
        return sum(segment.engine.waiting for segment in self._segments)

    @property
    def digest(self) -> str:
        """A hash of all ids and vectors, whatever their order: 16 hexadecimal digits.

        It adds up what each photo had when it was put. For some photos, and always for the newest,
        this is corrected by what the engine has now. So it shows when rows and photos are out of
        step: from the first such photo of a segment on, all are.
        """
        with self._lock:
            photos = self._sample()
        drift = 0
        for start in range(0, len(photos), PIECE_PHOTOS):  # so that searches needn't wait
            with self._lock:
                drift += self._drift(photos[start : start + PIECE_PHOTOS])
        return f"{(self._digest + drift) % 2**64:016x}"

    def _sample(self) -> np.ndarray:
        """Return the numbers of some photos in ascending order, the newest of each segment."""
        left = [segment.first + segment.left() for segment in self._segments]
        present = np.concatenate(left)
        if len(present) <= SAMPLE_PHOTOS:
            return present
        drawn = np.random.default_rng().integers(len(present), size=SAMPLE_PHOTOS)
        return np.unique([*present[drawn], *(photos[-1] for photos in left if len(photos))])

    def _drift(self, numbers: np.ndarray) -> int:
        """Return how the hashes of what the engines have differ from those of what was put."""
        if self._rounds:
            return 0
        return sum(
            segment.drift(photos[segment.present[photos]])
            for segment, photos in self._by_segment(numbers)
        )

    def _by_segment(self, numbers: np.ndarray) -> Iterator[tuple[Segment, np.ndarray]]:
        """Yield the segments of some photos, with the ascending numbers that they have there.

        Args:
            numbers: ascending; those of segments that were dropped are left out.
        """
        for segment in self._segments:
            start, end = np.searchsorted(numbers, [segment.first, segment.first + segment.photos])
            if start < end:
                yield segment, numbers[start:end] - segment.first

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
            self._put(id, vectors, metadata or {}, content)

    def _put(self, id: str, vectors: np.ndarray, metadata: Metadata, content: int) -> None:
        if self._segments[-1].is_full:
            self._begin_segment()
        segment = self._segments[-1]
        add = segment.prepare(metadata)
        with self._changing():
            photo = add(id, vectors, content)
            self._remove(id)
            self._numbers[id] = segment.first + photo
            self._digest = (self._digest + content) % 2**64

    def _begin_segment(self) -> None:
        last = self._segments[-1]
        self._segments.append(Segment(self._make_engine(), last.first + last.photos))
        last.seal()

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
            place = bisect(self._segments, number, key=attrgetter("first")) - 1
            segment = self._segments[place]
            content = segment.remove(number - segment.first)
            self._digest = (self._digest - content) % 2**64

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
        wanted = np.broadcast_to(counts, len(queries)).tolist()
        with self._lock:
            self._refuse_if_broken()
            rows = max(1, sum(segment.rows for segment in self._segments))
            found = [
                segment.search(queries, wanted, filter, segment.rows / rows)
                for segment in self._segments
            ]
            return [
                self._measure(query, self._nearest(of_query, count))
                for query, count, *of_query in zip(queries, wanted, *found, strict=True)
            ]

    def _nearest(self, found: Sequence[Found], count: int) -> np.ndarray:
        """Return the ascending numbers of the nearest of the photos found in each segment."""
        pairs = [*zip(self._segments, found, strict=True)]
        numbers = np.concatenate([segment.first + each.photos for segment, each in pairs])
        ids = [id for segment, each in pairs for id in segment.ids(each.photos)]
        distances = distances_of(np.concatenate([each.similarities for each in found]))
        return np.sort(numbers[places_of_nearest(distances, count, ids.__getitem__)])

    def _measure(self, query: np.ndarray, numbers: np.ndarray) -> Neighbours:
        """Compute the distances from the query to all chunks of some photos."""
        ids: list[str] = []
        distances: list[np.ndarray] = []
        for start in range(0, len(numbers), MEASURED_PHOTOS):
            for segment, photos in self._by_segment(numbers[start : start + MEASURED_PHOTOS]):
                ids += segment.ids(photos)
                distances += segment.measure(photos, query)
        return Neighbours(ids, distances)

    def build(self) -> bool:
        """Do a part of the work that makes searches faster; return whether there is more.

        Only one thread may build, renew and save.

        Raises:
            Unavailable: the index is broken.
        """
        with self._lock:
            self._refuse_if_broken()
            if self.chunks < GRAPH_CHUNKS:
                return False
            with self._changing():
                more = any(segment.engine.build() for segment in self._segments)
        pause()
        return more

    def renew(self) -> int:
        """Do a part of the work that frees what removed photos take.

        The segment with the largest share of removed chunks is emptied: the photos that are left in
        it are put anew, some at a time, and then it is dropped. So what a renewal takes is memory
        for these photos.

        Returns:
            How many chunks were put anew.

        Raises:
            Unavailable: the index is broken.
        """
        moved = 0
        with self._lock:
            self._refuse_if_broken()
            # Where nothing is left, nothing is moved: that segment is dropped, the next emptied.
            while not moved and (wasteful := [one for one in self._segments if one.is_wasteful]):
                segment = max(wasteful, key=lambda segment: segment.removed / segment.rows)
                if segment is self._segments[-1]:
                    self._begin_segment()
                removed = segment.removed
                for content in segment.contents(segment.left()[:MOVED_PHOTOS]):
                    self._put(*content)
                moved = segment.removed - removed
                if segment.removed == segment.rows:
                    self._segments.remove(segment)
        pause()
        return moved

    def parts(self) -> list[Part]:
        """Return the parts of a snapshot of the index as it is now; `load` loads them.

        They may be saved during `put`, `remove` and `search`, but not during `build` and `renew`.

        Raises:
            Unavailable: the index is broken.
        """
        with self._lock:
            self._refuse_if_broken()
            parts = [segment.part() for segment in self._segments]
            present = np.concatenate(
                [segment.present[: segment.photos] for segment in self._segments]
            )

        def save_present(folder: Path) -> None:
            np.save(folder / PRESENT, present)

        return [*parts, Part(uuid.uuid4().hex, len(present), save_present)]

    def load(self, folders: Sequence[Path]) -> None:
        """Load what was saved into an empty index.

        Args:
            folders: of the parts, in their order.

        Raises:
            OSError, ValueError, KeyError, RuntimeError: files are missing or damaged. The index is
                broken then.
        """
        with self._lock, self._changing():
            *of_segments, last = folders
            present = np.load(last / PRESENT)
            self._segments, first = [], 0
            for folder in of_segments:
                segment = Segment(self._make_engine(), first)
                segment.load(folder, present[first:], sealed=folder != of_segments[-1])
                self._segments.append(segment)
                first += segment.photos
            if first != len(present):
                raise ValueError("its parts don't belong together")
            for segment in self._segments:
                photos = segment.left()
                numbers = (segment.first + photos).tolist()
                self._numbers.update(zip(segment.ids(photos), numbers, strict=True))
                self._digest += segment.digest()
            self._digest %= 2**64
            if self._drift(self._sample()):
                raise ValueError("its rows and photos don't belong together")


def pause() -> None:
    """Give a search that waits a moment to take the lock, because Python's lock isn't fair."""
    time.sleep(0.0005)
