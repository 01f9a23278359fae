"""What a crash test kills, what it lets fail, and how long the service takes to recover."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from common.own_service import OwnService, kill
from common.serve_run import ServiceFailed
from serving.front import NoHAProxy, find_haproxy

from crash.checks import RECOVERY_S, Inspector
from crash.clients import CLIENTS, Clients
from crash.shim import Shim

if TYPE_CHECKING:
    import psutil

ALL = "the whole of Ray"
# What Ray calls the processes to kill.
VICTIMS = {
    "Store": "ServeReplica:inset:Store",
    "ChunkIndex": "ServeReplica:inset:ChunkIndex",
    "PhotoEncoder": "ServeReplica:inset:PhotoEncoder",
    "QueryEncoder": "ServeReplica:inset:QueryEncoder",
    "Verifier": "ServeReplica:inset:Verifier",
    "Ingress": "ServeReplica:inset:Ingress",
    "HTTP proxy": "ProxyActor",
    "Serve controller": "ServeController",
}
with suppress(NoHAProxy):
    find_haproxy()
    VICTIMS["HAProxy"] = "HAProxyManager"  # which takes it along
# Each round kills all of these in random order: the owner of the data more often than the others.
ROUND = [*VICTIMS, "Store", "Store", "ChunkIndex"]
KILLS_PER_RESTART = 20
# What fails in the Store's replica: kinds of `faults.c`, and one in how many calls begins a fault.
FAULTS = {"full disk": ("full", 1), "failed sync": ("sync", 2), "clock": ("clock", 1000)}
LONGEST_FAULT_S = 8  # after the first call that failed
# In so many faults one of these is killed as well: who writes, or who would replace it.
KILLED_IN_A_FAULT, KILLED_THEN = 0.3, ("Store", "Serve controller")


def plan_kills(kills: int, rng: random.Random) -> list[str]:
    """Return what to kill, in order: kinds of `VICTIMS`, and `ALL` once per `KILLS_PER_RESTART`."""
    plan: list[str] = []
    while len(plan) < kills:
        plan += rng.sample(ROUND, len(ROUND))
    del plan[kills:]
    for start in range(0, kills, KILLS_PER_RESTART):
        plan[rng.randrange(start, min(start + KILLS_PER_RESTART, kills))] = ALL
    return plan


def add_faults(plan: Sequence[str], faults: int, rng: random.Random) -> list[str]:
    """Return a plan with so many faults, each kind of `FAULTS` in its turn, at random places."""
    mixed = list(plan)
    for number in range(faults):
        mixed.insert(rng.randint(0, len(mixed)), list(FAULTS)[number % len(FAULTS)])
    return mixed


@dataclass(slots=True)
class Killer:
    """Kills and lets fail what a plan has, and measures how long the service recovers.

    Attributes:
        shim: what lets the Store's replica fail; None if the plan has no faults.
        recovery_s: by kind, the seconds from each kill until the service was ready again, and
            from the end of each fault until it acknowledged requests; several kills in
            quick succession end at the same moment.
        violations: what was wrong after each restart and each fault.
    """

    service: OwnService
    clients: Clients
    rng: random.Random
    shim: Shim | None = None
    recovery_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    violations: list[str] = field(default_factory=list)
    _unanswered: list[tuple[str, float]] = field(default_factory=list)

    def carry_out(self, kind: str) -> None:
        """Do what a plan has next at a random moment, and in most cases wait for recovery.

        Raises:
            ServiceFailed: the service doesn't recover.
        """
        time.sleep(self.rng.uniform(0, 2))
        if kind in FAULTS:
            self.fail(kind)
            return
        if kind == ALL:
            self._kill_all()
        else:
            kill(self.rng.choice(self._wait_for_victims(kind)))
            self._unanswered.append((kind, time.monotonic()))
        if kind == ALL or self.rng.random() < 0.7:
            self.wait_for_recovery()

    def fail(self, kind: str) -> None:
        """Let the Store's calls to the system fail for some seconds, in the middle of writes.

        Then the service must recover, and list what it has acknowledged.

        Raises:
            ServiceFailed: it doesn't recover, or it calls nothing that could fail.
        """
        assert self.shim is not None
        before = self.shim.happened
        with self.shim.failing(*FAULTS[kind]):
            deadline = time.monotonic() + RECOVERY_S
            while self.shim.happened == before:
                if time.monotonic() > deadline:
                    raise ServiceFailed(f"Nothing met the fault ({kind}) for {RECOVERY_S} s.")
                time.sleep(0.05)
            time.sleep(self.rng.uniform(0, LONGEST_FAULT_S))
            if self.rng.random() < KILLED_IN_A_FAULT:
                kill(self.rng.choice(self._wait_for_victims(self.rng.choice(KILLED_THEN))))
                time.sleep(self.rng.uniform(0, LONGEST_FAULT_S))
        ended = time.monotonic()
        self.wait_for_recovery()
        self.recovery_s[kind].append(time.monotonic() - ended)
        with self.clients.resting():
            self._check_listing()

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
            self._check_listing()

    def _check_listing(self) -> None:
        self.violations += Inspector(self.service.url, self.clients.journal).check_listing()
