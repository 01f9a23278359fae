"""Rounds of faults in the middle of writes, in a process that has only a store.

A store is written into by a process of its own, whose calls to the system fail at random
(`faults.c`) until the store gives up or the process is killed. Then the store is opened without
faults, and must hold what was acknowledged, byte by byte.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from common.paths import IMPORT_PATH, ROOT

from crash.shim import compile_faults
from crash.writer import FAILED, NOT_OPENED, content
from deployments.store.access import DATA
from deployments.store.check import StoreCheck
from deployments.store.reader import StoreReader

KINDS = ("full", "sync", "clock,pause", "full,sync", "full,sync,clock,pause", "")
RATES = (20, 100, 1000, 5000)  # one call in so many begins a fault
MOST_S = 3.0  # of a round, after which the process is killed
ENDINGS = {FAILED: "the disk failed", NOT_OPENED: "it could not be opened"}

Group = Sequence[tuple[str, int | None]]


@dataclass(slots=True)
class Holdings:
    """What a store may hold, by what was asked for and what was answered.

    Attributes:
        possible: for each id the numbers of the contents that may be stored; None among them:
            perhaps nothing is.
        outcomes: how many operations had which result.
        violations: what contradicts the answers before it.
    """

    possible: dict[str, set[int | None]] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def answered(self, group: Group, results: Sequence[str]) -> None:
        """Remember what came of a group."""
        for (id, number), result in zip(group, results, strict=True):
            before = self.possible.get(id, {None})
            self.outcomes[result] += 1
            if result == "full":
                continue  # nothing of it was stored
            if result == "unknown id" and None not in before:
                self.violations.append(f"{id} was lost: it was unknown when it was deleted")
            self.possible[id] = {number}

    def unanswered(self, group: Group) -> None:
        """Remember that a group may have been carried out, or not."""
        for id, number in group:
            self.outcomes["unanswered"] += 1
            self.possible.setdefault(id, {None}).add(number)

    def compare(self, path: Path) -> list[str]:
        """Compare a store that nobody uses with this; from now on what it holds is certain.

        Returns:
            A sentence for each thing that is wrong.
        """
        with closing(StoreReader(path)) as store:
            with store.reading() as txn:
                check = StoreCheck(store, txn)
                parts = [*check.photo_damage(), *check.log_damage(), list(check.other_damage())]
            wrong = [f"{one.id} {one.part} {one.what}" for part in parts for one in part]
            held = {id: store.original(id)[1] for id in store.ids()} if not wrong else {}
        if wrong:
            return wrong
        wrong += [f"{id} is there, and was never sent" for id in held.keys() - self.possible.keys()]
        for id, possible in self.possible.items():
            found = held.get(id)
            matching = {
                number
                for number in possible
                if found == (None if number is None else content(number))
            }
            if not matching:
                wrong.append(f"{id} is lost" if found is None else f"{id} has other bytes")
            self.possible[id] = matching
        return wrong


@dataclass(frozen=True, slots=True)
class RoundsReport:
    """What rounds with faults have done and found.

    Attributes:
        endings: how the rounds ended, by kind of faults.
        outcomes: see `Holdings`.
        violations: all that was wrong.
    """

    endings: Counter[tuple[str, str]]
    outcomes: Counter[str]
    violations: list[str]

    def __str__(self) -> str:
        lines = [f"{'faults':<18} {'rounds':>6}   ended"]
        for (kinds, ending), rounds in sorted(self.endings.items()):
            lines.append(f"{kinds or 'none':<18} {rounds:>6}   {ending}")
        lines += ["", *(f"{number:>7} {name}" for name, number in self.outcomes.most_common()), ""]
        lines += self.violations or ["Nothing was lost."]
        return "\n".join(lines)


def run_rounds(folder: Path, rounds: int, seed: int) -> RoundsReport:
    """Write into one store again and again while faults happen, and check it after each round.

    Args:
        folder: an empty one, which gets `store` and the compiled faults.

    Raises:
        NoCompiler
    """
    library, path = compile_faults(folder), folder / "store"
    rng = random.Random(seed)
    holdings = Holdings()
    endings: Counter[tuple[str, str]] = Counter()
    violations: list[str] = []
    for number in range(rounds):
        kinds = KINDS[number % len(KINDS)]
        faults = {
            "LD_PRELOAD": str(library),
            "FAULTS_FILE": str(path.resolve() / DATA),
            "FAULTS_KINDS": kinds,
            "FAULTS_ONE_IN": str(rng.choice(RATES)),
            "FAULTS_SEED": str(rng.randrange(2**32)),
        }
        ending, wrong = run_round(path, holdings, rng, faults)
        endings[kinds, ending] += 1
        if (path / DATA).is_file():
            wrong += holdings.compare(path)
        wrong += holdings.violations
        if wrong:
            violations += [f"round {number}, faults {kinds or 'none'}: {one}" for one in wrong]
            break
    return RoundsReport(endings, holdings.outcomes, violations)


def run_round(
    path: Path, holdings: Holdings, rng: random.Random, faults: dict[str, str]
) -> tuple[str, list[str]]:
    """Let a process write into a store until it ends, or kill it at a random moment.

    Returns:
        How it ended, and a sentence for each thing that is wrong.
    """
    writer = subprocess.Popen(
        [sys.executable, "-m", "crash.writer", path, str(rng.randrange(10**6))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": IMPORT_PATH} | faults,
    )
    killing = threading.Timer(rng.uniform(0, MOST_S), writer.kill)
    lines = []
    assert writer.stdout is not None
    try:
        if writer.stdout.readline():  # it is open
            killing.start()
        for line in writer.stdout:
            if line.endswith("\n"):  # the last one may be torn
                lines.append(json.loads(line))
        _, errors = writer.communicate()
    finally:
        killing.cancel()
        writer.kill()
    groups, answers = lines[::2], lines[1::2]
    for group, answer in zip(groups, answers, strict=False):
        holdings.answered(group, answer)
    for group in groups[len(answers) :]:
        holdings.unanswered(group)
    if writer.returncode < 0:
        return "it was killed", []
    if writer.returncode not in ENDINGS:
        return "by itself", [f"status {writer.returncode}: {errors[-2000:]}"]
    return ENDINGS[writer.returncode], []
