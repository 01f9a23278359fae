"""What clients of a crash test asked for, what was answered, and what must be stored then."""

from __future__ import annotations

import io
import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import httpx
import numpy as np
from PIL import Image, ImageDraw

# The service gives up on a request after TIMEOUT_S. A request without an answer may take effect
# until then, so its id is left alone a little longer.
TIMEOUT_S, SETTLING_S = 20, 25
# A stored photo's vectors are rounded to float16, and batches round differently.
SAME_DISTANCE = 0.001
PROBLEM = "application/problem+json"  # the type of an answer that is an error

Kind = Literal["index", "broken", "delete", "search"]
Outcome = Literal["unknown", "acknowledged", "refused"]


# Numbers of pictures: small ones, JPEG and PNG; and some of many sizes and kinds.
SMALL, VARIED = range(2**32), range(2**32, 2**33)
# Of these: the longest side, and how many of ten have it. The large ones are all JPEG.
SIDES = {100: 4, 400: 4, 1200: 1, 3000: 1}
LARGE = 400
KINDS = ("JPEG", "JPEG", "PNG", "WEBP", "GIF", "TIFF")


def picture(number: int) -> bytes:
    """Return the picture of a number, always the same bytes: noise and shapes."""
    rng = np.random.default_rng(number)
    noise = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    if number in SMALL:
        width, height = (int(size) for size in rng.integers(64, 161, 2))
        kind = ("JPEG", "PNG")[number % 2]
    else:
        side = int(rng.choice(list(SIDES), p=[share / 10 for share in SIDES.values()]))
        width, height = (side, int(rng.integers(60, side)))[:: 1 if number % 3 else -1]
        kind = "JPEG" if side > LARGE else str(rng.choice(KINDS))
    image = noise.resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for shape in (draw.ellipse, draw.rectangle):
        x, y = rng.integers(0, (width // 2, height // 2))
        corner = (x + rng.integers(8, width // 2), y + rng.integers(8, height // 2))
        shape(((x, y), corner), fill=tuple(map(int, rng.integers(0, 256, 3))))
    encoded = io.BytesIO()
    image.save(encoded, kind)
    return encoded.getvalue()


@dataclass(slots=True)
class Request:
    """One request of a client, and its outcome.

    Attributes:
        number: of the request.
        client: number of the client.
        picture: number of the picture that was sent; None for a deletion.
        outcome: `unknown` until there is an answer, and for good if the answer doesn't tell.
        answer: the status and the text of an answer that is not a success.
        began: when it was sent, seconds of `time.monotonic`.
    """

    number: int
    client: int
    kind: Kind
    id: str
    picture: int | None
    outcome: Outcome = "unknown"
    answer: str = ""
    began: float = field(default_factory=time.monotonic)


class Journal:
    """What clients asked for, and the answers; what must be stored follows from these.

    Each id belongs to one client, which makes one request for it at a time. Every request is
    written to the file before it is sent, and again when it has an answer.

    Args:
        file: gets the journal, as JSON lines.
        may_be_full: whether the disk may be full, so that changes are answered with 507.
        heard: called after each answer with the kind of the request, the status (0: there was
            none), and the seconds.

    Attributes:
        possible: for each id the numbers of the pictures that may be stored under it; None among
            them: perhaps nothing is stored. A single element is certain.
        latest: for each id the last picture sent.
        sequences: for each id the sequence number of its latest acknowledged picture.
        deletions: for each id the sequence number of its latest acknowledged deletion.
        violations: answers that contradict earlier ones, and answers that must not occur.
        outcomes: number of requests by kind and outcome.
        statuses: number of answers by kind and status; 0 where there was none.
        settled_at: when no request without an answer can take effect any more; seconds of
            `time.monotonic`.
    """

    def __init__(
        self,
        file: Path,
        *,
        may_be_full: bool = False,
        heard: Callable[[Kind, int, float], object] | None = None,
    ) -> None:
        self.possible: dict[str, set[int | None]] = defaultdict(lambda: {None})
        self.latest: dict[str, int] = {}
        self.sequences: dict[str, int] = {}
        self.deletions: dict[str, int] = {}
        self.violations: list[str] = []
        self.outcomes: Counter[tuple[Kind, Outcome]] = Counter()
        self.statuses: Counter[tuple[Kind, int]] = Counter()
        self.settled_at = 0.0
        self._may_be_full = may_be_full
        self._heard = heard
        self._file = file.open("w")
        self._lock = threading.Lock()
        self._count = 0

    @property
    def acknowledged(self) -> int:
        """Number of requests that were acknowledged."""
        with self._lock:
            return sum(n for (_, outcome), n in self.outcomes.items() if outcome == "acknowledged")

    def begin(self, client: int, kind: Kind, id: str, picture: int | None = None) -> Request:
        """Record a request that is about to be sent: from now on it may take effect.

        Args:
            picture: number of the picture to send; None for a deletion.
        """
        with self._lock:
            self._count += 1
            request = Request(self._count, client, kind, id, picture)
            self.outcomes[kind, "unknown"] += 1
            if kind == "index" and picture is not None:
                self.latest[id] = picture
            self._write(request)
            return request

    def end(self, request: Request, response: httpx.Response | None) -> Outcome:
        """Record the answer (None: the connection was lost); return the outcome."""
        status = 0 if response is None else response.status_code
        if self._heard is not None:
            self._heard(request.kind, status, time.monotonic() - request.began)
        with self._lock:
            self.statuses[request.kind, status] += 1
            if response is not None:
                self._judge(request, response)
            if request.outcome != "acknowledged":
                request.answer = (
                    "no answer" if response is None else f"{response.status_code} {response.text}"
                )
            elif response is not None and request.kind == "index":
                self.sequences[request.id] = response.json()["images"][0]["sequence"]
            self._conclude(request)
            if request.outcome == "unknown":
                self.settled_at = time.monotonic() + SETTLING_S
            self.outcomes[request.kind, "unknown"] -= 1
            self.outcomes[request.kind, request.outcome] += 1
            self._write(request)
            return request.outcome

    def withdraw(self, request: Request) -> None:
        """Record that a request was not sent, because nothing accepted a connection."""
        with self._lock:
            self.outcomes[request.kind, "unknown"] -= 1
            request.outcome, request.answer = "refused", "no connection"
            self._write(request)

    def _conclude(self, request: Request) -> None:
        """Update what may be stored by the outcome of a request."""
        match request.kind, request.outcome:
            case "index", "acknowledged":
                self.possible[request.id] = {request.picture}
            case "index", "unknown":
                self.possible[request.id].add(request.picture)
            case "delete", "acknowledged":
                self.possible[request.id] = {None}
            case "delete", "unknown":
                self.possible[request.id].add(None)

    def _judge(self, request: Request, response: httpx.Response) -> None:
        """Set the outcome of a request, and record what is wrong with the answer."""
        possible = self.possible[request.id]
        status, media_type = response.status_code, response.headers.get("content-type")
        match request.kind, status:
            case "index", 201:
                request.outcome = "acknowledged"
                existed = response.json()["images"][0]["status"] == "exists"
                if existed and request.picture not in possible:
                    self._violation(request, "was deleted, and came back")
                if not existed and None not in possible:
                    self._violation(request, "was lost: indexing it again created it")
            case "delete", 204:
                request.outcome = "acknowledged"
                sequence = int(response.headers["inset-sequence"])
                # A deletion that is repeated is answered as before.
                if possible == {None} and sequence != self.deletions.get(request.id):
                    self._violation(request, "was deleted, and came back to be deleted again")
                self.deletions[request.id] = sequence
            case "delete", 404:
                request.outcome = "acknowledged"
                if None not in possible:
                    self._violation(request, "was lost: deleting it was answered 404")
            case "search", 200:
                request.outcome = "acknowledged"
                found = [(match["id"], match["distance"]) for match in response.json()["matches"]]
                if not is_first(request.id, found):
                    self._violation(request, f"is not found by its own bytes, but {found[:2]} is")
            case "broken", 415 | 422:
                request.outcome = "refused"
            case "index" | "delete", 507 if self._may_be_full and media_type == PROBLEM:
                request.outcome = "refused"
            case _, 503 if media_type == PROBLEM:
                pass  # the request may have taken effect before something died
            case _, 500 | 503 if media_type != PROBLEM:
                pass  # Ray's proxy answers in text/plain when the ingress dies during a request
            case _:
                refused = 400 <= status < 500 or status == 507
                request.outcome = "refused" if refused else "unknown"
                self._violation(
                    request, f"{request.kind} was answered {status} {media_type}: {response.text!r}"
                )

    def _violation(self, request: Request, what: str) -> None:
        self.violations.append(f"{request.id} (request {request.number}): {what}"[:400])

    def _write(self, request: Request) -> None:
        self._file.write(json.dumps({"at": round(time.time(), 3)} | asdict(request)) + "\n")
        self._file.flush()


def is_first(id: str, found: Sequence[tuple[str, float]]) -> bool:
    """Return whether a search by a photo's own bytes found that photo first.

    Args:
        found: ids and distances, nearest first.
    """
    return bool(found) and found[0][0] == id and found[0][1] < SAME_DISTANCE
