"""Whether all replicas of a service live, and how much memory its processes take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil
from benchmarks.memory import measure, measure_roles
from common.beside import repeated
from common.own_service import OwnService, command

# Processes that must live on. Those that decode may be replaced: that is what they are for.
ACTORS = ("ray::ServeReplica:", "ray::ProxyActor", "ray::ServeController")
DECODES = "deployments.decoding.worker"
MEMORY_S = 5  # between two measurements of memory; one takes 0.15 s of a core
SETTLING_S = 60  # in which memory may come back

Actors = dict[tuple[int, float], str]


class Watch:
    """Looks every second whether a replica was lost, and every few seconds at memory.

    Args:
        service: whose processes they are.
        on_loss: called with a sentence for each replica that was lost.

    Attributes:
        peak: most memory, bytes.
        lost: replicas that were lost.
    """

    def __init__(self, service: OwnService, on_loss: Callable[[str], object]) -> None:
        self.peak = 0
        self.lost = 0
        self._service = service
        self._on_loss = on_loss
        self._decoders: set[tuple[int, float]] = set()
        self._actors = self._find_actors()
        self._measured_at = 0.0

    @property
    def actors(self) -> int:
        """How many processes must live on."""
        return len(self._actors)

    @property
    def decoders(self) -> int:
        """How many processes that decode were seen."""
        return len(self._decoders)

    def memory(self) -> int:
        """Return the bytes that all processes take, without pages of files.

        The kernel can take those back; the store's database is one of these files.
        """
        return sum(measure(process).own for process in self._service.processes())

    def memory_by_role(self) -> dict[str, int]:
        """Return the same, by what the processes are."""
        roles = measure_roles(self._service.processes())
        return {role: memory.own for role, memory in roles.items()}

    def wait_for_memory(self, most: int) -> int:
        """Wait until processes take no more than so many bytes; return what they take at last."""
        deadline = time.monotonic() + SETTLING_S
        while (now := self.memory()) > most and time.monotonic() < deadline:
            time.sleep(2)
        return now

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look while the block runs."""
        with repeated(self._look_around, 1):
            yield

    def look(self) -> None:
        """Report the replicas that have been lost since the last look."""
        now = self._find_actors()
        for gone in self._actors.keys() - now.keys():
            self.lost += 1
            self._on_loss(f"{self._actors[gone]} was lost (process {gone[0]})")
        self._actors = now

    def _look_around(self) -> None:
        self.look()
        if time.monotonic() > self._measured_at + MEMORY_S:
            self._measured_at = time.monotonic()
            self.peak = max(self.peak, self.memory())

    def _find_actors(self) -> Actors:
        found: Actors = {}
        for process in self._service.processes():
            words = command(process)
            with suppress(psutil.Error):
                key = process.pid, process.create_time()
                if words.startswith(ACTORS):
                    found[key] = words.partition(".")[0].removeprefix("ray::").strip()
                elif DECODES in words:
                    self._decoders.add(key)
        return found
