"""How fast photos are indexed or searches answered, and how many can be done within a time."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deployments.errors import Unavailable

# Photos that the pace is measured by. Fewer say too little; and they come in bursts, of a batch or
# of a group in the store, which must be small against all of them.
FEWEST, MOST = 8, 256


class Progress:
    """The pace at which photos are indexed, seconds per photo, and how many are unfinished.

    The pace is the wall time in which the latest photos were worked at, by how many of them were
    really indexed. A photo that existed already, or that was refused, is neither a quick photo nor
    time that others took. So at each moment those in work get equal shares of the time, and the
    share of such a photo is taken out again. Photos that were given up on the way did take time.

    Photos that come one by one look slower than many at once. So the pace errs on the safe side
    until somebody sends several.

    It is the same for searches: for "photo" read "search", for "indexed" read "answered".

    Args:
        clock: returns the time, seconds.
        what: is done, for the sentence to those who are refused.

    Attributes:
        unfinished: photos that were sent and aren't done; whoever indexes them counts them.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        what: str = "photos are being indexed",
    ) -> None:
        self.what = what
        self.unfinished = 0
        self._clock = clock
        self._begun: dict[object, float] = {}  # of the photos in work, oldest first
        self._updated = clock()
        self._share = 0.0  # of a photo that was in work all the time, seconds
        self._worked = 0.0  # without the shares of photos that count as no time
        # That, whenever one of the latest photos was indexed, and before the first of them.
        self._marks = deque([0.0], maxlen=MOST + 1)

    @contextmanager
    def working(self, count: int = 1) -> Iterator[Callable[..., None]]:
        """Count photos as worked at, together.

        Yields:
            A function. Call it with how many of them were really `indexed` (1), and how many were
            `given_up` on the way (0).
        """
        self._update()
        photos, before, took_time = [object() for _ in range(count)], self._share, 0
        self._begun |= dict.fromkeys(photos, self._updated)

        def done(indexed: int = 1, given_up: int = 0) -> None:
            nonlocal took_time
            self._update()
            self._marks.extend([self._worked] * indexed)
            took_time = indexed + given_up

        try:
            yield done
        except (asyncio.CancelledError, Unavailable):
            took_time = count
            raise
        finally:
            self._update()
            for photo in photos:
                del self._begun[photo]
            self._worked -= (count - took_time) * (self._share - before)

    @property
    def in_work(self) -> int:
        """How many photos are worked at."""
        return len(self._begun)

    @property
    def oldest_s(self) -> float:
        """How long the oldest of them has been worked at, seconds; 0 if there is none."""
        now = self._clock()
        return now - next(iter(self._begun.values()), now)

    @property
    def pace(self) -> float | None:
        """Seconds per photo; None as long as too little was measured."""
        photos = len(self._marks) - 1
        if photos < FEWEST:
            return None
        # What is in work may be taken out later: then it was too much at the first of the marks.
        return max(self._marks[-1] - self._marks[0], 1e-6) / photos

    def wait_for_room(self, within_s: float) -> float:
        """Return in how many seconds one more photo can be begun and be done within so many.

        It is 0 for a photo that comes alone, and as long as nobody knows how long photos take.
        """
        if self.pace is None or not self.in_work:
            return 0
        return max(0, (self.in_work + 1) * self.pace - within_s)

    def seconds_for(self, count: int) -> float | None:
        """Return how long it takes until photos are done that come after the unfinished ones."""
        return None if self.pace is None else (self.unfinished + count) * self.pace

    def photos_within(self, seconds: float) -> int | None:
        """Return how many photos can be done after the unfinished ones; None if nobody knows."""
        return None if self.pace is None else max(0, int(seconds / self.pace) - self.unfinished)

    def _update(self) -> None:
        now = self._clock()
        if self.in_work:
            self._share += (now - self._updated) / self.in_work
            self._worked += now - self._updated
        self._updated = now
