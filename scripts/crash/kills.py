"""What a crash test kills, when, and how long the service takes to recover."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from common.own_service import Service, ServiceFailed, kill

from crash.checks import RECOVERY_S, Inspector
from crash.clients import CLIENTS, Clients

if TYPE_CHECKING:
    import psutil

ALL = "the whole of Ray"
# What Ray calls the processes to kill. The owner of the data comes more often than the others.
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
ROUND = [*VICTIMS, "Store", "Store", "ChunkIndex"]
KILLS_PER_RESTART = 20


def plan_kills(kills: int, rng: random.Random) -> list[str]:
    """What to kill, in turn: each kind as often as the others of its weight, in random order."""
    plan: list[str] = []
    while len(plan) < kills:
        plan += rng.sample(ROUND, len(ROUND))
    del plan[kills:]
    for start in range(0, kills, KILLS_PER_RESTART):
        plan[rng.randrange(start, min(start + KILLS_PER_RESTART, kills))] = ALL
    return plan


@dataclass(slots=True)
class Killer:
    """Kills what a plan says, at random moments, and takes the time until the service answers.

    Attributes:
        recovery_s: for each kind the seconds from each of its kills until the service was ready
            again; of kills in quick succession, each counts until the end.
        violations: what was wrong when everything had been killed.
    """

    service: Service
    clients: Clients
    rng: random.Random
    recovery_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    violations: list[str] = field(default_factory=list)
    _unanswered: list[tuple[str, float]] = field(default_factory=list)

    def kill(self, kind: str) -> None:
        """Kill one, and mostly wait until the service has recovered.

        Raises:
            ServiceFailed: it doesn't.
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
        """Return when the service is ready and has acknowledged some more requests.

        Raises:
            ServiceFailed: it isn't.
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
        """The processes of a kind; there are none for a while when one was killed just before."""
        deadline = time.monotonic() + RECOVERY_S
        while not (victims := self.service.workers(VICTIMS[kind])):
            if time.monotonic() > deadline:
                raise ServiceFailed(f"There was no process of the {kind} for {RECOVERY_S} s.")
            time.sleep(0.1)
        return victims

    def _kill_all(self) -> None:
        self.service.kill_everything()
        self._unanswered = [(ALL, time.monotonic())]  # the others have nothing to recover any more
        with self.clients.resting():
            self.service.launch()
            self._wait_until_ready()
            inspector = Inspector(self.service.url, self.clients.journal)
            self.violations += inspector.check_listing()
