"""Batching: what arrives while a deployment is busy forms its next batch."""

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
    """Return a function that takes one item and lets `work` process it in a batch.

    This is `serve.batch` behind a gate. Serve (as of 2.60) closes a batch when its waiting time is
    over, even if the batch must then wait for its turn. Without a waiting time, many items would
    become a queue of batches of one. So items wait at a gate while no batch can begin. As soon as a
    batch ends, all of them go on together into the next one.

    Args:
        work: turns items into as many results.
        at_once: how many batches are processed at the same time.
        wait_s: how long a batch waits for more items, seconds.
        options: other options of `serve.batch`.
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
