"""What replicas measure of their work, for Prometheus. `ingress/metrics.py` has the requests.

Ray tells the deployments and their replicas apart by tags of its own, and exports all of it with
`ray_` before each name: see docs/operations.md.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import TypeVar

import ray
from ray.serve.metrics import Counter, Gauge

from deployments.decoding.decoder import Decoder

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Ray exports a gauge's value if it was set in the last ten seconds or so. Otherwise it forgets it.
REFRESH_S = 5


class Gauges:
    """Gauges of a replica that are set again and again, whether something happens or not.

    Args:
        descriptions: of the gauges, by their names.
        measure: returns their values, by the same names; called in a thread.
        tags: of all of them.
    """

    def __init__(
        self,
        descriptions: Mapping[str, str],
        measure: Callable[[], Mapping[str, float]],
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self._tags = dict(tags or {})
        self._gauges = {
            name: Gauge(
                name,
                description=description,
                tag_keys=tuple(self._tags),  # type: ignore[arg-type]  # Ray's is for one
            )
            for name, description in descriptions.items()
        }
        self._measure = measure
        if ray.is_initialized():  # else this is no replica
            threading.Thread(target=self._keep_fresh, name="gauges", daemon=True).start()

    def refresh(self) -> None:
        """Measure and set all of them."""
        values = self._measure()
        for name, gauge in self._gauges.items():
            gauge.set(values[name], tags=self._tags)

    def _keep_fresh(self) -> None:
        while True:
            try:
                self.refresh()
            except Exception:  # what can't be measured is known otherwise, and nobody waits for it
                logger.warning("can't measure %s", ", ".join(self._gauges), exc_info=True)
            time.sleep(REFRESH_S)


class Stage:
    """Measures a kind of work that a replica does: how long items wait for it, and it takes.

    These are counters, because each value of a histogram keeps Ray's agent busy for 0.1 ms, and Ray
    knows its sum only by its buckets.

    Args:
        name: what the work is called; the value of the tag `stage`.
    """

    def __init__(self, name: str) -> None:
        self._tags = {"stage": name}
        self._seconds = self._counter("inset_stage_seconds_total", "Seconds of work.")
        self._batches = self._counter(
            "inset_stage_batches_total", "Batches; single items where there are no batches."
        )
        self._items = self._counter(
            "inset_stage_items_total",
            "Items that were worked at: photos, queries, searches, changes or reads.",
        )
        self._waits = self._counter(
            "inset_wait_seconds_total", "Seconds that items waited until they were worked at."
        )
        self._waiting: dict[object, tuple[float, int]] = {}  # since when how many, oldest first
        Gauges(
            {
                "inset_waiting_items": "Items that wait to be worked at.",
                "inset_oldest_wait_seconds": "How long the oldest of them has been waiting.",
            },
            self._measure,
            self._tags,
        )

    @contextmanager
    def waiting(self, items: int = 1) -> Iterator[Callable[[], None]]:
        """Count so many items as waiting until what this yields is called, or the block ends."""
        who, since = object(), time.monotonic()
        self._waiting[who] = since, items

        def begun() -> None:
            if self._waiting.pop(who, None) is not None:
                self._waits.inc(items * _since(since), tags=self._tags)

        try:
            yield begun
        finally:
            self._waiting.pop(who, None)

    @contextmanager
    def working(self, items: int = 1) -> Iterator[None]:
        """Measure the block as work at so many items together."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self._seconds.inc(_since(begun), tags=self._tags)
            self._batches.inc(tags=self._tags)
            self._items.inc(items, tags=self._tags)

    async def run(self, threads: Executor, work: Callable[[], T]) -> T:
        """Work at an item in a thread, for which it may have to wait."""
        with self.waiting() as begun:

            def measured() -> T:
                begun()
                with self.working():
                    return work()

            return await asyncio.get_running_loop().run_in_executor(threads, measured)

    def _counter(self, name: str, description: str) -> Counter:
        tag_keys = tuple(self._tags)
        return Counter(name, description=description, tag_keys=tag_keys)  # type: ignore[arg-type]

    def _measure(self) -> dict[str, float]:
        waiting = list(self._waiting.values())
        return {
            "inset_waiting_items": sum(items for _, items in waiting),
            "inset_oldest_wait_seconds": time.monotonic() - waiting[0][0] if waiting else 0,
        }


def _since(time_s: float) -> float:
    # A counter takes no zero.
    return max(time.monotonic() - time_s, 1e-9)


def measure_decoder(decoder: Decoder) -> None:
    """Tell how many processes a decoder has, and how many it has lost."""
    lost = Counter(
        "inset_decoder_restarts_total",
        description="Processes of the decoder that ended and are replaced: they crashed, were "
        "killed, or took too long.",
    )
    known = 0

    def measure() -> dict[str, float]:
        nonlocal known
        now = decoder.lost
        if now > known:
            lost.inc(now - known)
            known = now
        return {"inset_decoder_processes": decoder.alive}

    Gauges({"inset_decoder_processes": "Processes that decode, or wait for an image."}, measure)
