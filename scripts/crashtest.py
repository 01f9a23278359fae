"""Kill a service at random moments while clients use it, and check that nothing was lost.

    scripts/crashtest.py --kills 200
    scripts/crashtest.py --kills 200 --faults 60
    scripts/crashtest.py --rounds 200

Starts a service of its own, with its store in a temporary folder. Clients index, search and delete
small pictures and keep a journal of the answers, while replicas, the proxy, the controller and now
and then the whole of Ray are killed (SIGKILL). At the end the store and searches are compared with
every answer in the journal. The exit status is 0 if nothing was lost; otherwise 1, and the folder
with the store, the log and the journal is kept.

With `--faults`, the Store's disk is full for some seconds, or syncs fail and lose what was written,
or the clock jumps, so many times between the kills. The service must recover from each by itself,
and what was refused must not be there.

With `--rounds` there is no service: a process writes into a store while the same happens to it at
random, until the store gives up or the process is killed. What was acknowledged must be there after
each round. Faults need a C compiler.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, get_args

import httpx
from common.ending import end_on_signals, exit_status
from common.options import empty_folder, positive
from common.own_service import OwnService
from common.serve_run import ServiceFailed
from crash.checks import Inspector, verify
from crash.clients import Clients
from crash.journal import TIMEOUT_S, Journal, Kind, Outcome
from crash.kills import FAULTS, Killer, add_faults, plan_kills
from crash.rounds import RoundsReport, run_rounds
from crash.shim import NoCompiler, Shim
from tqdm import tqdm

from deployments.store.access import DATA

# Ids are used again and again, so that indexing meets deleting. Each kill adds some, up to what can
# be searched for at the end in a minute or two.
IDS, IDS_PER_KILL, MAX_IDS = 12, 4, 1_600


@dataclass(frozen=True, slots=True)
class Report:
    """What a crash test has done and found.

    Attributes:
        kills: number of kills and faults by kind.
        recovery_s: see `Killer`.
        outcomes, statuses: see `Journal`.
        violations: all that was wrong, without repetitions.
    """

    kills: Counter[str]
    recovery_s: dict[str, list[float]]
    outcomes: Counter[tuple[Kind, Outcome]]
    statuses: Counter[tuple[Kind, int]]
    violations: list[str]

    def __str__(self) -> str:
        lines = [f"{'killed, or failed':<18} {'times':>5}   ready again: median   max"]
        for kind, times in self.kills.most_common():
            taken = self.recovery_s[kind] or [float("nan")]
            lines.append(f"{kind:<18} {times:>5} {median(taken):>18.1f} s {max(taken):>5.1f} s")
        lines += ["", f"{'requests':<18} {'acknowledged':>12} {'refused':>8} {'unknown':>8}"]
        for kind in get_args(Kind):
            counts = (self.outcomes[kind, outcome] for outcome in get_args(Outcome))
            unknown, acknowledged, refused = counts
            lines.append(f"{kind:<18} {acknowledged:>12} {refused:>8} {unknown:>8}")
        statuses: Counter[int] = Counter()
        for (_, status), number in self.statuses.items():
            statuses[status] += number
        answers = (f"{status or 'none'}: {number:,}" for status, number in sorted(statuses.items()))
        lines += ["", f"answers by status    {'  '.join(answers)}", ""]
        lines += self.violations or ["Nothing was lost."]
        return "\n".join(lines)


def crash(folder: Path, plan: Sequence[str], seed: int, minutes: float = float("inf")) -> Report:
    """Start a service in a folder, kill and let fail what a plan has, and check what is left.

    Args:
        folder: an empty one, which gets `store`, `serve.log` and `journal.jsonl`.
        plan: kinds of `crash.kills.VICTIMS` and `FAULTS`, or `ALL`.
        seed: of all that is random, except the times of answers.
        minutes: after which no further kill or fault begins.

    Raises:
        NoCompiler: the plan has faults.
    """
    rng = random.Random(seed)
    faults = any(kind in FAULTS for kind in plan)
    journal = Journal(folder / "journal.jsonl", may_be_full=faults)
    shim = Shim(folder, folder / "store" / DATA) if faults else None
    deployments: dict[str, dict[str, Any]] = {"ChunkIndex": {"num_replicas": 2}}
    if shim is not None:
        deployments["Store"] = shim.options()
    service = OwnService(folder, {"limits": {"timeout_s": TIMEOUT_S}}, deployments)
    clients = Clients(service.url, journal, min(MAX_IDS, IDS + IDS_PER_KILL * len(plan)), seed)
    killer = Killer(service, clients, rng, shim)
    kills: Counter[str] = Counter()
    violations = []
    service.launch()
    try:
        service.wait_until_ready()
        carry_out(plan, killer, kills, minutes)
        time.sleep(max(0, journal.settled_at - time.monotonic()))
        violations += Inspector(service.url, journal).check_all()
        service.stop()
        violations += verify(service.store, journal)
    except (ServiceFailed, httpx.HTTPError) as error:
        violations.append(f"The service did not recover: {error}")
    finally:
        service.kill_everything()
    found = [*journal.violations, *killer.violations, *violations]
    return Report(
        kills,
        killer.recovery_s,
        journal.outcomes,
        journal.statuses,
        list(dict.fromkeys(found)),
    )


def carry_out(plan: Sequence[str], killer: Killer, kills: Counter[str], minutes: float) -> None:
    """Kill and let fail what a plan has while clients work, and wait for the last recovery.

    Args:
        kills: kills and faults are counted here, also those before an error.
        minutes: after which no further one begins.

    Raises:
        ServiceFailed: the service doesn't recover.
    """
    deadline = time.monotonic() + 60 * minutes
    with killer.clients.working(), tqdm(total=len(plan), unit="kill") as bar:
        try:
            for kind in plan:
                if time.monotonic() > deadline:
                    break
                killer.carry_out(kind)
                kills[kind] += 1
                bar.set_postfix(acknowledged=killer.clients.journal.acknowledged)
                bar.update()
            killer.wait_for_recovery()
        except BaseException:
            killer.service.kill_everything()  # so that no client waits for its answer
            raise


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=positive, default=200, help="how many (%(default)s)")
    parser.add_argument(
        "--faults",
        type=positive,
        default=0,
        help="how often the Store's disk or clock fails, besides",
    )
    parser.add_argument(
        "--rounds",
        type=positive,
        help="instead of both: rounds with faults in a process that has only a store",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, other kills")
    parser.add_argument("--folder", type=Path, help="an empty one, which is kept")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="begin no kill and no fault after that"
    )
    return parser


def main() -> int:
    parser = make_parser()
    arguments = parser.parse_args()
    folder = empty_folder(parser, arguments.folder)

    # The service reacts to SIGINT only if this process does, and background jobs of a shell don't.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    end_on_signals()
    report: Report | RoundsReport
    try:
        if arguments.rounds is not None:
            report = run_rounds(folder, arguments.rounds, arguments.seed)
        else:
            rng = random.Random(arguments.seed)
            plan = add_faults(plan_kills(arguments.kills, rng), arguments.faults, rng)
            report = crash(folder, plan, arguments.seed, arguments.minutes)
    except KeyboardInterrupt as interrupt:
        print(f"\nInterrupted; nothing of it still runs. The files are in {folder}")
        return exit_status(interrupt)
    except NoCompiler as error:
        print(error, file=sys.stderr)
        return 1
    print(report)
    if report.violations or arguments.folder is not None:
        print(f"\nThe files are in {folder}")
    else:
        shutil.rmtree(folder)
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
