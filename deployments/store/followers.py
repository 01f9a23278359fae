"""The followers of the store's log, and which deletions in it none of them needs any more."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from deployments.records import Position

# A follower that hasn't called for this long is gone. If it comes back, it may have to begin anew.
FORGET_S = 600
CUT_EVERY_S = 60


@dataclass(frozen=True, slots=True)
class _Follower:
    """What is known about a follower.

    Attributes:
        needs_after: it needs the deletions after this change.
        heard_at: time of its last call on the clock, seconds.
    """

    needs_after: int
    heard_at: float


class Followers:
    """The followers of one store's log. Not thread-safe.

    Args:
        clock: returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._followers: dict[str, _Follower] = {}
        # By then, all who followed the log before the store was started have called again.
        self._next_cut = clock() + FORGET_S

    def heard(self, name: str, known: Position, kept: Position | None) -> None:
        """Remember where a follower is.

        Args:
            known: where it goes on, in the history of this store.
            kept: where it would go on after a restart. With None, or a position in another
                history, it would begin with nothing and need no deletions.
        """
        positions = [known]
        if kept is not None and kept.history == known.history:
            positions.append(kept)
        needs_after = min(max(position.sequence, position.base) for position in positions)
        self._followers[name] = _Follower(needs_after, self._clock())

    def cut_now(self) -> int | None:
        """Return the change up to which no follower needs deletions, if it is time for a cut.

        The first time is `FORGET_S` after the start, then every `CUT_EVERY_S`. Otherwise, or
        without followers, return None.
        """
        now = self._clock()
        if now < self._next_cut:
            return None
        self._next_cut = now + CUT_EVERY_S
        self._followers = {
            name: follower
            for name, follower in self._followers.items()
            if now - follower.heard_at < FORGET_S
        }
        return min((follower.needs_after for follower in self._followers.values()), default=None)
