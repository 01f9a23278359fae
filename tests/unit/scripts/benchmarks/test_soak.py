"""scripts/bench.py soak: what it counts, what it takes for wrong, and what its clients send."""

from __future__ import annotations

import io
import random
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import bench
import httpx
import psutil
import pytest
from benchmarks import soak
from benchmarks.memory import MIB
from benchmarks.soak import Soak, mishaps
from benchmarks.soak_clients import Others, allowed, parts
from benchmarks.soak_samples import (
    ALL,
    PLACE_COLUMNS,
    ROLE_COLUMNS,
    TIME_COLUMNS,
    Sample,
    Tally,
    Usage,
    growth_by_place,
    growth_by_role,
    size_of,
    time_row,
    usage_by_role,
)
from common.serve_run import ServiceFailed
from common.tables import table
from crash.checks import sha256
from crash.clients import Clients
from crash.journal import PROBLEM, SMALL, VARIED, Journal, picture
from PIL import Image


def problem(status: int) -> httpx.Response:
    return httpx.Response(
        status, headers={"content-type": PROBLEM}, json={"status": status, "detail": "no"}
    )


# What is taken


def sample(
    at: float, store: int, megabytes: int, files: int = 5, restarted: bool = False
) -> Sample:
    usage = Usage(1, megabytes * MIB, files, 7)
    roles = {"Store": usage, ALL: usage} | ({"Decoder": Usage(2, MIB, 1, 1)} if restarted else {})
    return Sample(at, roles, {"the store": store * MIB})


SAMPLES = [
    sample(0, 1, 100),
    sample(10, 1, 120),
    sample(50, 2, 999),
    sample(90, 3, 150, files=9, restarted=True),
    sample(100, 5, 170, files=9),
]


def test_what_grew_is_the_difference_of_the_means_of_two_quarters():
    rows = {row["role"]: row for row in growth_by_role(SAMPLES)}
    assert list(rows) == ["Store", "Decoder", ALL]
    store = rows["Store"]
    assert (store["MiB_first"], store["MiB_last"], store["MiB_grew"]) == (110, 160, 50)
    assert (store["open files_grew"], store["threads_grew"], store["number"]) == (4, 0, 1)
    assert (rows["Decoder"]["MiB_first"], rows["Decoder"]["MiB_last"]) == (0, 0.5)
    (place,) = growth_by_place(SAMPLES)
    assert (place["place"], place["MiB_first"], place["MiB_grew"]) == ("the store", 1, 3)
    assert "| Store | 1 | 110 | 160 | +50 |" in table(list(rows.values()), ROLE_COLUMNS)
    assert "| the store | 1.0 | 4.0 | +3.0 |" in table([place], PLACE_COLUMNS)


def test_a_single_sample_did_not_grow():
    assert {row["MiB_grew"] for row in growth_by_role(SAMPLES[:1])} == {0}


def test_a_row_of_time_has_its_last_sample_and_its_own_answers():
    assert time_row(SAMPLES, 0) == {}
    assert time_row(SAMPLES, 20) == {"memory": 120, "files": 5, "threads": 7, "disk": 1}
    tally = Tally()
    began = time.monotonic()
    for status, seconds in ((200, 0.1), (200, 0.3), (503, 9), (0, 9)):
        tally.count("search", status, seconds)
    tally.count("index", 201, 1.0)
    row = tally.row(began, began + 10)
    assert (row["searches"], row["photos"]) == (0.2, 0.1)
    assert row["searches_p50"] == pytest.approx(200)
    assert row["errors"] == "none: 1, 503: 1"
    nothing = {"searches": 0, "photos": 0, "bare": 0, "errors": ""}
    assert tally.row(began + 10, began + 20) == nothing
    assert len(table([row], TIME_COLUMNS).splitlines()) == 3


def test_processes_are_measured_by_their_role():
    me = psutil.Process()
    gone = psutil.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    found = usage_by_role([me, gone])
    assert found[ALL].processes == 1
    assert found[ALL].memory > MIB
    with open(__file__):
        more = usage_by_role([me])[ALL]
    assert more.files > found[ALL].files
    assert more.threads == me.num_threads()


def test_a_folder_takes_what_its_files_take(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(bytes(range(256)) * 4096)
    assert MIB <= size_of(tmp_path) < 1.5 * MIB


# What is sent, and what may be answered


def test_pictures_are_of_many_sizes_and_kinds():
    kinds, sizes = Counter(), []
    for number in random.Random(0).sample(VARIED, 60):
        data = picture(number)
        kinds[Image.open(io.BytesIO(data)).format] += 1
        sizes.append(len(data))
    assert len(kinds) >= 5
    assert max(sizes) > 20 * min(sizes)


@pytest.mark.parametrize(
    ("answer", "may_be"),
    [
        (httpx.Response(200), True),
        (problem(404), True),
        (problem(503), True),
        (httpx.Response(500, text="Internal Server Error"), True),
        (problem(500), False),
        (problem(507), False),
        (problem(400), False),
    ],
)
def test_an_answer_that_must_not_be_is_told(answer: httpx.Response, may_be: bool):
    assert allowed(answer) == may_be


def test_the_answer_to_a_batch_is_that_to_each_of_its_photos():
    stored = {"status": "created", "id": "a", "sequence": 3}
    failed = {"status": "failed", "error": {"status": 507, "detail": "full"}}
    answer = httpx.Response(201, json={"images": [stored, failed]})
    answer.elapsed = Counter()  # whatever it is
    first, second = parts(answer, 2)
    assert first.json() == {"images": [stored]}
    assert (second.status_code, second.headers["content-type"]) == (507, PROBLEM)
    full = problem(507)
    assert parts(full, 3) == [full, None, None]
    assert parts(None, 2) == [None, None]


@dataclass
class Shop:
    """Stands in the place of a service: it stores, deletes, lists, and finds what is first."""

    photos: dict[str, int] = field(default_factory=dict)
    sequence: int = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = request.read()
        if request.method == "DELETE":
            self.sequence += 1
            known = self.photos.pop(request.url.path.split("/")[-1], None)
            headers = {"inset-sequence": str(self.sequence)}
            return problem(404) if known is None else httpx.Response(204, headers=headers)
        if request.url.path == "/index":
            many = body.split(b"\r\n\r\n")[1:]
            photos = [part.rsplit(b"\r\n--", 1)[0] for part in many] if len(many) > 1 else [body]
            images = [self._store(request.url.params.get("id"), data) for data in photos]
            return httpx.Response(201, json={"images": images})
        if request.url.path == "/search":
            matches = [{"id": "x", "distance": 0.1}, {"id": "y", "distance": 0.3}]
            return httpx.Response(200, json={"matches": matches})
        if request.url.path == "/images":
            return httpx.Response(200, json={"images": [{"id": id} for id in self.photos]})
        return httpx.Response(200, content=b"thumbnail")

    def _store(self, id: str | None, data: bytes) -> dict[str, object]:
        self.sequence += 1
        id = id or sha256(data)
        self.photos[id] = self.sequence
        return {"status": "created", "id": id, "sequence": self.sequence}


@pytest.fixture
def tally() -> list[tuple[str, int]]:
    return []


@pytest.fixture
def others(tmp_path: Path, answers, tally, monkeypatch) -> Others:
    answers(Shop())
    monkeypatch.setattr("benchmarks.soak_clients.VARIED", SMALL)  # which are made sooner
    monkeypatch.setattr("benchmarks.soak_clients.time.sleep", lambda _: None)
    journal = Journal(tmp_path / "journal.jsonl")
    return Others(
        "http://shop", journal, lambda kind, status, _: tally.append((kind, status)), seed=0
    )


def test_batches_are_in_the_journal_and_the_oldest_is_deleted(others: Others):
    for _ in range(7):
        others.send_batch()
    journal = others._journal
    assert journal.violations == others.violations == []
    kept = {id for id, possible in journal.possible.items() if None not in possible}
    assert kept == {id for batch in others._batches for id in batch}
    assert 0 < len(kept) < len(journal.possible)
    assert journal.outcomes["delete", "acknowledged"] == len(journal.possible) - len(kept)


def test_who_hung_up_may_have_stored_it(others: Others):
    for _ in range(30):
        others.hang_up()
    journal = others._journal
    assert journal.violations == []
    assert journal.outcomes["index", "unknown"] > 0
    assert any(possible > {None} for possible in journal.possible.values())


def test_the_slow_and_the_curious_are_counted(others: Others, tally):
    for _ in range(20):  # at first the list is empty
        others.look()
    others.send_batch()
    for _ in range(8):
        others.look()
    others.send_slowly()
    assert others.violations == []
    assert {"bare search", "list", "thumbnail", "slow to send"} == {kind for kind, _ in tally}
    assert {status for _, status in tally} == {200}


def test_a_wrong_answer_is_noticed(others: Others, answers, monkeypatch):
    wrong = {"matches": [{"id": "x", "distance": 0.3}, {"id": "y", "distance": 0.1}]}
    for answer in (httpx.Response(200, json=wrong), problem(500)):
        monkeypatch.setattr(others._client, "request", lambda *_, answer=answer, **__: answer)
        others._search()
    first, second = others.violations
    assert "wrong order" in first
    assert "answered 500" in second


def test_others_take_part_in_the_work_and_rest_with_it(tmp_path: Path):
    clients = Clients("http://127.0.0.1:9", Journal(tmp_path / "journal.jsonl"), 4, 0)
    acts: list[int] = []
    begun = threading.Event()

    def act() -> None:
        acts.append(1)
        begun.set()

    clients.join(act)
    with clients.working():
        assert begun.wait(10)
        with clients.resting():
            before = len(acts)
            time.sleep(0.1)
            assert len(acts) == before


# The whole


def test_replicas_die_and_each_third_time_the_disk_is_full():
    coming = mishaps(random.Random(0))
    first = [next(coming) for _ in range(60)]
    assert first[2::3] == ["full disk"] * 20
    assert {"Store", "Verifier", "Ingress"} <= set(first)
    assert "HTTP proxy" not in first


@pytest.mark.parametrize(
    ("wrong", "error", "status", "last"),
    [
        ([], None, 0, "Nothing was lost"),
        (["a is lost"], None, 1, "a is lost"),
        ([], KeyboardInterrupt(), 130, "No answer was wrong."),
        ([], ServiceFailed("it ended"), 1, "did not recover: it ended"),
    ],
)
def test_the_exit_status_tells_and_the_table_is_printed_all_the_same(
    tmp_path: Path, monkeypatch, capsys, wrong, error, status, last
):
    folder = tmp_path / "soak"
    folder.mkdir()
    monkeypatch.setattr("tempfile.mkdtemp", lambda **_: str(folder))
    monkeypatch.setattr(soak, "end_on_signals", lambda: None)

    def work(of: Soak) -> None:
        of.samples += SAMPLES
        of._checked += wrong
        if error is not None:
            raise error

    monkeypatch.setattr(Soak, "_work", work)
    for name in ("start", "stop"):
        monkeypatch.setattr(f"common.own_service.OwnService.{name}", lambda _: None)
    monkeypatch.setattr("crash.checks.Inspector.check_all", lambda _: [])
    monkeypatch.setattr(soak, "verify", lambda *_: [])
    monkeypatch.setattr("sys.argv", ["bench.py", "soak", "--minutes", "1"])
    with pytest.raises(SystemExit) as ended:
        bench.main()
    printed = capsys.readouterr().out
    assert ended.value.code == status
    assert "| Store | 1 | 110 | 160 | +50 |" in printed
    assert last in printed
    assert folder.exists() == bool(status == 1)
