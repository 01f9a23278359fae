"""Which photos have which vectors."""

from __future__ import annotations

import json
from array import array
from bisect import bisect
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from deployments.chunk_index.known import Known

MOST = 0.5  # of the photos


class Grown:
    """An array that grows at its end. What was read from it stays as it is."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values
        self._count = len(values)

    def append(self, values: np.ndarray) -> None:
        """Add values."""
        end = self._count + len(values)
        if end > len(self._values):
            room = np.empty(max(end, 2 * len(self._values)), self._values.dtype)
            room[: self._count] = self.array()
            self._values = room
        self._values[self._count : end] = values
        self._count = end

    def array(self) -> np.ndarray:
        """Return a view of all values."""
        return self._values[: self._count]


class Starts:
    """Where the rows of each photo begin."""

    def __init__(self, starts: np.ndarray | None = None) -> None:
        self._starts = Grown(np.zeros(1, np.int64) if starts is None else starts)

    @property
    def photos(self) -> int:
        """Number of photos."""
        return len(self.array()) - 1

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.array()[-1])

    def append(self, rows: int) -> None:
        """Add a photo."""
        self._starts.append(self.array()[-1:] + rows)

    def __getitem__(self, photo: int) -> int:
        """Return the first row of a photo; for the number of photos, the number of rows."""
        return int(self.array()[photo])

    def array(self) -> np.ndarray:
        """Return a view of all starts, int64 `[photos + 1]`."""
        return self._starts.array()

    def of(self, photos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of some photos, one photo after the other, and how many each has."""
        starts = self.array()[photos]
        lengths = self.array()[photos + 1] - starts
        before = np.cumsum(lengths) - lengths
        return np.arange(lengths.sum()) + np.repeat(starts - before, lengths), lengths

    def owners(self, rows: np.ndarray) -> np.ndarray:
        """Return the photo of each row."""
        return np.searchsorted(self.array(), rows, side="right") - 1


class Owners:
    """Photos, their chunks, and the distinct vectors of these.

    The white tiles of all scans are one and the same vector. Kept once for each of them, they would
    be most of what a search finds, and the links of a graph would lead from one to the next only.
    So equal vectors have one number, in the order of arrival, and several owners.

    Most vectors have one owner, and the vectors that came with a photo lie one after the other. So
    only what repeats an earlier vector is noted: 12 bytes for such a chunk, and about 250 bytes for
    a vector that is repeated.

    Args:
        dimension: length of a vector.
        kept: returns the vectors with these numbers, float16 `[n, d]`.

    Attributes:
        chunks: where the chunks of each photo begin.
        vectors: where the vectors that came with each photo begin.
        ids: by photo.
    """

    def __init__(self, dimension: int, kept: Callable[[np.ndarray], np.ndarray]) -> None:
        self.chunks, self.vectors = Starts(), Starts()
        self.ids: list[str] = []
        self._known: Known | None = Known(dimension, kept)
        # The chunks that repeat an earlier vector, in ascending order, and which.
        self._repeats, self._repeated = Grown(np.zeros(0, np.int32)), Grown(np.zeros(0, np.int32))
        # The photos of each vector that several photos have, ordered by id.
        self._shared: dict[int, array[int]] = {}

    def append(self, vectors: np.ndarray, id: str) -> np.ndarray:
        """Add a photo, and return those of its vectors that nothing equals: they are to be kept."""
        assert self._known is not None  # it isn't sealed
        numbers, new = self._known.number(vectors)
        first, photo = self.vectors.rows, len(self.ids)
        self.ids.append(id)
        if len(new) < len(vectors):
            repeats = np.delete(np.arange(len(vectors)), new)
            self._repeats.append(self.chunks.rows + repeats)
            self._repeated.append(numbers[repeats])
            for number in set(numbers[repeats].tolist()):
                if number < first:
                    self._share(number, photo)
        self.chunks.append(len(vectors))
        self.vectors.append(len(new))
        return vectors[new]

    def seal(self) -> None:
        """Forget what only `append` needs."""
        self._known = None

    def _share(self, number: int, photo: int) -> None:
        owners = self._shared.get(number)
        if owners is None:
            first = int(self.vectors.owners(np.array([number]))[0])
            owners = self._shared[number] = array("i", [first])
        owners.insert(bisect(owners, self.ids[photo], key=self.ids.__getitem__), photo)

    def numbers(self, photos: np.ndarray) -> np.ndarray:
        """Return the vectors of all chunks of some photos, one photo after the other."""
        chunks, _ = self.chunks.of(photos)
        repeats = self._repeats.array()
        if not len(repeats):
            return chunks
        before = np.searchsorted(repeats, chunks)  # repeats before this chunk
        place = np.minimum(before, len(repeats) - 1)
        return np.where(
            repeats[place] == chunks, self._repeated.array()[place], chunks - before
        ).astype(np.int64)

    def owned(
        self, numbers: np.ndarray, count: int, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the allowed photos that have some vectors, and of which vector each of them is.

        No more than `count` of each vector: those with the smallest ids.

        Returns:
            The photos, and ascending places in `numbers`.
        """
        photos = self.vectors.owners(numbers)
        places = np.arange(len(numbers))
        shared = [n for n, number in enumerate(numbers.tolist()) if number in self._shared]
        if allowed is None and not shared:
            return photos, places
        single = np.ones(len(numbers), bool) if allowed is None else allowed[photos]
        if not shared:
            return photos[single], places[single]
        single[shared] = False
        several = [self._first(int(numbers[place]), count, allowed) for place in shared]
        photos = np.concatenate([photos[single], *several])
        places = np.concatenate([places[single], np.repeat(shared, [len(few) for few in several])])
        order = np.argsort(places, kind="stable")
        return photos[order], places[order]

    def _first(self, number: int, count: int, allowed: np.ndarray | None) -> np.ndarray:
        """Return the allowed owners of a shared vector that have the smallest ids."""
        owners = np.array(self._shared[number][:count] if allowed is None else [], np.int64)
        start, size = 0, 4 * count
        while allowed is not None and len(owners) < count and start < len(self._shared[number]):
            some = np.array(self._shared[number][start : start + size], np.int64)
            owners = np.concatenate([owners, some[allowed[some]]])[:count]
            start, size = start + size, 4 * size
        return owners

    def permitted(self, allowed: np.ndarray | None) -> np.ndarray | None:
        """Return which vectors belong to an allowed photo, bool `[vectors]`.

        None if most photos are allowed: then it is quicker to leave out the others when they are
        found.
        """
        if allowed is None or np.count_nonzero(allowed) >= MOST * len(allowed):
            return None
        chunks = np.repeat(allowed, np.diff(self.chunks.array()))
        repeats = self._repeats.array()
        vectors = np.delete(chunks, repeats)
        vectors[self._repeated.array()[chunks[repeats]]] = True
        return vectors

    def saver(self) -> Callable[[Path], None]:
        """Return a function that writes this as it is now into a folder, without the vectors."""
        chunks, vectors, ids = self.chunks.array(), self.vectors.array(), list(self.ids)
        repeats, repeated = self._repeats.array(), self._repeated.array()

        def save(folder: Path) -> None:
            np.savez(
                folder / "owners.npz",
                chunks=chunks,
                vectors=vectors,
                repeats=repeats,
                repeated=repeated,
            )
            (folder / "owners.json").write_text(json.dumps(ids))

        return save

    def load(self, folder: Path, vectors: Iterable[np.ndarray] | None) -> None:
        """Load what was saved.

        Args:
            vectors: all distinct vectors, some at a time; None if no photo is added any more.
        """
        with np.load(folder / "owners.npz") as arrays:
            self.chunks, self.vectors = Starts(arrays["chunks"]), Starts(arrays["vectors"])
            self._repeats, self._repeated = Grown(arrays["repeats"]), Grown(arrays["repeated"])
        self.ids = json.loads((folder / "owners.json").read_text())
        if not len(self.ids) == self.chunks.photos == self.vectors.photos:
            raise ValueError("its files don't belong together")
        if vectors is None:
            self.seal()
        elif self._known is not None:
            self._known.load(vectors)
        self._load_shared()

    def _load_shared(self) -> None:
        photos = self.chunks.owners(self._repeats.array())
        pairs = np.unique(self._repeated.array().astype(np.int64) << 32 | photos)
        numbers, photos = pairs >> 32, pairs & 0xFFFF_FFFF
        firsts = self.vectors.owners(numbers)
        others = firsts != photos
        numbers, firsts, photos = numbers[others], firsts[others], photos[others]
        for same in np.split(np.arange(len(numbers)), np.flatnonzero(np.diff(numbers)) + 1):
            if len(same):
                owners = [int(firsts[same[0]]), *photos[same].tolist()]
                owners.sort(key=self.ids.__getitem__)
                self._shared[int(numbers[same[0]])] = array("i", owners)
