"""Segments of a chunk index: each is searched, saved and dropped by itself."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from deployments.chunk_index.columns import MetadataColumns, grown
from deployments.chunk_index.engines import Engine, Found, distances_of, measure
from deployments.chunk_index.snapshots import Part
from deployments.metadata import Filter
from deployments.records import Metadata, content_hash

# More segments take less memory while one of them is emptied, but a search looks into each.
SEGMENT_CHUNKS = 5_000_000
# A segment is emptied when more than this share of its chunks, and more than this many, were
# removed.
WASTED_SHARE = 1 / 3
WASTED_CHUNKS = 10_000
PHOTO_BYTES = 500  # what a photo's id and metadata take in a snapshot


class Segment:
    """Photos that were added one after the other.

    They are numbered from 0. A photo that is removed is only marked: it takes memory until all of
    the segment is dropped. A segment to which nothing is added any more is sealed.

    Args:
        engine: an empty engine.
        first: the number that the index has for the first photo.

    Attributes:
        removed: number of chunks whose photo was removed.
        present: by photo, whether it wasn't removed; with spare room.
    """

    def __init__(self, engine: Engine, first: int) -> None:
        self.engine = engine
        self.first = first
        self.removed = 0
        self.present = np.zeros(0, bool)
        self._hashes = np.zeros(0, np.uint64)  # content hashes by photo, with spare room
        self._columns = MetadataColumns()
        self._name: str | None = None  # of its own, if it is sealed

    @property
    def photos(self) -> int:
        """Number of photos, those that were removed among them."""
        return self.engine.owners.chunks.photos

    @property
    def rows(self) -> int:
        """Number of chunks, those of removed photos among them."""
        return self.engine.owners.chunks.rows

    @property
    def is_full(self) -> bool:
        """Whether nothing more should be added."""
        return self.rows >= SEGMENT_CHUNKS

    @property
    def is_wasteful(self) -> bool:
        """Whether the photos that are left should be moved to another segment."""
        return self.removed > max(WASTED_CHUNKS, WASTED_SHARE * self.rows)

    def left(self) -> np.ndarray:
        """Return the photos that weren't removed, in ascending order."""
        return self.present[: self.photos].nonzero()[0]

    def prepare(self, metadata: Metadata) -> Callable[[str, np.ndarray, int], int]:
        """Make room for a photo, and return a function that adds it.

        Returns:
            A function of the photo's id, vectors and content hash, which returns its number. If it
            fails, the rows of the segment may be out of step.
        """
        photo = self.photos
        if photo == len(self.present):
            size = max(2 * photo, 1024)
            present, hashes = grown(self.present, size), grown(self._hashes, size)
            self.present, self._hashes = present, hashes
        write_metadata = self._columns.prepare(photo, metadata)

        def add(id: str, vectors: np.ndarray, content: int) -> int:
            self.engine.append(vectors, id)
            write_metadata()
            self._hashes[photo] = content
            self.present[photo] = True
            return photo

        return add

    def remove(self, photo: int) -> int:
        """Mark a photo as removed; return its content hash."""
        chunks = self.engine.owners.chunks
        self.present[photo] = False
        self.removed += chunks[photo + 1] - chunks[photo]
        return int(self._hashes[photo])

    def seal(self) -> None:
        """Let nothing be added any more, and free what only that needs."""
        self._name = uuid.uuid4().hex
        self.engine.seal()

    def search(
        self, queries: np.ndarray, counts: Sequence[int], filter: Filter | None, share: float
    ) -> list[Found]:
        """Find the nearest photos of each query that weren't removed and match the filter.

        Args:
            share: see `Engine.search`.
        """
        allowed = self.present[: self.photos]
        if filter is not None:
            allowed = allowed & self._columns.select(filter, self.photos)
        is_every = filter is None and not self.removed
        return self.engine.search(queries, counts, None if is_every else allowed, share)

    def ids(self, photos: np.ndarray) -> list[str]:
        """Return the ids of some photos."""
        ids = self.engine.owners.ids
        return [ids[photo] for photo in photos.tolist()]

    def measure(self, photos: np.ndarray, query: np.ndarray) -> list[np.ndarray]:
        """Return the distances from a query to all chunks of some photos."""
        return self._of_each(photos, distances_of(measure(self.engine.vectors(photos), query)))

    def contents(self, photos: np.ndarray) -> Iterator[tuple[str, np.ndarray, Metadata, int]]:
        """Yield the id, vectors (float16), metadata and content hash of some photos."""
        vectors = self.engine.vectors(photos).astype(np.float16)
        return zip(
            self.ids(photos),
            self._of_each(photos, vectors),
            self._columns.metadata(photos),
            self._hashes[photos].tolist(),
            strict=True,
        )

    def drift(self, photos: np.ndarray) -> int:
        """Return how the hashes of what the engine has of some photos differ from their own."""
        vectors = self._of_each(photos, self.engine.vectors(photos))
        hashes = map(content_hash, self.ids(photos), vectors)
        return sum(hashes) - sum(self._hashes[photos].tolist())

    def digest(self) -> int:
        """Return the sum of the content hashes of all photos that weren't removed."""
        return sum(self._hashes[self.left()].tolist())

    def _of_each(self, photos: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
        """Split the rows of some photos, one photo after the other."""
        _, lengths = self.engine.owners.chunks.of(photos)
        ends = np.cumsum(lengths).tolist()
        return [rows[start:end] for start, end in pairwise([0, *ends])]

    def part(self) -> Part:
        """Return the part of a snapshot that has all but which photos are present.

        It may be saved while photos are added, removed and searched, but not during `build`.
        """
        is_final = not self.engine.waiting  # then nothing of it changes, if it is sealed
        save_engine, save_columns = self.engine.saver(), self._columns.saver()
        hashes = self._hashes[: self.photos]  # which never change

        def save(folder: Path) -> None:
            save_engine(folder)
            np.save(folder / "hashes.npy", hashes)
            save_columns(folder / "metadata.npz")

        return Part(
            name=(is_final and self._name) or uuid.uuid4().hex,
            about_bytes=self.engine.saved_bytes + self.photos * PHOTO_BYTES,
            save=save,
        )

    def load(self, folder: Path, present: np.ndarray, *, sealed: bool) -> None:
        """Load what a part has saved into an empty segment.

        Args:
            present: by photo, whether it wasn't removed.
            sealed: whether nothing will be added any more.

        Raises:
            OSError, ValueError, KeyError, RuntimeError: files are missing or damaged.
        """
        self.engine.load(folder, sealed=sealed)
        self._hashes = np.load(folder / "hashes.npy")
        self._columns = MetadataColumns.load(folder / "metadata.npz")
        self.present = present[: self.photos].copy()
        if not len(self._hashes) == len(self.present) == self.photos:
            raise ValueError("its files don't belong together")
        self.removed = self.rows - int(self.engine.owners.chunks.of(self.left())[1].sum())
        if sealed:
            self._name = uuid.uuid4().hex if self.engine.waiting else folder.name
