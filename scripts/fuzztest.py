"""Send hostile files and requests to a service, and check that none of them hurts it.

    scripts/fuzztest.py --files 100000
    scripts/fuzztest.py --requests 100000

Starts a service of its own, with its store in a temporary folder; or takes one that runs already
(`--url`), whose processes it doesn't look at. First come the files of a corpus, which are built to
hurt: bombs, lies about sizes, metadata without end. Each has a list of answers that it may get.
Then come small valid files that were damaged at random; the same seed damages them in the same way.
`--requests` sends HTTP requests instead, which were valid for some operation and were changed at
random, over plain sockets; with both options, they come after the files. Photos that such a request
stores stay where they are.

No answer may be a server's error but 503, no replica may be lost, memory must come back to where it
was, and a small photo beside all this must be answered in time. An error that the service answers
must be a problem, and a whole request must have an answer within 30 s. The exit status is 0 if all
was well; otherwise 1, and what was to blame is kept, to be sent again:

    scripts/fuzztest.py --repeat FILE
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from common.client import IMAGE, IN_FLIGHT, RequestFailed, open_client, read_answer, unreachable
from common.options import empty_folder, positive
from common.own_service import OwnService
from common.serve_run import ServiceFailed
from fuzz.clients import WAYS, Canary, Clients, Findings, Job, Sent, Way
from fuzz.corpus import build_corpus
from fuzz.damage import damaged_file
from fuzz.good_files import CorpusFile, files_of_all_shapes, good_files
from fuzz.odd_requests import SHELF, SUFFIX, OddRequest, odd_requests
from fuzz.raw_requests import RawClients
from fuzz.watch import Watch
from tqdm import tqdm

MIB = 2**20
# Large files are searched by and stored beside each other while the service warms up. What
# allocators keep differs from time to time by about half of that.
MARGIN_MIB = 256
GROWN = 5  # kinds of processes that a report names
PATIENCE_S = 10
# How often a damaged file is sent in each way: searching is cheapest, and decodes the same.
SHARES = {"search": 8, "verified": 1, "index": 1}
FILES = 10_000
WARMING, WARMING_SEED = 2_000, -1  # requests that are sent before memory is measured
STATUSES = {200: "read", 413: "413", 415: "415", 422: "422", 503: "503", 400: "400"}


@dataclass(frozen=True, slots=True)
class Report:
    """What a fuzz test has sent and found.

    Attributes:
        answers: see `Findings`.
        notes: what was measured, in sentences.
        violations: all that was wrong, without repetitions.
        interrupted: not all was sent.
        requests: the answers to requests, likewise.
    """

    answers: Counter[tuple[str, int]]
    notes: list[str]
    violations: list[str]
    interrupted: bool = False
    requests: Counter[tuple[str, int]] = field(default_factory=Counter)

    def __str__(self) -> str:
        lines = self._files() if self.answers or not self.requests else []
        lines += self._requests() if self.requests else []
        lines += ["", *self.notes, ""]
        lines += self.violations or [f"No {'file' if self.answers else 'request'} did any harm."]
        return "\n".join(lines)

    def _files(self) -> list[str]:
        head = "".join(f"{name:>8}" for name in STATUSES.values())
        lines = [f"{'files':<24}{'sent':>8}{head}{'other':>8}"]
        for row in dict.fromkeys(row for row, _ in self.answers):
            counts: Counter[int] = Counter()
            for (of, status), number in self.answers.items():
                if of == row:
                    counts[200 if status == 201 else status] += number
            known = "".join(f"{counts[status]:>8}" for status in STATUSES)
            other = counts.total() - sum(counts[status] for status in STATUSES)
            lines.append(f"{row:<24}{counts.total():>8}{known}{other:>8}")
        return lines

    def _requests(self) -> list[str]:
        """One request may have several answers, and one that isn't whole has none (-)."""
        lines = [f"{'requests':<28}{'answers':>9}"]
        for row in sorted({row for row, _ in self.requests}):
            counts = {status: n for (of, status), n in sorted(self.requests.items()) if of == row}
            words = "  ".join(f"{status or '-'}: {number:,}" for status, number in counts.items())
            lines.append(f"{row:<28}{sum(counts.values()):>9,}   {words}")
        return lines


def corpus_jobs(files: Sequence[CorpusFile]) -> list[Job]:
    """Return the files of a corpus, each to be searched by and to be stored."""
    ways: tuple[Way, ...] = ("search", "index")
    return [
        Job(file.name, f"corpus: {file.name.partition('/')[0]}", file.data, way, file.expected)
        for file in files
        for way in ways
    ]


def warming_jobs(files: Sequence[CorpusFile]) -> list[Job]:
    """Return what is sent before memory is measured: good files, of all shapes, and the largest."""
    large = [file for file in files if file.name.startswith("at_the_limit/")]
    good = [file for file in files if file.name.startswith("good/")]
    jobs = corpus_jobs([*good, *files_of_all_shapes(), *large])
    jobs += [Job(file.name, "", file.data, "verified", file.expected) for file in good]
    random.Random(0).shuffle(jobs)
    return jobs


def damaged_jobs(seed: int, count: int) -> Iterator[Job]:
    """Return damaged files, and how each is sent: the same for the same seed."""
    for number in range(count):
        file = damaged_file(seed, number)
        way = random.Random(f"way {seed} {number}").choices(WAYS, list(SHARES.values()))[0]
        yield Job(file.name, f"damaged: {file.container}", file.data, way)


def repeated_jobs(files: Sequence[Path]) -> list[Job]:
    """Return files of an earlier test, each to be sent in each way."""
    return [
        Job(file.name, file.name[-24:], file.read_bytes(), way) for file in files for way in WAYS
    ]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a fuzz test sends, in this order.

    Attributes:
        corpus: files of the corpus.
        jobs: other files.
        files: number of these.
        odd: requests.
        requests: number of these.
    """

    corpus: Sequence[CorpusFile]
    jobs: Iterator[Job]
    files: int
    odd: Iterator[OddRequest]
    requests: int

    @classmethod
    def make(cls, seed: int, files: int, requests: int) -> Plan:
        """Return a plan of so many damaged files, after the corpus, and so many requests."""
        corpus = build_corpus() if files else []
        return cls(corpus, damaged_jobs(seed, files), files, odd_requests(seed, requests), requests)

    @classmethod
    def repeat(cls, kept: Sequence[Path]) -> Plan:
        """Return a plan of files and requests of an earlier test."""
        jobs = repeated_jobs([path for path in kept if path.suffix != SUFFIX])
        odd = [
            OddRequest(path.name, path.stem, path.read_bytes())
            for path in kept
            if path.suffix == SUFFIX
        ]
        return cls([], iter(jobs), len(jobs), iter(odd), len(odd))


@dataclass(slots=True)
class FuzzTest:
    """A fuzz test of a service that runs.

    Attributes:
        url: of the service.
        findings: what was answered to files, and what was wrong.
        answered: what was answered to requests, and what was wrong.
        clients: number of clients.
        service: the service, if its processes are to be looked at.
        margin: by how many bytes memory may grow.
        patience_s: how long a small photo may wait for its answer.
        notes: what was measured, in sentences.
    """

    url: str
    findings: Findings
    answered: Findings
    clients: int
    service: OwnService | None
    margin: int
    patience_s: float
    notes: list[str]

    def run(self, plan: Plan) -> None:
        """Warm the service up, send all that is planned, and look at what is left of it.

        Raises:
            RequestFailed: no service answers, or it doesn't take good files.
        """
        shelf = [f"fuzz-shelf-{kind}" for kind in SHELF]
        self._fill(shelf)
        self._warm_up(plan)
        self._attack(plan)
        with open_client(self.url) as client:
            for id in shelf:
                client.delete(f"/images/{id}")

    def _warm_up(self, plan: Plan) -> None:
        ignored = Findings(self.findings.folder)
        if plan.corpus:
            jobs = warming_jobs(plan.corpus)
            self._send_files(ignored, jobs, len(jobs), "warming up")
        if plan.requests:
            count = min(WARMING, plan.requests)
            self._send_requests(ignored, odd_requests(WARMING_SEED, count), count, "warming up")

    def _abort(self) -> None:
        self.findings.close()
        self.answered.close()
        if self.service is not None:
            self.service.kill_everything()

    def _fill(self, shelf: Sequence[str]) -> None:
        with open_client(self.url) as client:
            for id, kind in zip(shelf, SHELF, strict=True):
                data = good_files()[kind]
                try:
                    answer = client.post("/index", params={"id": id}, content=data, headers=IMAGE)
                except httpx.TransportError as error:
                    raise unreachable(self.url, error) from None
                read_answer(answer)

    def _attack(self, plan: Plan) -> None:
        canary = Canary(self.url, good_files()["jpeg"], self.findings, self.patience_s)
        watch, before = None, dict[str, int]()
        with ExitStack() as stack:
            if self.service is not None:
                watch = Watch(self.service, self.findings.report_of_recent)
                before = watch.memory_by_role()
                stack.enter_context(watch.watching())
            stack.enter_context(canary.singing())
            stack.callback(lambda: self.notes.append(str(canary)))
            corpus = corpus_jobs(plan.corpus)
            self._send_files(self.findings, corpus, len(corpus), "corpus")
            self._send_files(self.findings, plan.jobs, plan.files, "damaged")
            self._send_requests(self.answered, plan.odd, plan.requests, "requests")
        if watch is not None:
            self._compare(watch, before)

    def _send_files(self, findings: Findings, jobs: Iterable[Job], count: int, name: str) -> None:
        if count:
            clients = Clients(self.url, findings, self.clients, self._abort)
            with progress(findings, count, name, "file") as done:
                clients.send_all(jobs, done)

    def _send_requests(
        self, findings: Findings, odd: Iterator[OddRequest], count: int, name: str
    ) -> None:
        if count:
            clients = RawClients(self.url, findings, self._abort)
            with progress(findings, count, name, "request") as done:
                clients.send_all(odd, done)

    def _compare(self, watch: Watch, roles: dict[str, int]) -> None:
        before = sum(roles.values())
        after = watch.wait_for_memory(before + self.margin)
        now = watch.memory_by_role()
        grown = sorted(((now[role] - roles.get(role, 0), role) for role in now), reverse=True)
        self.notes.append(
            f"replicas, proxy and controller: {watch.actors}, of which {watch.lost} were lost; "
            f"processes that decoded: {watch.decoders}"
        )
        self.notes.append(
            f"memory of all processes: {before / MIB:,.0f} MiB before, at most "
            f"{watch.peak / MIB:,.0f}, {after / MIB:,.0f} after; it may grow by "
            f"{self.margin / MIB:,.0f}"
        )
        most = ", ".join(f"{role} {size / MIB:+,.0f} MiB" for size, role in grown[:GROWN])
        self.notes.append(f"what grew most: {most}")
        if after > before + self.margin:
            self.findings.report_at_large(
                f"Memory is {(after - before) / MIB:,.0f} MiB above where it was."
            )


@contextmanager
def progress(
    findings: Findings, count: int, name: str, unit: str
) -> Iterator[Callable[[Sent], None]]:
    """Show a bar while the block runs; yields what is to be called after each."""
    with tqdm(total=count, unit=unit, desc=name, smoothing=0.05) as bar:

        def done(_: Sent) -> None:
            bar.set_postfix(wrong=len(findings.violations), refresh=False)
            bar.update()

        yield done


def fuzz(
    folder: Path,
    *,
    url: str | None = None,
    service: OwnService | None = None,
    files: int = 0,
    requests: int = 0,
    seed: int = 0,
    clients: int = IN_FLIGHT,
    margin_mib: int = MARGIN_MIB,
    patience_s: float = PATIENCE_S,
    repeat: Sequence[Path] = (),
) -> Report:
    """Test a service by hostile files and requests, or by those of an earlier test.

    Args:
        folder: gets `files`, and `store` and `serve.log` of a service that is started for this.
        url: of a service that runs, whose processes aren't looked at.
        service: one that runs, whose processes are looked at.
        files: number of damaged files; a corpus comes before them, unless there are none.
        requests: number of odd requests.
        seed: another one changes files and requests in other ways.
        clients: how many send files at the same time.
        margin_mib: by how much memory may grow.
        patience_s: how long a small photo may wait for its answer.
        repeat: files and requests to send instead.

    Raises:
        ServiceFailed: the service doesn't start.
        RequestFailed: no service answers, or it doesn't take good files.
    """
    findings, answered = Findings(folder / "files"), Findings(folder / "files")
    notes, interrupted = list[str](), False
    plan = Plan.repeat(repeat) if repeat else Plan.make(seed, files, requests)
    try:
        with ExitStack() as stack:
            if url is None and service is None:
                service = stack.enter_context(OwnService(folder))
                service.start()
            where = url if service is None else service.url
            assert where is not None
            margin = margin_mib * MIB
            test = FuzzTest(where, findings, answered, clients, service, margin, patience_s, notes)
            test.run(plan)
    except KeyboardInterrupt:
        interrupted = True
        notes.append("Interrupted: not all was sent.")
    violations = list(dict.fromkeys([*findings.violations, *answered.violations]))
    return Report(findings.answers, notes, violations, interrupted, answered.answers)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--files", type=positive, help=f"damaged ({FILES:,}; with --requests alone, none)"
    )
    parser.add_argument("--requests", type=positive, default=0, help="odd HTTP requests (none)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other damage")
    parser.add_argument("--url", help="of a service that runs; otherwise one is started")
    parser.add_argument("--clients", type=positive, default=IN_FLIGHT, help="(%(default)s)")
    parser.add_argument(
        "--margin",
        type=positive,
        default=MARGIN_MIB,
        metavar="MIB",
        help="by how much memory may grow (%(default)s)",
    )
    parser.add_argument(
        "--patience",
        type=positive,
        default=PATIENCE_S,
        metavar="SECONDS",
        help="how long a small photo beside the files may wait (%(default)s)",
    )
    parser.add_argument("--folder", type=Path, help="an empty one, which is kept")
    parser.add_argument(
        "--repeat", type=Path, nargs="+", default=[], metavar="FILE", help="send these alone"
    )
    return parser


def main() -> int:
    parser = make_parser()
    arguments = parser.parse_args()
    for file in arguments.repeat:
        if not file.is_file():
            parser.error(f"{file} is not a file")
    folder = empty_folder(parser, arguments.folder)

    # The service reacts to SIGINT only if this process does, and background jobs of a shell don't.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        report = fuzz(
            folder,
            url=arguments.url,
            files=arguments.files or (0 if arguments.requests else FILES),
            requests=arguments.requests,
            seed=arguments.seed,
            clients=arguments.clients,
            margin_mib=arguments.margin,
            patience_s=arguments.patience,
            repeat=arguments.repeat,
        )
    except (ServiceFailed, RequestFailed) as error:
        print(error, file=sys.stderr)
        return 1
    print(report)
    if report.violations or arguments.folder is not None:
        print(f"\nWhat was to blame, and the log of the service, are in {folder}")
    else:
        shutil.rmtree(folder)
    if report.interrupted:
        return 130
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
