"""End a command on SIGTERM and SIGHUP as on Ctrl-C: it cleans up, and says so."""

from __future__ import annotations

import signal
from types import FrameType
from typing import NoReturn


class Ended(KeyboardInterrupt):
    """A signal other than Ctrl-C's ends the command."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def end_on_signals() -> None:
    """From now on, let SIGTERM and SIGHUP raise a KeyboardInterrupt, unless they are ignored."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` ignores SIGHUP
            signal.signal(number, _end)


def exit_status(interrupt: KeyboardInterrupt) -> int:
    """Return the exit status of a command that was interrupted, as shells count it."""
    return 128 + (interrupt.number if isinstance(interrupt, Ended) else signal.SIGINT)


def _end(number: int, _: FrameType | None) -> NoReturn:
    raise Ended(number)
