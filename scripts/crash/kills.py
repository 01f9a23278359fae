"""What a crash test kills and when, and how long the service takes to recover."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from common.own_service import OwnService, kill
from common.serve_run import ServiceFailed

from crash.checks import RECOVERY_S, Inspector
from crash.clients import CLIENTS, Clients

if TYPE_CHECKING:
    import psutil

ALL = "the whole of Ray"
# What Ray calls the processes to kill.
VICTIMS = {
    "Store": "ServeReplica:inset:Store",
    "ChunkIndex": "ServeReplica:inset:ChunkIndex",
    "Segmenter": "ServeReplica:inset:Segmenter",
    "IndexEncoder": "ServeReplica:inset:IndexEncoder",
    "QueryEncoder": "ServeReplica:inset:QueryEncoder",
    "Ingress": "ServeReplica:inset:Ingress",
    "HTTP proxy": "ProxyActor",
    "Serve controller": "ServeController",
}
# Each round kills all of these in random order: the owner of the data more often than the others.
ROUND = [*VICTIMS, "Store", "Store", "ChunkIndex"]
KILLS_PER_RESTART = 20


def plan_kills(kills: int, rng: random.Random) -> list[str]:
    """Return what to kill, in order: kinds of `VICTIMS`, and `ALL` once per `KILLS_PER_RESTART`."""
    plan: list[str] = []
    while len(plan) < kills:
        plan += rng.sample(ROUND, len(ROUND))
    del plan[kills:]
    for start in range(0, kills, KILLS_PER_RESTART):
        plan[rng.randrange(start, min(start + KILLS_PER_RESTART, kills))] = ALL
    return plan


@dataclass(slots=True)
class Killer:
    """Kills what a plan has, at random moments, and measures how long the service recovers.

    Attributes:
        recovery_s: by kind, the seconds from each kill until the service was ready again; several
            kills in quick succession end at the same moment.
        violations: what was wrong after each restart.
    """

    service: OwnService
    clients: Clients
    rng: random.Random
    recovery_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    violations: list[str] = field(default_factory=list)
    _unanswered: list[tuple[str, float]] = field(default_factory=list)

    def kill(self, kind: str) -> None:
        """Kill one process of a kind, or all, and in most cases wait for recovery.

        Raises:
            ServiceFailed: the service doesn't recover.
        """
        time.sleep(self.rng.uniform(0, 2))
        if kind == ALL:
            self._kill_all()
        else:
            kill(self.rng.choice(self._wait_for_victims(kind)))
            self._unanswered.append((kind, time.monotonic()))
        if kind == ALL or self.rng.random() < 0.7:
            self.wait_for_recovery()

    def wait_for_recovery(self) -> None:
        """Return when the service is ready and has acknowledged more requests.

        Raises:
            ServiceFailed: that takes too long.
        """
        self._wait_until_ready()
        deadline = time.monotonic() + RECOVERY_S
        before = self.clients.journal.acknowledged
        while self.clients.journal.acknowledged < before + CLIENTS:
            if time.monotonic() > deadline:
                raise ServiceFailed(
                    f"It was ready, but did not acknowledge {CLIENTS} requests in {RECOVERY_S} s."
                )
            time.sleep(0.05)

    def _wait_until_ready(self) -> None:
        self.service.wait_until_ready()
        now = time.monotonic()
        for kind, killed_at in self._unanswered:
            self.recovery_s[kind].append(now - killed_at)
        self._unanswered.clear()

    def _wait_for_victims(self, kind: str) -> list[psutil.Process]:
        """Return the processes of a kind, which are missing for a while after a kill."""
        deadline = time.monotonic() + RECOVERY_S
        while not (victims := self.service.workers(VICTIMS[kind])):
            if time.monotonic() > deadline:
                raise ServiceFailed(f"There was no process of the {kind} for {RECOVERY_S} s.")
            time.sleep(0.1)
        return victims

    def _kill_all(self) -> None:
        self.service.kill_everything()
        self._unanswered = [(ALL, time.monotonic())]  # earlier kills end here
        with self.clients.resting():
            self.service.launch()
            self._wait_until_ready()
            inspector = Inspector(self.service.url, self.clients.journal)
            self.violations += inspector.check_listing()
