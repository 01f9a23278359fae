"""Batches of what waits: what comes while a box is busy goes into its next batch together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from ray import serve

Item = TypeVar("Item")
Result = TypeVar("Result")


def batched(
    work: Callable[[list[Item]], Awaitable[list[Result]]],
    *,
    at_once: int = 1,
    wait_s: float = 0,
    **options: Any,
) -> Callable[[Item], Awaitable[Result]]:
    """Let a function work at batches; returns what takes one item.

    This is `serve.batch` behind a gate. Serve (as of 2.60) closes a batch when its waiting time is
    over, even if the batch must then wait for others to end: without such a time, a crowd becomes a
    queue of batches of one. So an item waits at the gate as long as no batch could begin; as soon
    as one has ended all of them go on at once, into the next.

    Args:
        work: from items to as many results.
        at_once: how many batches are worked at, at the same time.
        wait_s: how long a batch waits to fill, seconds.
        options: others of `serve.batch`.
    """
    gate = asyncio.Event()
    gate.set()
    running = 0

    async def counted(items: list[Item]) -> list[Result]:
        nonlocal running
        running += 1
        if running >= at_once:
            gate.clear()
        try:
            return await work(items)
        finally:
            running -= 1
            gate.set()

    decorate = serve.batch(batch_wait_timeout_s=wait_s, max_concurrent_batches=at_once, **options)
    batch = decorate(counted)

    async def one(item: Item) -> Result:
        await gate.wait()
        return await batch(item)

    return one
