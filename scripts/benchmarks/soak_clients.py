"""Clients of a soak test beside those of the crash test, which index, search and delete.

Some send batches, list photos, send or read slowly, or hang up. What changes the store is in the
journal as well, so that the end is held against it.
"""

from __future__ import annotations

import random
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import httpx
from common.client import IMAGE, explain, key_headers, open_client
from crash.checks import sha256
from crash.clients import RETRY_S, Clients
from crash.journal import PROBLEM, SETTLING_S, TIMEOUT_S, VARIED, Journal, picture

MOST_IN_A_BATCH, BATCHES_KEPT = 5, 4
IDS_TO_HANG_UP = [f"hung-up-{number}" for number in range(8)]
PIECES = 20  # in which slow clients send and read
LONGEST_PAUSE_S = 0.5  # between two pieces
READ_AHEAD = 4096  # bytes that the system takes in for a slow reader
QUERIES = 6
FETCHED = 3  # thumbnails of a list
CLIENT = -1  # the number of these clients in the journal


def allowed(response: httpx.Response) -> bool:
    """Return whether a request that changes nothing may be answered so while replicas die."""
    if response.is_success or response.status_code == 404:
        return True
    is_problem = response.headers.get("content-type") == PROBLEM
    # Ray's proxy answers in text/plain when the ingress dies during a request.
    return response.status_code == 503 or (response.status_code == 500 and not is_problem)


class Others:
    """What the other clients do; each of `acts` is for one client, again and again.

    Args:
        journal: what changes the store is recorded there.
        heard: called after each answer that isn't in the journal: kind, status, seconds; the status
            is 0 if there was no answer.
        seed: of all that is random.

    Attributes:
        violations: answers that must not occur.
    """

    def __init__(
        self,
        url: str,
        journal: Journal,
        heard: Callable[[str, int, float], object],
        seed: int,
    ) -> None:
        self.violations: list[str] = []
        self._url = url
        self._journal = journal
        self._heard = heard
        self._rng = random.Random(seed)
        self._client = open_client(url, 2 * TIMEOUT_S)
        self._batches: deque[list[str]] = deque()
        self._settled_at = dict.fromkeys(IDS_TO_HANG_UP, 0.0)
        self._queries = [picture(number) for number in self._rng.sample(VARIED, QUERIES)]

    def join(self, clients: Clients) -> None:
        """Let all of these take part."""
        for act in (self.send_batch, self.look, self.look, self.send_slowly, self.read_slowly):
            clients.join(act)
        clients.join(self.hang_up)

    # What changes the store

    def send_batch(self) -> None:
        """Send several photos in one request, and delete the oldest batch."""
        numbers = [self._rng.choice(VARIED) for _ in range(self._rng.randint(2, MOST_IN_A_BATCH))]
        photos = {sha256(data): (number, data) for number in numbers if (data := picture(number))}
        requests = [
            self._journal.begin(CLIENT, "index", id, number) for id, (number, _) in photos.items()
        ]
        files = [("file", (f"{id}.jpg", data)) for id, (_, data) in photos.items()]
        try:
            answer = self._client.post("/index", files=files)
        except httpx.TransportError:
            answer = None
        for request, part in zip(requests, parts(answer, len(requests)), strict=True):
            self._journal.end(request, part)
        self._batches.append(list(photos))
        time.sleep(RETRY_S)
        if len(self._batches) > BATCHES_KEPT:
            self._delete(self._batches.popleft())

    def hang_up(self) -> None:
        """Hang up in the middle of a body, or before the answer; delete what may be stored."""
        time.sleep(self._rng.uniform(0, 2))
        id = self._rng.choice(IDS_TO_HANG_UP)
        if self._settled_at[id] > time.monotonic():
            return
        if self._journal.possible[id] != {None}:
            self._delete([id])
            return
        number = self._rng.choice(VARIED)
        data = picture(number)
        request = self._journal.begin(CLIENT, "index", id, number)
        headers = IMAGE | {"Content-Length": str(len(data))}
        body = cut(data) if self._rng.random() < 0.5 else iter([data])
        timeout = httpx.Timeout(TIMEOUT_S, read=self._rng.uniform(0.01, 1))
        with open_client(self._url, timeout) as client:
            try:
                answer = client.post("/index", params={"id": id}, content=body, headers=headers)
            except httpx.ConnectError:
                self._journal.withdraw(request)
            except (httpx.TransportError, HungUp):
                self._journal.end(request, None)
                self._settled_at[id] = time.monotonic() + SETTLING_S
            else:
                self._journal.end(request, answer)

    def _delete(self, ids: Sequence[str]) -> None:
        for id in ids:
            request = self._journal.begin(CLIENT, "delete", id)
            try:
                answer = self._client.delete(f"/images/{id}")
            except httpx.ConnectError:
                self._journal.withdraw(request)
            except httpx.TransportError:
                self._journal.end(request, None)
            else:
                self._journal.end(request, answer)

    # What changes nothing

    def look(self) -> None:
        """Search without verification, list photos, or fetch what the list names."""
        time.sleep(self._rng.uniform(0, 0.3))
        way = self._rng.choice([self._search, self._search, self._list])
        way()

    def send_slowly(self) -> None:
        """Search by a picture that comes piece by piece."""
        data = self._rng.choice(self._queries)
        pause = partial(self._rng.uniform, 0, LONGEST_PAUSE_S)
        headers = IMAGE | {"Content-Length": str(len(data))}
        self._ask("slow to send", "POST", "/search", content=slowly(data, pause), headers=headers)

    def read_slowly(self) -> None:
        """Read a long list piece by piece."""
        options = [(socket.SOL_SOCKET, socket.SO_RCVBUF, READ_AHEAD)]
        transport = httpx.HTTPTransport(socket_options=options)
        began = time.monotonic()
        status, length = 0, 0
        with (
            suppress(httpx.TransportError),
            httpx.Client(
                base_url=self._url,
                headers=key_headers() | {"Accept-Encoding": "identity"},
                timeout=2 * TIMEOUT_S,
                transport=transport,
            ) as client,
            client.stream("GET", "/images?limit=1000") as answer,
        ):
            length = int(answer.headers.get("content-length", 0))
            for piece in answer.iter_raw(max(1, length // PIECES)):
                length -= len(piece)
                time.sleep(self._rng.uniform(0, LONGEST_PAUSE_S))
            status = answer.status_code
            if not allowed(answer):
                self.violations.append(f"GET /images was answered {status}")
        self._heard("slow to read", status, time.monotonic() - began)

    def _search(self) -> None:
        parameters = {"verify": "none", "limit": self._rng.choice([1, 10, 100])}
        query = self._rng.choice(self._queries)
        found = self._ask("bare search", "POST", "/search", params=parameters, content=query)
        distances = [match["distance"] for match in found.get("matches", [])]
        if distances != sorted(distances):
            self.violations.append(f"a search was answered in the wrong order: {distances}")

    def _list(self) -> None:
        parameters = {"limit": 50, "chunks": self._rng.random() < 0.5}
        listing = self._ask("list", "GET", "/images", params=parameters)
        photos = listing.get("images", [])
        for photo in self._rng.sample(photos, min(FETCHED, len(photos))):
            self._ask("thumbnail", "GET", f"/images/{photo['id']}/thumbnail")

    def _ask(self, kind: str, method: str, path: str, **request: Any) -> Mapping[str, Any]:
        """Send a request; return the content of a success if it is JSON, else nothing."""
        request.setdefault("headers", IMAGE if "content" in request else {})
        began = time.monotonic()
        try:
            answer = self._client.request(method, path, **request)
        except httpx.TransportError:
            self._heard(kind, 0, time.monotonic() - began)
            time.sleep(RETRY_S)
            return {}
        self._heard(kind, answer.status_code, time.monotonic() - began)
        if not allowed(answer):
            self.violations.append(f"{method} {path} was answered {explain(answer)}"[:400])
        is_json = answer.headers.get("content-type", "").startswith("application/json")
        return answer.json() if answer.is_success and is_json else {}


class HungUp(Exception):
    """A client has hung up in the middle of its body."""


def cut(data: bytes) -> Iterator[bytes]:
    """Yield half of a body, then hang up."""
    yield data[: len(data) // 2]
    raise HungUp


def slowly(data: bytes, pause: Callable[[], float]) -> Iterator[bytes]:
    """Yield a body in pieces."""
    size = -(-len(data) // PIECES)
    for start in range(0, len(data), size):
        yield data[start : start + size]
        time.sleep(pause())


def parts(answer: httpx.Response | None, count: int) -> list[httpx.Response | None]:
    """Return the answer to a batch as the answers to its photos, each as if it was sent alone.

    If all have failed, the answer is that of the first, and doesn't tell how the others have.
    """
    if answer is None or answer.status_code != 201:
        return [answer, *[None] * (count - 1)]
    alone: list[httpx.Response | None] = []
    for image in answer.json()["images"]:
        if image["status"] == "failed":
            error = image["error"]
            headers = {"content-type": PROBLEM}
            part = httpx.Response(error["status"], headers=headers, json=error)
        else:
            part = httpx.Response(201, json={"images": [image]})
        alone.append(part)
    return alone
