"""How fast photos are indexed or searches answered, and how many can be done within a time."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

from deployments.errors import Unavailable

# Photos that the pace is measured by. Fewer say too little: the first after a start are slow.
FEWEST, MOST = 8, 64


class Progress:
    """The pace at which photos are indexed, seconds per photo, and how many are unfinished.

    The time in which photos are worked at is shared out: at each moment, those in work get equal
    shares of it. So together the shares of photos are the wall time in which they were done,
    however many were worked at at once. The pace is the median share of the latest photos that
    were really indexed, so that a few huge ones don't make all others look slow. The share of a
    photo that existed already, or that was refused, is dropped with it: it is neither a quick
    photo nor time that others took. But photos that were given up on the way did take time: by the
    shares of these the pace is longer, in proportion.

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
        # Of the latest photos, each with those of the photos that were given up before it.
        self._shares: deque[tuple[float, float]] = deque(maxlen=MOST)
        self._given_up = 0.0  # the shares of photos since the latest

    @contextmanager
    def working(self) -> Iterator[Callable[[], None]]:
        """Count a photo as worked at; call what this yields if it was really indexed."""
        self._update()
        work, before = object(), self._share
        self._begun[work] = self._updated

        def indexed() -> None:
            self._update()
            self._shares.append((self._share - before, self._given_up))
            self._given_up = 0.0

        try:
            yield indexed
        except (asyncio.CancelledError, Unavailable):
            self._update()
            self._given_up += self._share - before
            raise
        finally:
            self._update()
            del self._begun[work]

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
        if len(self._shares) < FEWEST:
            return None
        shares = [share for share, _ in self._shares]
        given_up = sum(seconds for _, seconds in self._shares)
        return median(shares) * (1 + given_up / max(sum(shares), 1e-9))

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
        self._updated = now
