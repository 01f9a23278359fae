"""Clients in a closed loop: each sends its next request when the last one was answered.

They are threads with `http.client`, because they use the cores of the service that they measure.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from common.client import IMAGE, key_headers
from tqdm import tqdm

TIMEOUT_S = 130  # longer than the service's own limit
TURNS = 4  # fewest answers of each client that a rate is computed from


class Answer(NamedTuple):
    """An answer to a request.

    Attributes:
        began, ended: seconds of `time.perf_counter`.
        status: of HTTP; 0 if there was no answer.
        found: what was read from the content of a success; otherwise None.
    """

    began: float
    ended: float
    status: int
    found: Any

    @property
    def is_good(self) -> bool:
        """Whether it is a success."""
        return 200 <= self.status < 300


class Client:
    """A client that keeps its connection.

    Args:
        content: headers that say what it sends.
    """

    def __init__(self, url: str, content: dict[str, str] = IMAGE) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT_S)
        self._headers = content | key_headers()

    def post(self, path: str, body: bytes, read: Callable[[bytes], Any] = len) -> Answer:
        """Send a body.

        Args:
            read: from the content of a success to `Answer.found`.
        """
        began, status, found = time.perf_counter(), 0, None
        try:
            self._connection.request("POST", path, body, self._headers)
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
        """Close the connection."""
        self._connection.close()


class ClosedLoop:
    """Clients that send requests while a block runs.

    Args:
        path: to post to.
        bodies: what they send, one after another; the clients end with them.
        clients: how many.
        read: see `Client.post`.
        content: see `Client`.

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
        content: dict[str, str] = IMAGE,
    ) -> None:
        self.answers: list[Answer] = []
        self.clients = clients
        self._url, self._path, self._read, self._content = url, path, read, content
        self._bodies, self._turn = bodies, threading.Lock()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._work) for _ in range(clients)]

    def __enter__(self) -> ClosedLoop:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def is_running(self) -> bool:
        """Return whether more answers may come."""
        return any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        client = Client(self._url, self._content)
        while not self._stopped.is_set():
            with self._turn:
                body = next(self._bodies, None)
            if body is None:
                break
            answer = client.post(self._path, body, self._read)
            self.answers.append(answer)
            if answer.status == 0:
                time.sleep(0.1)  # a service that is down must not fill the memory with answers
        client.close()


class Stretch(NamedTuple):
    """The answers to clients in a stretch of time.

    Attributes:
        answers: those that came in this time.
        seconds: its length.
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
    """Return `p50`, `p95` and `p99` of times; an empty dict if there are none."""
    if not len(times):
        return {}
    return {f"p{q}": float(np.percentile(times, q)) for q in (50, 95, 99)}


def steady(loops: Sequence[ClosedLoop], seconds: float) -> list[Stretch]:
    """Return the answers to each loop while all of them were busy.

    The stretch begins when each client has had an answer. It lasts until each client had `TURNS`
    more on average, because photos come out of a pipeline in batches.

    Args:
        seconds: its least length.
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
    """Return when so many answers have come, or when the loop has ended."""
    while len(loop.answers) < count and loop.is_running():
        time.sleep(0.01)


def complete(loop: ClosedLoop, total: int, unit: str) -> Stretch:
    """Wait for the last answer to a loop, and return all answers.

    Args:
        total: number of requests, for the progress bar.
        unit: what a request is called beside the bar.
    """
    with tqdm(total=total, unit=unit) as bar:
        while loop.is_running():
            bar.update(len(loop.answers) - bar.n)
            time.sleep(0.05)
        bar.update(len(loop.answers) - bar.n)
    began, ended = min(a.began for a in loop.answers), max(a.ended for a in loop.answers)
    return Stretch(loop.answers, ended - began)
