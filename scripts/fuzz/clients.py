"""Clients of a fuzz test, which send files and hold the answers against what is allowed."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Literal, Protocol

import httpx
from common.beside import repeated
from common.client import IMAGE, explain, open_client

from fuzz.good_files import BROKEN, GOOD, LARGE, OTHER, Expected

# How a file is sent: a search without and with verification, or a photo that is deleted again.
Way = Literal["search", "verified", "index"]
WAYS: tuple[Way, ...] = ("search", "verified", "index")

# What any file may be answered with, so long as nobody knows what is in it. 400: it has no bytes.
ANY: Expected = GOOD | LARGE | OTHER | BROKEN | frozenset({400})
BUSY = 503
ATTEMPTS, RETRY_S = 10, 1.0
CANARY_S = 60  # in which a small photo must have an answer that isn't 503
MOST_WORDS = 120  # characters of an answer that are shown
RECENT = 64  # files that may be to blame when a replica is lost


@dataclass(frozen=True, slots=True)
class Job:
    """A file to send.

    Attributes:
        name: of the file.
        row: of the report in which its answer counts.
        data: its bytes.
        way: how it is sent.
        expected: statuses that it may be answered with; None: of `ANY`, or 503.
    """

    name: str
    row: str
    data: bytes
    way: Way
    expected: Expected | None = None

    @property
    def id(self) -> str:
        """The id of its photo."""
        return f"fuzz-{self.name.replace('/', '-')}"


class Sent(Protocol):
    """What was sent, and may be to blame; its attributes are those of `Job`."""

    @property
    def name(self) -> str: ...
    @property
    def row(self) -> str: ...
    @property
    def data(self) -> bytes: ...


@dataclass
class Findings:
    """What was answered, and what was wrong; files that were are written to a folder.

    Attributes:
        folder: gets the files.
        answers: how often a row of the report was answered by a status; 0 for no answer.
        violations: sentences.
    """

    folder: Path
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    _closed: bool = False
    _recent: deque[Sent] = field(default_factory=lambda: deque(maxlen=RECENT))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def close(self) -> None:
        """Take note of nothing more: the service is about to be stopped."""
        with self._lock:
            self._closed = True

    def begin(self, job: Sent) -> None:
        """Remember that a file is sent now."""
        with self._lock:
            self._recent.append(job)

    def count(self, job: Sent, status: int) -> None:
        """Count an answer."""
        with self._lock:
            if not self._closed:
                self.answers[job.row, status] += 1

    def report(self, sentence: str, job: Sent) -> None:
        """Add a violation by a file, and write the file."""
        with self._lock:
            if not self._closed:
                self.violations.append(f"{sentence}: {self._save(job)}")

    def report_of_recent(self, sentence: str) -> None:
        """Add a violation that one of the last files is to blame for, and write them all."""
        with self._lock:
            if not self._closed:
                for job in self._recent:
                    self._save(job)
                suspects = f"one of the last {len(self._recent)} files, in {self.folder}"
                self.violations.append(f"{sentence}: {suspects}")

    def report_at_large(self, sentence: str) -> None:
        """Add a violation that no file is to blame for alone."""
        with self._lock:
            self.violations.append(sentence)

    def _save(self, job: Sent) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / job.name.replace("/", "-")
        path.write_bytes(job.data)
        return path


class Clients:
    """Clients that send files, several at a time.

    Args:
        url: of the service.
        findings: gets the answers.
        count: number of clients.
        abort: called when this process is interrupted, so that no client waits for its answer.
    """

    def __init__(
        self, url: str, findings: Findings, count: int, abort: Callable[[], object] = lambda: None
    ) -> None:
        self._url = url
        self._findings = findings
        self._count = count
        self._abort = abort
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def send_all(
        self, jobs: Iterable[Job], done: Callable[[Job], object] = lambda job: None
    ) -> None:
        """Send files, each as soon as a client is free, and return when all have an answer.

        Args:
            done: called after each.
        """
        queue = iter(jobs)
        with ThreadPoolExecutor(self._count) as threads:
            workers = [threads.submit(self._work, queue, done) for _ in range(self._count)]
            try:
                for worker in workers:
                    worker.result()
            except BaseException:
                self._stopped.set()
                self._abort()
                raise

    def _work(self, queue: Iterator[Job], done: Callable[[Job], object]) -> None:
        with open_client(self._url) as client:
            while not self._stopped.is_set():
                with self._lock:
                    job = next(queue, None)
                if job is None:
                    break
                self._findings.begin(job)
                self._send(client, job)
                done(job)

    def _send(self, client: httpx.Client, job: Job) -> None:
        """Send a file, count the answer, and report what isn't allowed."""
        try:
            answer = self._ask(client, job)
            self._findings.count(job, answer.status_code)
            if (sentence := judge(job, answer)) is not None:
                self._findings.report(sentence, job)
            if job.way == "index" and (answer.is_success or answer.status_code >= 500):
                self._delete(client, job, stored=answer.is_success)
        except httpx.TransportError as error:
            self._findings.count(job, 0)
            sentence = f"{job.name} ({job.way}) got no answer ({type(error).__name__} {error})"
            self._findings.report(sentence, job)

    def _ask(self, client: httpx.Client, job: Job) -> httpx.Response:
        """Send a file; one of the corpus again while the answer is 503, which says nothing."""
        path = "/index" if job.way == "index" else "/search"
        of_ways = {"search": {"verify": "none"}, "verified": {}, "index": {"id": job.id}}
        for _ in range(ATTEMPTS):
            answer = client.post(path, params=of_ways[job.way], content=job.data, headers=IMAGE)
            if answer.status_code != BUSY or job.expected is None or self._stopped.wait(RETRY_S):
                break
        return answer

    def _delete(self, client: httpx.Client, job: Job, *, stored: bool) -> None:
        """Delete a photo; if it is not known whether it is stored, it may be missing."""
        for _ in range(ATTEMPTS):
            answer = client.delete(f"/images/{job.id}")
            if answer.status_code != BUSY or self._stopped.wait(RETRY_S):
                break
        allowed = {204} if stored else {204, 404, BUSY}
        if answer.status_code not in allowed:
            self._findings.report(f"{job.id} can't be deleted ({explain(answer)})", job)


def judge(job: Job, answer: httpx.Response) -> str | None:
    """Return what is wrong with an answer; None if nothing is."""
    allowed = ANY | {BUSY} if job.expected is None else job.expected
    status = 200 if answer.status_code == 201 else answer.status_code
    if status not in allowed:
        listed = ", ".join(map(str, sorted(allowed)))
        return (
            f"{job.name} ({job.way}) was answered {explain(answer)[:MOST_WORDS]!r} and not {listed}"
        )
    if status >= 400 and answer.headers.get("content-type") != "application/problem+json":
        return f"{job.name} ({job.way}) was answered {status} without a problem"
    return None


class Canary:
    """A client that searches by a small good photo every second.

    Args:
        photo: its bytes.
        patience_s: an answer that takes longer is a violation.

    Attributes:
        seconds: how long each answer took, with the attempts that were answered by 503.
        refused: how many attempts were answered by 503.
    """

    def __init__(self, url: str, photo: bytes, findings: Findings, patience_s: float) -> None:
        self.seconds: list[float] = []
        self.refused = 0
        self._url = url
        self._photo = photo
        self._patience_s = patience_s
        self._findings = findings
        self._stopped = threading.Event()

    @contextmanager
    def singing(self, period_s: float = 1) -> Iterator[None]:
        """Ask every `period_s` seconds while the block runs."""
        with (
            open_client(self._url) as client,
            repeated(lambda: self._sing(client), period_s),
        ):
            try:
                yield
            finally:
                self._stopped.set()  # it waits for no 503 to pass any more

    def __str__(self) -> str:
        if not self.seconds:
            return "a small photo beside them: no answer yet"
        return (
            f"a small photo beside them: {len(self.seconds)} answers, "
            f"median {1000 * median(self.seconds):.0f} ms, longest {max(self.seconds):.1f} s, "
            f"{self.refused} times 503"
        )

    def _sing(self, client: httpx.Client) -> None:
        start = time.perf_counter()
        wrong = self._ask(client)
        taken = time.perf_counter() - start
        if wrong is None:
            self.seconds.append(taken)
            if taken > self._patience_s:
                wrong = f"a small photo waited {taken:.0f} s"
        if wrong is not None:
            self._findings.report_of_recent(wrong)

    def _ask(self, client: httpx.Client) -> str | None:
        """Search until the answer isn't 503; return what was wrong."""
        deadline = time.monotonic() + CANARY_S
        while True:
            with suppress(httpx.TransportError):
                answer = client.post(
                    "/search", params={"verify": "none"}, content=self._photo, headers=IMAGE
                )
                if answer.status_code == 200:
                    return None
                if answer.status_code != BUSY:
                    return f"a small good photo was answered {explain(answer)}"
                self.refused += 1
            if time.monotonic() > deadline or self._stopped.wait(0.2):
                return "a small good photo was not answered"
