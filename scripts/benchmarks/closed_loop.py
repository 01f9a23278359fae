"""Clients in a closed loop: each sends its next request when the last one was answered.

Threads and `http.client`, for the clients run on the cores of the service that they measure.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from tqdm import tqdm

TIMEOUT_S = 130  # more than the service's own limit
HEADERS = {"Content-Type": "image/*"}
TURNS = 4  # answers of each client, at least, before a rate is told


class Answer(NamedTuple):
    """An answer to a request.

    Attributes:
        began, ended: of `time.perf_counter`, seconds.
        status: of HTTP; 0 if there was no answer.
        found: what was read from its content; None unless it is a success.
    """

    began: float
    ended: float
    status: int
    found: Any

    @property
    def is_good(self) -> bool:
        return 200 <= self.status < 300


class Client:
    """A client that keeps its connection."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT_S)

    def post(self, path: str, body: bytes, read: Callable[[bytes], Any] = len) -> Answer:
        """Send a picture.

        Args:
            read: what to make of the content of a success.
        """
        began, status, found = time.perf_counter(), 0, None
        try:
            self._connection.request("POST", path, body, HEADERS)
            response = self._connection.getresponse()
            content = response.read()
            status = response.status
        except (OSError, http.client.HTTPException):
            self._connection.close()
        ended = time.perf_counter()
        if 200 <= status < 300:
            found = read(content)
        return Answer(began, ended, status, found)

    def close(self) -> None:
        self._connection.close()


class ClosedLoop:
    """Clients that send requests while a block runs.

    Args:
        path: what they post to.
        bodies: what they send, one after another; when these end, so do the clients.
        clients: how many.
        read: see `Client.post`.

    Attributes:
        answers: in the order in which they came.
    """

    def __init__(
        self,
        url: str,
        path: str,
        bodies: Iterator[bytes],
        clients: int,
        read: Callable[[bytes], Any] = len,
    ) -> None:
        self.answers: list[Answer] = []
        self.clients = clients
        self._url, self._path, self._read = url, path, read
        self._bodies, self._turn = bodies, threading.Lock()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._work) for _ in range(clients)]

    def __enter__(self) -> ClosedLoop:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def is_running(self) -> bool:
        """Whether any answers are to come."""
        return any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        client = Client(self._url)
        while not self._stopped.is_set():
            with self._turn:
                body = next(self._bodies, None)
            if body is None:
                break
            answer = client.post(self._path, body, self._read)
            self.answers.append(answer)
            if answer.status == 0:
                time.sleep(0.1)  # a service that is down is no reason to fill the memory
        client.close()


class Stretch(NamedTuple):
    """What clients were answered in a stretch of time.

    Attributes:
        answers: those that came in it.
        seconds: how long it is.
    """

    answers: list[Answer]
    seconds: float

    @property
    def good(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.is_good]

    @property
    def errors(self) -> int:
        return len(self.answers) - len(self.good)

    @property
    def rate(self) -> float:
        """Successes per second."""
        return len(self.good) / self.seconds

    @property
    def latency(self) -> dict[str, float]:
        """Percentiles of the successes, milliseconds."""
        return percentiles([1000 * (answer.ended - answer.began) for answer in self.good])


def percentiles(times: Sequence[float]) -> dict[str, float]:
    """Return the median, and what 95 and 99 of 100 don't exceed; nothing of nothing."""
    if not len(times):
        return {}
    return {f"p{q}": float(np.percentile(times, q)) for q in (50, 95, 99)}


def steady(loops: Sequence[ClosedLoop], seconds: float) -> list[Stretch]:
    """Return what each loop was answered while all of them were busy.

    The stretch begins when each client of each loop has had an answer, and lasts until there are
    enough of them, too: photos come out of a pipeline in batches.

    Args:
        seconds: how long it is at least.
    """
    for loop in loops:
        wait_until_answered(loop, loop.clients)
    began = time.perf_counter()
    starts = [len(loop.answers) for loop in loops]
    time.sleep(seconds)
    for loop, start in zip(loops, starts, strict=True):
        wait_until_answered(loop, start + TURNS * loop.clients)
    ended = time.perf_counter()
    return [
        Stretch([answer for answer in loop.answers if began <= answer.ended < ended], ended - began)
        for loop in loops
    ]


def wait_until_answered(loop: ClosedLoop, count: int) -> None:
    """Return when so many answers have come, or no more will."""
    while len(loop.answers) < count and loop.is_running():
        time.sleep(0.01)


def complete(loop: ClosedLoop, total: int, unit: str) -> Stretch:
    """Return what a loop was answered in all, when the last answer has come.

    Args:
        total: how many requests these are, for the progress bar.
        unit: what a request is, for the same.
    """
    with tqdm(total=total, unit=unit) as bar:
        while loop.is_running():
            bar.update(len(loop.answers) - bar.n)
            time.sleep(0.05)
        bar.update(len(loop.answers) - bar.n)
    began, ended = min(a.began for a in loop.answers), max(a.ended for a in loop.answers)
    return Stretch(loop.answers, ended - began)
