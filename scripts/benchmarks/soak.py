"""Let a service work for long, with all that happens in production, and see what grows.

    scripts/bench.py soak [--minutes 60]

Clients index, search, delete and list pictures of many sizes and kinds, alone and in batches; some
send or read slowly, or hang up. Now and then a replica is killed, or the Store's disk is full for
some seconds. A table is printed every few minutes. In the end one says what grew between the first
and the last quarter of the time, and all that is stored is held against what was answered. The exit
status is 1 if something that was acknowledged is lost, or an answer was one that must not be.
Ctrl-C ends it with what is known so far.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
from common.beside import repeated
from common.ending import end_on_signals, exit_status
from common.own_service import OwnService
from common.serve_run import ServiceFailed
from common.tables import table
from crash.checks import Inspector, verify
from crash.clients import Clients
from crash.journal import TIMEOUT_S, VARIED, Journal
from crash.kills import VICTIMS, Killer
from crash.shim import NoCompiler, Shim
from tqdm import tqdm

from benchmarks.soak_clients import Others
from benchmarks.soak_samples import (
    PLACE_COLUMNS,
    ROLE_COLUMNS,
    TIME_COLUMNS,
    Sample,
    Tally,
    growth_by_place,
    growth_by_role,
    take_sample,
    time_row,
)
from deployments.store.access import DATA

IDS = 200  # of all clients together, so that the store comes to hold about as many photos
PARTS = 12  # rows of the table
SAMPLE_S = 10
MISHAP_S = 45  # about so many seconds between two
FULL_DISK = "full disk"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=60, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other mishaps")


def mishaps(rng: random.Random) -> Iterator[str]:
    """Yield what happens to the service: a replica is killed; each third time the disk fills."""
    replicas = [kind for kind, name in VICTIMS.items() if name.startswith("ServeReplica")]
    for number in itertools.count(1):
        yield FULL_DISK if number % 3 == 0 else rng.choice(replicas)


class Soak:
    """A service that works for long, and what it takes meanwhile.

    Args:
        folder: an empty one, which gets `store`, `serve.log` and `journal.jsonl`.
        minutes: how long it works.
        seed: of all that is random, except the times of answers.

    Attributes:
        rows: of the table, one for each part of the time.
        samples: what the service took.
        happened: number of mishaps by kind.

    Raises:
        NoCompiler
    """

    def __init__(self, folder: Path, minutes: float, seed: int) -> None:
        self.rows: list[dict[str, Any]] = []
        self.samples: list[Sample] = []
        self.happened: Counter[str] = Counter()
        self._listed: Counter[str] = Counter()
        self._seconds = 60 * minutes
        self._rng = random.Random(seed)
        self._tally = Tally()
        self._journal = Journal(folder / "journal.jsonl", may_be_full=True, heard=self._tally.count)
        shim = Shim(folder, folder / "store" / DATA)
        self.service = OwnService(
            folder, {"limits": {"timeout_s": TIMEOUT_S}}, {"Store": shim.options()}
        )
        url = self.service.url
        self._clients = Clients(url, self._journal, IDS, seed, VARIED)
        self._others = Others(url, self._journal, self._tally.count, seed)
        self._others.join(self._clients)
        self._killer = Killer(self.service, self._clients, self._rng, shim)
        self._checked: list[str] = []

    @property
    def violations(self) -> list[str]:
        """All that was wrong, without repetitions."""
        found = (self._journal, self._killer, self._others)
        sentences = [sentence for one in found for sentence in one.violations]
        return list(dict.fromkeys([*sentences, *self._checked]))

    def run(self) -> None:
        """Let the service work, print the tables, and hold what is stored against the answers."""
        try:
            self.service.start()
            try:
                self._work()
            finally:
                print(f"\n{self.growth()}\n", flush=True)
            time.sleep(max(0, self._journal.settled_at - time.monotonic()))
            self._checked += Inspector(self.service.url, self._journal).check_all()
            self.service.stop()
            self._checked += verify(self.service.store, self._journal)
        except (ServiceFailed, httpx.HTTPError) as error:
            self._checked.append(f"The service did not recover: {error}")
        finally:
            if self.service.process is not None:
                self.service.kill_everything()

    def growth(self) -> str:
        """Return the tables of what grew; nothing before there is a sample."""
        if not self.samples:
            return ""
        roles = table(growth_by_role(self.samples), ROLE_COLUMNS)
        return f"{roles}\n\n{table(growth_by_place(self.samples), PLACE_COLUMNS)}"

    def _work(self) -> None:
        coming = mishaps(self._rng)
        began = time.monotonic()
        next_mishap = began + self._until_next()
        with (
            self._sampling() as sampler,
            self._clients.working(),
            repeated(lambda: self._sample(sampler), SAMPLE_S),
            tqdm(total=round(self._seconds), unit="s") as bar,
        ):
            try:
                while (now := time.monotonic()) < began + self._seconds:
                    bar.set_postfix(wrong=len(self.violations), refresh=False)
                    bar.update(int(now - began) - bar.n)
                    if now >= next_mishap:
                        kind = next(coming)
                        self.happened[kind] += 1
                        self._killer.carry_out(kind)
                        next_mishap = time.monotonic() + self._until_next()
                    self._add_rows(bar, began)
                    time.sleep(0.2)
                self._killer.wait_for_recovery()
            except BaseException:
                self.service.kill_everything()  # so that no client waits for its answer
                raise
            finally:
                self._add_rows(bar, began, at_once=True)

    @contextmanager
    def _sampling(self) -> Iterator[Executor]:
        """Yield a process that takes samples, which needn't wait for the clients' threads.

        It is a copy of this one, which has no other threads yet, and it has taken the first sample.
        """
        with ProcessPoolExecutor(
            1,
            multiprocessing.get_context("fork"),
            signal.signal,
            (signal.SIGINT, signal.SIG_IGN),
        ) as sampler:
            self._sample(sampler)
            yield sampler

    def _until_next(self) -> float:
        return self._rng.uniform(0.5, 1.5) * MISHAP_S

    def _sample(self, sampler: Executor) -> None:
        process = self.service.launched().pid
        with suppress(psutil.Error):  # it ends
            self.samples.append(sampler.submit(take_sample, process, self.service.store).result())

    def _add_rows(self, bar: tqdm[Any], began: float, *, at_once: bool = False) -> None:
        """Add a row to the table if it is time, and print the table."""
        start = began + 60 * self.rows[-1]["until"] if self.rows else began
        now = time.monotonic()
        if now - start < (1 if at_once else self._seconds / PARTS):
            return
        new, self._listed = self.happened - self._listed, self.happened.copy()
        self.rows.append(
            {
                "until": (now - began) / 60,
                **self._tally.row(start, now),
                **time_row(self.samples, now),
                "mishaps": ", ".join(f"{n} x {kind}" for kind, n in new.items()),
            }
        )
        bar.clear()
        tqdm.write(f"\n{table(self.rows, TIME_COLUMNS)}\n", file=sys.stdout)


def run(arguments: argparse.Namespace) -> None:
    """Let a service work, print the tables, and end with the status that says how it went.

    Raises:
        SystemExit
    """
    end_on_signals()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    status = 0
    try:
        soak = Soak(folder, arguments.minutes, arguments.seed)
    except NoCompiler as error:
        sys.exit(str(error))
    try:
        soak.run()
    except KeyboardInterrupt as interrupt:
        print("\nInterrupted: not all that is stored was looked at.", file=sys.stderr)
        status = exit_status(interrupt)
    if soak.violations:
        print(*soak.violations, f"\nThe files are in {folder}", sep="\n")
        status = status or 1
    else:
        print("No answer was wrong." if status else "Nothing was lost, and no answer was wrong.")
        shutil.rmtree(folder)
    sys.exit(status)
