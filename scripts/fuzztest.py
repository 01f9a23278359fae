"""Send hostile and damaged files to a service, and check that none of them hurts it.

    scripts/fuzztest.py --files 100000

Starts a service of its own, with its store in a temporary folder; or takes one that runs already
(`--url`), whose processes it doesn't look at. First come the files of a corpus, which are built to
hurt: bombs, lies about sizes, metadata without end. Each has a list of answers that it may get.
Then come small valid files that were damaged at random; the same seed damages them in the same way.
No answer may be a server's error but 503, no replica may be lost, memory must come back to where it
was, and a small photo beside all this must be answered in time. The exit status is 0 if all was
well; otherwise 1, and the files that were to blame are kept, to be sent again:

    scripts/fuzztest.py --repeat FILE
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
from common.client import IMAGE, IN_FLIGHT, RequestFailed, open_client, read_answer, unreachable
from common.options import empty_folder, positive
from common.own_service import OwnService
from common.serve_run import ServiceFailed
from fuzz.clients import WAYS, Canary, Clients, Findings, Job, Way
from fuzz.corpus import build_corpus
from fuzz.damage import damaged_file
from fuzz.good_files import CorpusFile, good_files
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
SHELF = ("jpeg", "png", "webp")  # good files that are stored, so that there is something to verify
STATUSES = {200: "read", 413: "413", 415: "415", 422: "422", 503: "503", 400: "400"}


@dataclass(frozen=True, slots=True)
class Report:
    """What a fuzz test has sent and found.

    Attributes:
        answers: see `Findings`.
        notes: what was measured, in sentences.
        violations: all that was wrong, without repetitions.
        interrupted: not all files were sent.
    """

    answers: Counter[tuple[str, int]]
    notes: list[str]
    violations: list[str]
    interrupted: bool = False

    def __str__(self) -> str:
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
        lines += ["", *self.notes, ""]
        lines += self.violations or ["No file did any harm."]
        return "\n".join(lines)


def corpus_jobs(files: Sequence[CorpusFile]) -> list[Job]:
    """Return the files of a corpus, each to be searched by and to be stored."""
    ways: tuple[Way, ...] = ("search", "index")
    return [
        Job(file.name, f"corpus: {file.name.partition('/')[0]}", file.data, way, file.expected)
        for file in files
        for way in ways
    ]


def warming_jobs(files: Sequence[CorpusFile]) -> list[Job]:
    """Return what is sent before memory is measured: good files, and the largest."""
    large = [file for file in files if file.name.startswith("at_the_limit/")]
    good = [file for file in files if file.name.startswith("good/")]
    jobs = corpus_jobs([*good, *large])
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


@dataclass(slots=True)
class FuzzTest:
    """A fuzz test of a service that runs.

    Attributes:
        url: of the service.
        findings: what was answered, and what was wrong.
        clients: number of clients.
        service: the service, if its processes are to be looked at.
        margin: by how many bytes memory may grow.
        patience_s: how long a small photo may wait for its answer.
        notes: what was measured, in sentences.
    """

    url: str
    findings: Findings
    clients: int
    service: OwnService | None
    margin: int
    patience_s: float
    notes: list[str]

    def run(self, corpus: Sequence[CorpusFile], jobs: Iterator[Job], count: int) -> None:
        """Warm the service up, send all files, and look at what is left of it.

        Args:
            corpus: its files come first.
            jobs: what comes then.
            count: number of these.

        Raises:
            RequestFailed: no service answers, or it doesn't take good files.
        """
        shelf = [f"fuzz-shelf-{kind}" for kind in SHELF]
        self._fill(shelf)
        if corpus:
            ignored = Findings(self.findings.folder)
            self._send(self._clients(ignored), warming_jobs(corpus), "warming up")
        self._attack(corpus_jobs(corpus), jobs, count)
        with open_client(self.url) as client:
            for id in shelf:
                client.delete(f"/images/{id}")

    def _clients(self, findings: Findings) -> Clients:
        return Clients(self.url, findings, self.clients, self._abort)

    def _abort(self) -> None:
        self.findings.close()
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

    def _attack(self, corpus: Sequence[Job], jobs: Iterator[Job], count: int) -> None:
        clients = self._clients(self.findings)
        canary = Canary(self.url, good_files()["jpeg"], self.findings, self.patience_s)
        watch, before = None, dict[str, int]()
        with ExitStack() as stack:
            if self.service is not None:
                watch = Watch(self.service, self.findings.report_of_recent)
                before = watch.memory_by_role()
                stack.enter_context(watch.watching())
            stack.enter_context(canary.singing())
            stack.callback(lambda: self.notes.append(str(canary)))
            self._send(clients, corpus, "corpus")
            self._send(clients, jobs, "damaged", count)
        if watch is not None:
            self._compare(watch, before)

    def _send(
        self, clients: Clients, jobs: Sequence[Job] | Iterator[Job], name: str, count: int = 0
    ) -> None:
        total = len(jobs) if isinstance(jobs, Sequence) else count
        with tqdm(total=total, unit="file", desc=name, smoothing=0.05) as bar:

            def done(_: Job) -> None:
                bar.set_postfix(wrong=len(self.findings.violations), refresh=False)
                bar.update()

            clients.send_all(jobs, done)

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


def fuzz(
    folder: Path,
    *,
    url: str | None = None,
    files: int = 10_000,
    seed: int = 0,
    clients: int = IN_FLIGHT,
    margin_mib: int = MARGIN_MIB,
    patience_s: float = PATIENCE_S,
    repeat: Sequence[Path] = (),
) -> Report:
    """Test a service by a corpus and damaged files, or by files of an earlier test.

    Args:
        folder: gets `store` and `serve.log` of the service, and `files`.
        url: of a service that runs; None to start one.
        files: number of damaged files.
        seed: another one damages files in other ways.
        clients: how many send files at the same time.
        margin_mib: by how much memory may grow.
        patience_s: how long a small photo may wait for its answer.
        repeat: files to send instead of the corpus and of damaged files.

    Raises:
        ServiceFailed: the service doesn't start.
        RequestFailed: no service answers, or it doesn't take good files.
    """
    findings, notes, interrupted = Findings(folder / "files"), list[str](), False
    if repeat:
        corpus, again = list[CorpusFile](), repeated_jobs(repeat)
        jobs, count = iter(again), len(again)
    else:
        corpus, jobs, count = build_corpus(), damaged_jobs(seed, files), files
    try:
        with ExitStack() as stack:
            service = None
            if url is None:
                service = stack.enter_context(OwnService(folder))
                service.start()
            where = url if service is None else service.url
            assert where is not None
            test = FuzzTest(where, findings, clients, service, margin_mib * MIB, patience_s, notes)
            test.run(corpus, jobs, count)
    except KeyboardInterrupt:
        interrupted = True
        notes.append("Interrupted: not all files were sent.")
    return Report(findings.answers, notes, list(dict.fromkeys(findings.violations)), interrupted)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=positive, default=10_000, help="damaged (%(default)s)")
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
            files=arguments.files,
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
        print(f"\nThe files that were to blame, and the log of the service, are in {folder}")
    else:
        shutil.rmtree(folder)
    if report.interrupted:
        return 130
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
