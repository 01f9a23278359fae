"""Who follows the store's log, and which deletions in it nobody needs any more."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from deployments.records import Position

# Who hasn't been heard of for so long is gone. If it comes back it may have to begin anew.
FORGET_S = 600
CUT_EVERY_S = 60


@dataclass(frozen=True, slots=True)
class _Follower:
    """What is known of a follower.

    Attributes:
        needs_after: it needs the deletions after this change.
        heard_at: on the clock, seconds.
    """

    needs_after: int
    heard_at: float


class Followers:
    """The followers of one store's log. Not safe to use from several threads.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._followers: dict[str, _Follower] = {}
        # By then everybody who followed the log before the store was started has been heard.
        self._next_cut = clock() + FORGET_S

    def heard(self, name: str, known: Position, kept: Position | None) -> None:
        """Remember where a follower is.

        Args:
            known: where it goes on, in the history of this store.
            kept: where it would go on if it were restarted. From another history, or from None, it
                would begin with nothing, and need no word of any deletion.
        """
        positions = [known]
        if kept is not None and kept.history == known.history:
            positions.append(kept)
        needs_after = min(max(position.sequence, position.base) for position in positions)
        self._followers[name] = _Follower(needs_after, self._clock())

    def cut_now(self) -> int | None:
        """The change up to which nobody needs the deletions, if it is time to cut them, else None.

        It is time `FORGET_S` after the start, and then every `CUT_EVERY_S`.
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
