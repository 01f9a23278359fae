"""Finding the vector that equals another one."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

TAG = np.uint64(0xFFFF_FFFF_0000_0000)
# Hashes wait to be sorted in until there are more than these, and more than this share of all.
RECENT = 65_536
RECENT_SHARE = 1 / 16


class Known:
    """Numbers distinct vectors in the order of arrival, and knows them again by their bytes.

    A settled vector takes 8 bytes: half a hash, and its number. A recent one takes about 100 bytes
    in a dict, but at most a sixteenth are recent. So five million take about 70 MiB.

    Args:
        dimension: length of a vector.
        kept: returns the vectors with these numbers, float16 `[n, d]`.
    """

    def __init__(self, dimension: int, kept: Callable[[np.ndarray], np.ndarray]) -> None:
        self.count = 0
        self._kept = kept
        # Multilinear hashing: two vectors rarely have the same upper half of the sum.
        self._factors = np.random.default_rng(18).integers(2**64, size=dimension, dtype=np.uint64)
        self._recent: dict[int, int] = {}  # from hashes to numbers
        self._settled = np.zeros(0, np.uint64)  # half hashes and numbers, sorted

    def number(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the number of each vector, float16 `[n, d]`, and the places of those that are new.

        New vectors take the next numbers; `kept` must know them before the next call.
        """
        hashes = self._hash(vectors)
        numbers = self._find(vectors, hashes)
        own: dict[int, int] = {}  # places of vectors that are new
        new = []
        for place, (hash, number) in enumerate(zip(hashes.tolist(), numbers.tolist(), strict=True)):
            if number >= 0:
                continue
            first = own.setdefault(hash, place)
            if first != place and vectors[first].tobytes() == vectors[place].tobytes():
                numbers[place] = numbers[first]
                continue
            numbers[place] = self._recent[hash] = self.count
            self.count += 1
            new.append(place)
        if len(self._recent) > max(RECENT, RECENT_SHARE * len(self._settled)):
            self._settle()
        return numbers, np.array(new, np.int64)

    def load(self, parts: Iterable[np.ndarray]) -> None:
        """Take over distinct vectors in the order of their numbers, some at a time."""
        keys = [self._settled]
        for vectors in parts:
            numbers = np.arange(self.count, self.count + len(vectors), dtype=np.uint64)
            keys.append(self._hash(vectors) & TAG | numbers)
            self.count += len(vectors)
        self._settled = np.concatenate(keys)
        self._settled.sort()

    def _hash(self, vectors: np.ndarray) -> np.ndarray:
        return vectors.view(np.uint16).astype(np.uint64) @ self._factors

    def _find(self, vectors: np.ndarray, hashes: np.ndarray) -> np.ndarray:
        """Return the number of the equal vector that is kept; -1 if there is none."""
        tags = hashes & TAG
        starts, ends = np.searchsorted(self._settled, [tags, tags | ~TAG])
        pairs = [  # places, and numbers of vectors that may be equal
            (place, int(key & ~TAG))
            for place in np.flatnonzero(starts < ends).tolist()
            for key in self._settled[starts[place] : ends[place]]
        ]
        for place, hash in enumerate(hashes.tolist()):
            if (number := self._recent.get(hash)) is not None:
                pairs.append((place, number))
        found = np.full(len(vectors), -1, np.int64)
        if pairs:
            places, numbers = np.array(pairs).T
            same = self._kept(numbers).view(np.uint16) == vectors[places].view(np.uint16)
            equal = same.all(axis=1)
            found[places[equal]] = numbers[equal]
        return found

    def _settle(self) -> None:
        count = len(self._recent)
        keys = np.fromiter(self._recent.keys(), np.uint64, count) & TAG
        keys |= np.fromiter(self._recent.values(), np.uint64, count)
        keys.sort()
        self._settled = np.concatenate([self._settled, keys])
        self._settled.sort(kind="stable")  # merges two sorted halves
        self._recent.clear()
