"""Batches where no replica is around them."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from ray.serve import batching


@contextmanager
def batches_without_replicas() -> Iterator[None]:
    """Let `serve.batch` work where no replica is around it.

    It keeps one queue for each method of a class, bound to the first event loop that calls it:
    right for replicas, which are processes. Here the replicas of a class are event loops.
    """
    queues = weakref.WeakKeyDictionary()

    def queue(self: Any) -> Any:
        here = queues.setdefault(asyncio.get_running_loop(), {})
        if self not in here:
            here[self] = batching._BatchQueue(
                self.max_batch_size,
                self.batch_wait_timeout_s,
                self.max_concurrent_batches,
                self.handle_batch_func,
                self.batch_size_fn,
            )
        return here[self]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching._LazyBatchQueueWrapper, "queue", property(queue))
        # It asks the replica around it how many requests that takes.
        name = "_warn_if_max_batch_size_exceeds_max_ongoing_requests"
        patch.setattr(batching._BatchQueue, name, lambda self: None)
        yield
    # Their batches, and the index that follows the store.
    for loop in list(queues):
        if loop.is_running():
            loop.call_soon_threadsafe(cancel_all_of, loop)


def cancel_all_of(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what an event loop does; called in it."""
    for task in asyncio.all_tasks(loop):
        task.cancel()
