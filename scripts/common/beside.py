"""Work that goes on beside other work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeated(work: Callable[[], object], period_s: float) -> Iterator[None]:
    """Do something every `period_s` seconds, in a thread, while the block runs."""
    stopped = threading.Event()

    def go_on() -> None:
        while not stopped.wait(period_s):
            work()

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
