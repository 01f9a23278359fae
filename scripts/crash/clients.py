"""Clients of a crash test, which index, search and delete, and keep a journal."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
from common.client import IMAGE, open_client

from crash.journal import SETTLING_S, SMALL, TIMEOUT_S, Journal, Kind, Outcome, picture

CLIENTS = 4
RETRY_S = 0.3


class Clients:
    """Clients that index, search and delete, each with ids of its own.

    Args:
        ids: number of ids of all clients together.
        seed: of all that is random.
        pictures: numbers of the pictures that they send.
    """

    def __init__(
        self, url: str, journal: Journal, ids: int, seed: int, pictures: range = SMALL
    ) -> None:
        self.journal = journal
        self._url = url
        self._ids = ids
        self._seed = seed
        self._pictures = pictures
        self._others: list[Callable[[], object]] = []
        self._stopped = threading.Event()
        self._turns = [threading.Lock() for _ in range(CLIENTS)]

    def join(self, act: Callable[[], object]) -> None:
        """Let another client take part, which was not asked to work yet.

        Args:
            act: called again and again. When it returns, no answer is outstanding.
        """
        self._others.append(act)
        self._turns.append(threading.Lock())

    @contextmanager
    def working(self) -> Iterator[None]:
        """Send requests while the block runs."""
        with ThreadPoolExecutor(len(self._turns)) as threads:
            workers = [threads.submit(self._work, number) for number in range(CLIENTS)]
            workers += [
                threads.submit(self._repeat, act, turn)
                for act, turn in zip(self._others, self._turns[CLIENTS:], strict=True)
            ]
            try:
                yield
            finally:
                self._stopped.set()
        for worker in workers:
            worker.result()

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Send nothing while the block runs; it begins when no answer is outstanding."""
        with ExitStack() as stack:
            for turn in self._turns:
                stack.enter_context(turn)
            yield

    def _repeat(self, act: Callable[[], object], turn: threading.Lock) -> None:
        while not self._stopped.wait(0.01):
            with turn:
                act()

    def _work(self, number: int) -> None:
        rng = random.Random(f"{self._seed} {number}")
        ids = [f"photo-{index}" for index in range(number, self._ids, CLIENTS)]
        settled_at = dict.fromkeys(ids, 0.0)
        with open_client(self._url, 2 * TIMEOUT_S) as client:
            while not self._stopped.wait(0.01):
                id = rng.choice(ids)
                if settled_at[id] > time.monotonic():
                    continue
                kind, image = self._choose(rng, id)
                # Now and then a client leaves without knowing the outcome of its request.
                is_patient = rng.random() < 0.75
                while self._attempt(client, number, kind, id, image) == "unknown":
                    settled_at[id] = time.monotonic() + SETTLING_S
                    if self._stopped.wait(RETRY_S) or not is_patient:
                        break

    def _choose(self, rng: random.Random, id: str) -> tuple[Kind, int | None]:
        """Choose what to do next with an id that has no outstanding request, and the picture."""
        possible = self.journal.possible[id]
        if possible == {None}:
            kinds: list[Kind] = ["index", "broken"]
            return rng.choices(kinds, [12, 1])[0], rng.choice(self._pictures)
        if None in possible:
            return "delete", None
        kinds = ["delete", "search", "index"]
        kind = rng.choices(kinds, [4, 4, 1])[0]
        return kind, None if kind == "delete" else self.journal.latest[id]

    def _attempt(
        self, client: httpx.Client, number: int, kind: Kind, id: str, image: int | None
    ) -> Outcome:
        """Send a request once, as soon as something accepts a connection."""
        while not self._stopped.is_set():
            with self._turns[number]:
                request = self.journal.begin(number, kind, id, image)
                try:
                    response = self._send(client, kind, id, image)
                except httpx.ConnectError:
                    self.journal.withdraw(request)
                except httpx.TransportError:
                    return self.journal.end(request, None)
                else:
                    return self.journal.end(request, response)
            self._stopped.wait(RETRY_S)
        return "refused"

    def _send(self, client: httpx.Client, kind: Kind, id: str, image: int | None) -> httpx.Response:
        if image is None:
            return client.delete(f"/images/{id}")
        data = picture(image)
        if kind == "search":
            sequence = self.journal.sequences[id]
            return post(client, "/search", data, limit=3, min_sequence=sequence)
        return post(client, "/index", data[:-200] if kind == "broken" else data, id=id)


def post(client: httpx.Client, path: str, data: bytes, **parameters: Any) -> httpx.Response:
    """Send a picture with parameters in the query string."""
    return client.post(path, content=data, params=parameters, headers=IMAGE)
