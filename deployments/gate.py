"""What waits while a box is busy goes into the next batch together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """Holds back items of `serve.batch` as long as no batch could begin.

    Serve (as of 2.60) closes a batch when its waiting time is over, even if the batch must then
    wait for others to end: without such a time, a crowd becomes a queue of batches of one. So an
    item waits here first; as soon as a batch has ended all of them go on at once, into one.

    Args:
        batches: how many run at the same time, `max_concurrent_batches`.
    """

    def __init__(self, batches: int = 1) -> None:
        self._free = batches
        self._open = asyncio.Event()
        self._open.set()

    async def wait(self) -> None:
        """Return when a batch could begin: call it before the batched function."""
        await self._open.wait()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Stand for a batch that runs: put it around the body of the batched function."""
        self._free -= 1
        if self._free <= 0:
            self._open.clear()
        try:
            yield
        finally:
            self._free += 1
            if self._free > 0:
                self._open.set()
