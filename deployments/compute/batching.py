"""Batching: what arrives while a deployment is busy forms its next batch."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

from ray import serve

from deployments.errors import InsetError, Unavailable, first_line
from deployments.metrics import Stage
from deployments.outcomes import Outcome

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")
# An item, and what to call when its batch begins.
Waiting: TypeAlias = tuple[Item, Callable[[], None]]

# For how many batches the smaller size holds after one for which the memory was not enough.
CAREFUL_BATCHES = 100
# By these words torch (CUDA, its libraries and the CPU) and OpenVINO say it, in a RuntimeError.
NO_MEMORY = (
    "out of memory",
    "alloc_failed",
    "not enough memory",
    "can't allocate memory",
    "bad_alloc",
)


def batched(
    work: Callable[[list[Item]], Awaitable[Sequence[Outcome[Result]]]],
    *,
    stage: str,
    at_once: int = 1,
    wait_s: float = 0,
    batch_size_fn: Callable[[list[Item]], int] = len,
    count_fn: Callable[[list[Item]], int] | None = None,
    **options: Any,
) -> Callable[[Item], Awaitable[Result]]:
    """Return a function that takes one item and lets `work` process it in a batch.

    This is `serve.batch` behind a gate. Serve (as of 2.60) closes a batch when its waiting time is
    over, even if the batch must then wait for its turn. Without a waiting time, many items would
    become a queue of batches of one. So items wait at a gate while no batch can begin. As soon as a
    batch ends, all of them go on together into the next one.

    An error belongs to an item: see `Careful`.

    Args:
        work: turns items into as many results. An exception in place of a result is raised for
            that item alone.
        stage: what the work is called in the metrics, see `Stage`.
        at_once: how many batches are processed at the same time.
        wait_s: how long a batch waits for more items, seconds.
        batch_size_fn: returns the size of a batch of these items.
        count_fn: returns how many the metrics count in such a batch; its size if left out.
        options: other options of `serve.batch`.
    """
    gate = asyncio.Event()
    gate.set()
    running = 0
    careful = Careful(work, batch_size_fn)
    measured = Stage(stage)
    count = count_fn or batch_size_fn

    def size(waiting: list[Waiting[Item]]) -> int:
        return batch_size_fn([item for item, _ in waiting])

    async def counted(waiting: list[Waiting[Item]]) -> list[Outcome[Result]]:
        nonlocal running
        running += 1
        if running >= at_once:
            gate.clear()
        for _, begun in waiting:
            begun()
        try:
            items = [item for item, _ in waiting]
            with measured.working(count(items)):
                return await careful.run(items)
        finally:
            running -= 1
            gate.set()

    decorate = serve.batch(
        batch_wait_timeout_s=wait_s,
        max_concurrent_batches=at_once,
        batch_size_fn=None if batch_size_fn is len else size,
        **options,
    )
    batch = decorate(counted)

    async def one(item: Item) -> Result:
        with measured.waiting(count([item])) as begun:
            await gate.wait()
            outcome = await batch((item, begun))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return one


class Careful(Generic[Item, Result]):
    """Processes batches so that what is wrong with an item fails that item alone.

    A batch that fails is tried again in halves, down to single items. If the memory was not enough
    for it, the next batches are smaller for a while; an item that lacks memory by itself is
    `Unavailable`.

    Args:
        work, size: the `work` and the `batch_size_fn` of `batched`.
    """

    def __init__(
        self,
        work: Callable[[list[Item]], Awaitable[Sequence[Outcome[Result]]]],
        size: Callable[[list[Item]], int],
    ) -> None:
        self._work = work
        self._size = size
        self._most = math.inf
        self._batches_left = 0

    async def run(self, items: list[Item]) -> list[Outcome[Result]]:
        """Return what becomes of each item of a batch, in order."""
        if self._batches_left:
            self._batches_left -= 1
        else:
            self._most = math.inf
        outcomes: list[Outcome[Result]] = []
        for portion in self._portions(items):
            outcomes += await self._try(portion)
        return outcomes

    def _portions(self, items: list[Item]) -> list[list[Item]]:
        """Divide a batch into some that are small enough now."""
        if self._size(items) <= self._most:
            return [items]
        portions: list[list[Item]] = [items[:1]]
        for item in items[1:]:
            if self._size([*portions[-1], item]) <= self._most:
                portions[-1].append(item)
            else:
                portions.append([item])
        return portions

    async def _try(self, items: list[Item], again: bool = False) -> list[Outcome[Result]]:
        try:
            outcomes = list(await self._work(items))
        except Exception as error:
            self._notice(error, items, again)
            if len(items) == 1:
                return [_for_its_sender(error)]
        else:
            errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
            lacking = next(filter(_lacks_memory, errors), None)
            if lacking is not None:
                self._notice(lacking, items, again)
            return [
                _for_its_sender(outcome) if isinstance(outcome, Exception) else outcome
                for outcome in outcomes
            ]
        # Here, because an exception keeps its stack alive, and with it what filled the memory.
        half = len(items) // 2
        return await self._try(items[:half], True) + await self._try(items[half:], True)

    def _notice(self, error: Exception, items: list[Item], again: bool) -> None:
        """Make the next batches smaller if memory is short; log what happened, once."""
        reason = f"{type(error).__name__}: {first_line(error)}"
        if _lacks_memory(error):
            known = again and self._most < math.inf
            self._most = min(self._most, max(1, self._size(items) // 2))
            self._batches_left = CAREFUL_BATCHES
            if not known:
                logger.warning(
                    "A batch of %d ran out of memory (%s). The next %d batches are smaller.",
                    len(items),
                    reason,
                    CAREFUL_BATCHES,
                )
        elif len(items) > 1 and not again and not isinstance(error, InsetError):
            logger.warning(
                "A batch of %d failed (%s). It is tried again in halves, so that only what is "
                "wrong fails.",
                len(items),
                reason,
            )


def _lacks_memory(error: Exception) -> bool:
    """Tell whether an error says that there is not enough memory."""
    if isinstance(error, RuntimeError):
        return any(words in str(error).lower() for words in NO_MEMORY)
    return isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno == errno.ENOMEM
    )


def _for_its_sender(error: Exception) -> Exception:
    if not _lacks_memory(error):
        return error
    return Unavailable("There is not enough memory for this request now. Repeat it later.")
