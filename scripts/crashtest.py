"""Kill a service at random moments while clients use it, and check that nothing was lost.

    scripts/crashtest.py --kills 200

Starts a service of its own, with its store in a temporary folder. Clients index, search and delete
small pictures and keep a journal of what was answered, while replicas, the proxy, the controller
and now and then the whole of Ray are killed (SIGKILL). At the end every answer in the journal is
held against the store and against search. Exit status 0 if nothing was lost, else 1, and then the
folder with the store, the log and the journal is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal, get_args

import httpx
import numpy as np
from PIL import Image, ImageDraw
from service import Service, ServiceFailed, kill
from tqdm import tqdm

if TYPE_CHECKING:
    import psutil

CLIENTS = 4
# Ids are used over and over, so that deleting and indexing meet: some more for each kill, up to
# what can be searched for at the end in a minute or two.
IDS, IDS_PER_KILL, MAX_IDS = 12, 4, 1_600

# The service gives up on a request after this. A request that was never answered may take effect
# until then, so its id is left alone for a little longer.
TIMEOUT_S, SETTLING_S = 20, 25
# How long a killed service may take to answer again, and to go on working.
RECOVERY_S = 120
RETRY_S = 0.3
# A stored photo's vectors are rounded to float16, and batches round differently.
SAME_DISTANCE = 0.001

ALL = "the whole of Ray"
# What Ray calls the processes to kill. The owner of the data comes more often than the others.
VICTIMS = {
    "Store": "ServeReplica:inset:Store",
    "ChunkIndex": "ServeReplica:inset:ChunkIndex",
    "Segmenter": "ServeReplica:inset:Segmenter",
    "IndexEncoder": "ServeReplica:inset:IndexEncoder",
    "QueryEncoder": "ServeReplica:inset:QueryEncoder",
    "Ranker": "ServeReplica:inset:Ranker",
    "Ingress": "ServeReplica:inset:Ingress",
    "HTTP proxy": "ProxyActor",
    "Serve controller": "ServeController",
}
ROUND = [*VICTIMS, "Store", "Store", "ChunkIndex"]
KILLS_PER_RESTART = 20

Kind = Literal["index", "broken", "delete", "search"]
Outcome = Literal["unknown", "acknowledged", "refused"]


def picture(number: int) -> bytes:
    """Return the picture of a number, always the same bytes: noise, shapes, JPEG or PNG."""
    rng = np.random.default_rng(number)
    noise = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    width, height = (int(size) for size in rng.integers(64, 161, 2))
    image = noise.resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for shape in (draw.ellipse, draw.rectangle):
        x, y = rng.integers(0, (width // 2, height // 2))
        corner = (x + rng.integers(8, width // 2), y + rng.integers(8, height // 2))
        shape(((x, y), corner), fill=tuple(map(int, rng.integers(0, 256, 3))))
    encoded = io.BytesIO()
    image.save(encoded, ("JPEG", "PNG")[number % 2])
    return encoded.getvalue()


@dataclass(slots=True)
class Request:
    """One request of a client, and what came of it.

    Attributes:
        picture: number of the picture that was sent; None for a deletion.
        outcome: `unknown` until it is answered, and for ever if the answer doesn't say.
        answer: the status and the text of what isn't a success.
    """

    number: int
    client: int
    kind: Kind
    id: str
    picture: int | None
    outcome: Outcome = "unknown"
    answer: str = ""


class Journal:
    """What clients asked for and what they were answered; what must be stored follows from it.

    Each id belongs to one client, which makes one request for it at a time. Every request is
    written to the file before it is sent, and again when it has an answer.

    Args:
        file: where to keep it, JSON lines.

    Attributes:
        possible: for each id the pictures that may be stored under it, by their numbers; None:
            nothing may be. One element: it is certain.
        latest: for each id the last picture sent.
        sequences: for each id the sequence number of its latest acknowledged picture.
        violations: answers that contradict earlier ones, and answers that nobody should get.
        outcomes: how many requests of a kind had an outcome.
        settled_at: when the last request without an answer has happened, or never will; seconds of
            `time.monotonic`.
    """

    def __init__(self, file: Path) -> None:
        self.possible: dict[str, set[int | None]] = defaultdict(lambda: {None})
        self.latest: dict[str, int] = {}
        self.sequences: dict[str, int] = {}
        self.violations: list[str] = []
        self.outcomes: Counter[tuple[Kind, Outcome]] = Counter()
        self.settled_at = 0.0
        self._file = file.open("w")
        self._lock = threading.Lock()
        self._count = 0

    @property
    def acknowledged(self) -> int:
        """How many requests did what they were sent for."""
        with self._lock:
            return sum(n for (_, outcome), n in self.outcomes.items() if outcome == "acknowledged")

    def begin(self, client: int, kind: Kind, id: str, picture: int | None = None) -> Request:
        """Note a request that is about to be sent: from now on it may have happened."""
        with self._lock:
            self._count += 1
            request = Request(self._count, client, kind, id, picture)
            self.outcomes[kind, "unknown"] += 1
            if kind == "index":
                self.latest[id] = picture
            self._write(request)
            return request

    def end(self, request: Request, response: httpx.Response | None) -> Outcome:
        """Note the answer (None: the connection was lost); returns what it says."""
        status = None if response is None else response.status_code
        possible = self.possible[request.id]
        with self._lock:
            self._judge(request, response, possible)
            if request.outcome != "acknowledged":
                request.answer = "no answer" if response is None else f"{status} {response.text}"
            match request.kind, request.outcome:
                case "index", "acknowledged":
                    self.possible[request.id] = {request.picture}
                    self.sequences[request.id] = response.json()["images"][0]["sequence"]
                case "index", "unknown":
                    possible.add(request.picture)
                case "delete", "acknowledged":
                    self.possible[request.id] = {None}
                case "delete", "unknown":
                    possible.add(None)
            if request.outcome == "unknown":
                self.settled_at = time.monotonic() + SETTLING_S
            self.outcomes[request.kind, "unknown"] -= 1
            self.outcomes[request.kind, request.outcome] += 1
            self._write(request)
            return request.outcome

    def withdraw(self, request: Request) -> None:
        """Note that a request was not sent, because there was nobody to send it to."""
        with self._lock:
            self.outcomes[request.kind, "unknown"] -= 1
            request.outcome, request.answer = "refused", "no connection"
            self._write(request)

    def _judge(
        self, request: Request, response: httpx.Response | None, possible: set[int | None]
    ) -> None:
        """Set the outcome of a request, and note what is wrong with the answer."""
        if response is None:
            return
        status, media_type = response.status_code, response.headers.get("content-type")
        match request.kind, status:
            case "index", 201:
                request.outcome = "acknowledged"
                existed = response.json()["images"][0]["status"] == "exists"
                if existed and request.picture not in possible:
                    self._violation(request, "was deleted, and came back")
                if not existed and None not in possible:
                    self._violation(request, "was lost: indexing it again created it anew")
            case "delete", 204:
                request.outcome = "acknowledged"
                if possible == {None}:
                    self._violation(request, "was deleted, and came back to be deleted again")
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
            case _, 503 if media_type == "application/problem+json":
                pass  # what was asked for may have happened before something died
            case _, 500 | 503 if media_type != "application/problem+json":
                pass  # Ray's proxy says so, in plain text, when the ingress dies under a request
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
    """Whether a search by a photo's own bytes found it as it should."""
    return bool(found) and found[0][0] == id and found[0][1] < SAME_DISTANCE


class Clients:
    """Clients that index, search and delete, each its own ids, until they are stopped.

    Args:
        ids: how many ids they have together.
    """

    def __init__(self, url: str, journal: Journal, ids: int, seed: int) -> None:
        self.journal = journal
        self._url = url
        self._ids = ids
        self._seed = seed
        self._stopped = threading.Event()
        self._turns = [threading.Lock() for _ in range(CLIENTS)]

    @contextmanager
    def working(self) -> Iterator[None]:
        """Send requests while the block runs."""
        with ThreadPoolExecutor(CLIENTS) as threads:
            workers = [threads.submit(self._work, number) for number in range(CLIENTS)]
            try:
                yield
            finally:
                self._stopped.set()
        for worker in workers:
            worker.result()

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Send nothing while the block runs; it begins when no answer is awaited any more."""
        with ExitStack() as stack:
            for turn in self._turns:
                stack.enter_context(turn)
            yield

    def _work(self, number: int) -> None:
        rng = random.Random(f"{self._seed} {number}")
        ids = [f"photo-{index}" for index in range(number, self._ids, CLIENTS)]
        settled_at = dict.fromkeys(ids, 0.0)
        with httpx.Client(base_url=self._url, timeout=2 * TIMEOUT_S) as client:
            while not self._stopped.wait(0.01):
                id = rng.choice(ids)
                if settled_at[id] > time.monotonic():
                    continue
                kind, image = self._choose(rng, id)
                # Now and then a client goes away without knowing what became of its request.
                patient = rng.random() < 0.75
                while self._attempt(client, number, kind, id, image) == "unknown":
                    settled_at[id] = time.monotonic() + SETTLING_S
                    if self._stopped.wait(RETRY_S) or not patient:
                        break

    def _choose(self, rng: random.Random, id: str) -> tuple[Kind, int | None]:
        """What to do next with an id that nothing else is going on with, and with which picture."""
        possible = self.journal.possible[id]
        if possible == {None}:
            kind = rng.choices(["index", "broken"], [12, 1])[0]
            return kind, rng.randrange(2**32)
        if None in possible:
            return "delete", None
        kind = rng.choices(["delete", "search", "index"], [4, 4, 1])[0]
        return kind, None if kind == "delete" else self.journal.latest[id]

    def _attempt(
        self, client: httpx.Client, number: int, kind: Kind, id: str, image: int | None
    ) -> Outcome:
        """Send a request once, as soon as there is somebody to connect to."""
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
        match kind:
            case "index":
                return post(client, "/index", picture(image), id=id)
            case "broken":
                return post(client, "/index", picture(image)[:-200], id=id)
            case "search":
                sequence = self.journal.sequences[id]
                return post(client, "/search", picture(image), limit=3, min_sequence=sequence)
            case "delete":
                return client.delete(f"/images/{id}")


def post(client: httpx.Client, path: str, data: bytes, **parameters: Any) -> httpx.Response:
    return client.post(path, content=data, params=parameters, headers={"Content-Type": "image/*"})


# Checking

COUNTED = ("store", "chunk_index")


@dataclass(frozen=True, slots=True)
class Seen:
    """What the service shows of an id.

    Attributes:
        original: its bytes; None: there are none.
        record: what `/images/{id}/record` says; None: nothing.
        found: ids and distances, nearest first, that a search finds by these bytes, or where there
            are none by those that were last sent.
    """

    original: bytes | None
    record: dict[str, Any] | None
    found: list[tuple[str, float]]


def check_listing(
    journal: Journal, records: list[dict[str, Any]], stats: dict[str, Any]
) -> list[str]:
    """Hold the list of all photos, and the counts, against what may be stored.

    Args:
        records: of all pages of `/images`.
        stats: the answer of `/stats`.

    Returns:
        A sentence for each thing that is wrong.
    """
    listed = {record["id"]: record["sha256"] for record in records}
    wrong = check_counts(records, stats)
    if len(listed) < len(records):
        wrong.append(f"{len(records) - len(listed)} photos are listed twice")
    wrong += [f"{id} is listed, and was never sent" for id in listed if id not in journal.possible]
    for id, possible in journal.possible.items():
        if listed.get(id) not in {
            None if number is None else digest(number) for number in possible
        }:
            wrong.append(f"{id} {_contradiction(possible, id in listed)}")
    return wrong


def check_counts(records: list[dict[str, Any]], stats: dict[str, Any]) -> list[str]:
    """Hold what `/stats` counts against the list of all photos; see `check_listing`."""
    counts = {"photos": len(records), "chunks": sum(len(record["chunks"]) for record in records)}
    counted = {part: {name: stats[part][name] for name in counts} for part in COUNTED}
    return [
        f"/stats counts {counted[part]} in {part}, and listed are {counts}"
        for part in COUNTED
        if counted[part] != counts
    ]


def check_photo(id: str, possible: set[int | None], listed: bool, seen: Seen) -> list[str]:
    """Hold what the service shows of an id against what may be stored under it.

    Args:
        possible: see `Journal`.
        listed: whether it is in the list of all photos.

    Returns:
        A sentence for each thing that is wrong.
    """
    parts = {
        "original": seen.original is not None,
        "record": seen.record is not None,
        "listing": listed,
        "search": id in dict(seen.found),
    }
    there = [part for part, is_there in parts.items() if is_there]
    if not there:
        return [] if None in possible else [f"{id} {_contradiction(possible, False)}"]
    if len(there) < len(parts):
        return [f"{id} is there by half: only in {', '.join(there)}"]
    wrong = []
    if seen.original not in [picture(number) for number in possible if number is not None]:
        wrong.append(f"{id} {_contradiction(possible, True)}")
    if seen.record["sha256"] != sha256(seen.original) or not seen.record["chunks"]:
        wrong.append(f"{id} has a record that isn't its own: {seen.record}")
    if not is_first(id, seen.found):
        wrong.append(f"{id} is not what its own bytes find first, but {seen.found[:2]}")
    return wrong


def _contradiction(possible: set[int | None], there: bool) -> str:
    if not there:
        return "was acknowledged, and is lost"
    return "was deleted, and is there" if possible == {None} else "has other bytes than were sent"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@cache
def digest(number: int) -> str:
    """Return the SHA-256 of the picture of a number."""
    return sha256(picture(number))


class Inspector:
    """Asks a service that has recovered, and that nobody else uses, for all that it shows."""

    def __init__(self, url: str, journal: Journal) -> None:
        self._journal = journal
        self._client = httpx.Client(base_url=url, timeout=2 * TIMEOUT_S)

    def check_listing(self) -> list[str]:
        """See `check_listing`. As replicas of the index answer in turns, asks several times."""
        records = list(self._records())
        wrong = check_listing(self._journal, records, self._stats())
        for _ in range(8):
            wrong += check_counts(records, self._stats())
        return list(dict.fromkeys(wrong))

    def check_all(self) -> list[str]:
        """See `check_listing` and `check_photo`."""
        wrong = self.check_listing()
        listed = {record["id"] for record in self._records()}
        sequence = self._stats()["store"]["sequence"]
        ids = sorted(self._journal.possible)
        with ThreadPoolExecutor(CLIENTS) as threads:
            for id, seen in zip(
                ids, threads.map(lambda id: self._look_at(id, sequence), ids), strict=True
            ):
                wrong += check_photo(id, self._journal.possible[id], id in listed, seen)
        return list(dict.fromkeys(wrong))

    def _records(self) -> Iterator[dict[str, Any]]:
        path = "/images?limit=1000"
        while path is not None:
            page = self._client.get(path).raise_for_status().json()
            yield from page["images"]
            path = page["next"]

    def _stats(self) -> dict[str, Any]:
        """The counts, once the replica of the index that counts has followed the store."""
        deadline = time.monotonic() + RECOVERY_S
        while True:
            stats = self._client.get("/stats").raise_for_status().json()
            behind = stats["chunk_index"]["sequence"] < stats["store"]["sequence"]
            if not behind or time.monotonic() > deadline:
                return stats
            time.sleep(RETRY_S)

    def _look_at(self, id: str, sequence: int) -> Seen:
        original = self._get(f"/images/{id}")
        record = self._get(f"/images/{id}/record")
        if original is None and id not in self._journal.latest:
            return Seen(None, None if record is None else record.json(), [])
        query = picture(self._journal.latest[id]) if original is None else original.content
        answer = post(self._client, "/search", query, limit=10, min_sequence=sequence)
        return Seen(
            None if original is None else original.content,
            None if record is None else record.json(),
            [(m["id"], m["distance"]) for m in answer.raise_for_status().json()["matches"]],
        )

    def _get(self, path: str) -> httpx.Response | None:
        response = self._client.get(path)
        return None if response.status_code == 404 else response.raise_for_status()


# Killing


def plan_kills(kills: int, rng: random.Random) -> list[str]:
    """What to kill, in turn: each kind as often as the others of its weight, in random order."""
    plan: list[str] = []
    while len(plan) < kills:
        plan += rng.sample(ROUND, len(ROUND))
    del plan[kills:]
    for start in range(0, kills, KILLS_PER_RESTART):
        plan[rng.randrange(start, min(start + KILLS_PER_RESTART, kills))] = ALL
    return plan


@dataclass(slots=True)
class Killer:
    """Kills what a plan says, at random moments, and takes the time until the service answers.

    Attributes:
        recovery_s: for each kind the seconds from each of its kills until the service was ready
            again; of kills in quick succession, each counts until the end.
        violations: what was wrong when everything had been killed.
    """

    service: Service
    clients: Clients
    rng: random.Random
    recovery_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    violations: list[str] = field(default_factory=list)
    _unanswered: list[tuple[str, float]] = field(default_factory=list)

    def kill(self, kind: str) -> None:
        """Kill one, and mostly wait until the service has recovered.

        Raises:
            ServiceFailed: it doesn't.
        """
        time.sleep(self.rng.uniform(0, 2))
        if kind == ALL:
            self._kill_all()
        else:
            kill(self.rng.choice(self._wait_for_victims(kind)))
            self._unanswered.append((kind, time.monotonic()))
        if kind == ALL or self.rng.random() < 0.7:
            self.wait_for_recovery()

    def wait_for_recovery(self) -> None:
        """Return when the service is ready and has acknowledged some more requests.

        Raises:
            ServiceFailed: it isn't.
        """
        self._wait_until_ready()
        deadline = time.monotonic() + RECOVERY_S
        before = self.clients.journal.acknowledged
        while self.clients.journal.acknowledged < before + CLIENTS:
            if time.monotonic() > deadline:
                raise ServiceFailed(
                    f"It was ready, but did not acknowledge {CLIENTS} requests in {RECOVERY_S} s."
                )
            time.sleep(0.05)

    def _wait_until_ready(self) -> None:
        self.service.wait_until_ready()
        now = time.monotonic()
        for kind, killed_at in self._unanswered:
            self.recovery_s[kind].append(now - killed_at)
        self._unanswered.clear()

    def _wait_for_victims(self, kind: str) -> list[psutil.Process]:
        """The processes of a kind; there are none for a while when one was killed just before."""
        deadline = time.monotonic() + RECOVERY_S
        while not (victims := self.service.workers(VICTIMS[kind])):
            if time.monotonic() > deadline:
                raise ServiceFailed(f"There was no process of the {kind} for {RECOVERY_S} s.")
            time.sleep(0.1)
        return victims

    def _kill_all(self) -> None:
        self.service.kill_everything()
        self._unanswered = [(ALL, time.monotonic())]  # the others have nothing to recover any more
        with self.clients.resting():
            self.service.launch()
            self._wait_until_ready()
            inspector = Inspector(self.service.url, self.clients.journal)
            self.violations += inspector.check_listing()


# The whole


@dataclass(frozen=True, slots=True)
class Report:
    """What a crash test has done and found.

    Attributes:
        kills: how many, by kind.
        recovery_s: see `Killer`.
        outcomes: see `Journal`.
        violations: all that was wrong, each once.
    """

    kills: Counter[str]
    recovery_s: dict[str, list[float]]
    outcomes: Counter[tuple[Kind, Outcome]]
    violations: list[str]

    def __str__(self) -> str:
        lines = [f"{'killed':<18} {'times':>5}   ready again: median   max"]
        for kind, times in self.kills.most_common():
            taken = self.recovery_s[kind] or [float("nan")]
            lines.append(f"{kind:<18} {times:>5} {median(taken):>18.1f} s {max(taken):>5.1f} s")
        lines += ["", f"{'requests':<18} {'acknowledged':>12} {'refused':>8} {'unknown':>8}"]
        for kind in get_args(Kind):
            counts = (self.outcomes[kind, outcome] for outcome in get_args(Outcome))
            unknown, acknowledged, refused = counts
            lines.append(f"{kind:<18} {acknowledged:>12} {refused:>8} {unknown:>8}")
        lines.append("")
        lines += self.violations or ["Nothing was lost."]
        return "\n".join(lines)


def crash(folder: Path, plan: Sequence[str], seed: int, minutes: float = float("inf")) -> Report:
    """Start a service in a folder, kill what a plan says, and check what is left.

    Args:
        folder: empty; `store`, `serve.log` and `journal.jsonl` come to lie there.
        plan: kinds of `VICTIMS`, or `ALL`.
        seed: of all that is random, but for when answers come.
        minutes: begin no kill after this time.
    """
    rng = random.Random(seed)
    journal = Journal(folder / "journal.jsonl")
    service = Service(
        folder,
        {"limits": {"timeout_s": TIMEOUT_S}},
        {"ChunkIndex": {"num_replicas": 2}},
    )
    clients = Clients(service.url, journal, min(MAX_IDS, IDS + IDS_PER_KILL * len(plan)), seed)
    killer = Killer(service, clients, rng)
    kills: Counter[str] = Counter()
    violations = []
    deadline = time.monotonic() + 60 * minutes
    service.launch()
    try:
        service.wait_until_ready()
        with clients.working(), tqdm(total=len(plan), unit="kill") as bar:
            try:
                for kind in plan:
                    if time.monotonic() > deadline:
                        break
                    killer.kill(kind)
                    kills[kind] += 1
                    bar.set_postfix(acknowledged=journal.acknowledged)
                    bar.update()
                killer.wait_for_recovery()
            except BaseException:
                service.kill_everything()  # so that no client waits for its answer
                raise
        time.sleep(max(0, journal.settled_at - time.monotonic()))
        violations += Inspector(service.url, journal).check_all()
        service.stop()
        violations += verify(service.store)
    except (ServiceFailed, httpx.HTTPError) as error:
        violations.append(f"The service did not recover: {error}")
    finally:
        service.kill_everything()
    found = [*journal.violations, *killer.violations, *violations]
    return Report(kills, killer.recovery_s, journal.outcomes, list(dict.fromkeys(found)))


def verify(store: Path) -> list[str]:
    """Check the files of a store that no service uses; a sentence if something is wrong."""
    command = [sys.executable, Path(__file__).with_name("store.py"), "verify", "--path", store]
    outcome = subprocess.run(command, capture_output=True, text=True)
    if outcome.returncode == 0:
        return []
    return [f"scripts/store.py verify: {outcome.stdout[-2000:]}{outcome.stderr[-2000:]}".strip()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="how many (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other kills")
    parser.add_argument("--folder", type=Path, help="an empty one, to keep whatever happens")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="kill no longer than that"
    )
    arguments = parser.parse_args()
    if arguments.kills < 1:
        parser.error("--kills must be at least 1")
    if arguments.folder is None:
        folder = Path(tempfile.mkdtemp(prefix="crashtest-"))
    else:
        folder = arguments.folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            parser.error(f"{folder} is not empty")

    # The service heeds SIGINT only if this process does, which the background of a shell doesn't.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    plan = plan_kills(arguments.kills, random.Random(arguments.seed))
    try:
        report = crash(folder, plan, arguments.seed, arguments.minutes)
    except KeyboardInterrupt:
        print(f"\nInterrupted; the service is stopped. Store, log and journal: {folder}")
        return 130
    print(report)
    if report.violations or arguments.folder is not None:
        print(f"\nThe store, the log and the journal are in {folder}")
    else:
        shutil.rmtree(folder)
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
