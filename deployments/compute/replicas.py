"""Replicas that run a network: their threads and their batches."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from deployments.compute.batching import batched
from deployments.compute.device import place
from deployments.outcomes import Outcome
from deployments.settings import NetworkSection

T = TypeVar("T")
Item = TypeVar("Item")
Result = TypeVar("Result")

CPU = torch.device("cpu")

# Several replicas share the cores. OpenMP threads that spin while they wait take the cores from
# the other replicas, which halved the indexing rate. The variable must be in the environment
# before torch is loaded.
COMPUTING_REPLICA: dict[str, Any] = {
    "num_cpus": 0,
    "runtime_env": {"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}},
}
# For a replica that also reads gigabytes at random. With this variable, glibc (2.35 or newer) asks
# the kernel for pages of 2 MiB. It must be in the environment when the process starts.
HUGE_PAGES_REPLICA: dict[str, Any] = {
    "num_cpus": 0,
    "runtime_env": {
        "env_vars": {"OMP_WAIT_POLICY": "PASSIVE", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    },
}

# Of what works on photos. Beside others with 0, it gets a thirtieth of their time.
NICENESS = 15
# On a GPU: while it computes for one pass, files are decoded for another, and results are fetched.
GPU_PASSES = 3


def count_cores() -> int:
    """Return the number of CPU cores of this machine."""
    return os.cpu_count() or 1


def compute_threads(
    threads: int | None,
    passes: int = 1,
    patient: bool = False,
    device: torch.device = CPU,
) -> ThreadPoolExecutor:
    """Return the threads that a replica runs its network in.

    So the event loop stays free for other requests and for health checks. Torch keeps a team of
    threads for each thread that calls it, so there is one calling thread for each pass.

    Args:
        threads: CPU threads of all teams together; None for all cores. By itself, Ray would set it
            to the replica's `num_cpus`, which is a share for scheduling and not a limit.
        passes: how many passes of the network run at the same time.
        patient: let all other work on this machine go first, see `let_others_first`.
        device: where the network computes. On a GPU each thread has a stream of its own, so that
            one pass doesn't wait for what another one has asked for.
    """
    team = max(1, (threads or count_cores()) // passes)

    def begin() -> None:
        torch.set_num_threads(team)
        if patient:
            let_others_first()
        if device.type == "cuda":
            torch.cuda.set_stream(torch.cuda.Stream(device))

    return ThreadPoolExecutor(passes, initializer=begin)


def let_others_first() -> None:
    """Make this thread nice, and those that it starts.

    Networks that work on photos keep all cores busy, and a search would wait for each of its steps
    behind them. By default Ray makes all of its workers as nice as this, so that it changes nothing
    there; scripts/serve.py leaves them as they are. OpenVINO computes in threads of its own, which
    it starts while it loads a network, so it is not nice.
    """
    this = threading.get_native_id() if sys.platform == "linux" else 0  # elsewhere: all of them
    niceness = max(NICENESS, os.getpriority(os.PRIO_PROCESS, this))
    os.setpriority(os.PRIO_PROCESS, this, niceness)


def passes_at_once(threads: int | None, *sections: NetworkSection) -> int:
    """Return how many passes at the same time use a replica's threads best.

    The threads of one team wait for each other after each layer, so passes of one thread each do
    more work (see docs/design.md).

    Args:
        sections: of the networks that run one after the other in a pass.
    """
    if any(place(section).device.type == "cuda" for section in sections):
        return GPU_PASSES
    return threads or count_cores()


def load_with_threads(threads: int | None, load: Callable[[], T]) -> T:
    """Load a network in a thread whose torch has the CPU threads of the replica.

    OpenVINO uses as many threads as torch has in the thread that loads the network.
    """
    with compute_threads(threads) as loading:
        return loading.submit(load).result()


class Passes:
    """Runs the passes of a replica's network, each with a batch.

    Args:
        settings: the network's settings, which limit the size and the waiting time of a batch.
        threads: CPU threads of all passes together; None for all cores.
        at_once: how many passes run at the same time.
        patient: whether they let all other work on this machine go first.
        device: where the network computes.
    """

    def __init__(
        self,
        settings: NetworkSection,
        threads: int | None,
        at_once: int,
        patient: bool,
        device: torch.device = CPU,
    ) -> None:
        self._settings = settings
        self._at_once = at_once
        self._threads = compute_threads(threads, at_once, patient, device)

    def run(self, work: Callable[..., T], *args: Any) -> T:
        """Run a single pass, and wait for it."""
        return self._threads.submit(work, *args).result()

    def batched(
        self, work: Callable[[list[Item]], Sequence[Outcome[Result]]], **options: Any
    ) -> Callable[[Item], Awaitable[Result]]:
        """Return a function that takes one item and lets `work` process it in a batch.

        Args:
            work: turns items into as many results, or errors; runs in the threads of the passes.
            options: other options of `batched`.
        """

        async def run_batch(items: list[Item]) -> Sequence[Outcome[Result]]:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, items)

        return batched(
            run_batch,
            at_once=self._at_once,
            wait_s=self._settings.batch_wait_ms / 1000,
            max_batch_size=self._settings.batch_size,
            **options,
        )
