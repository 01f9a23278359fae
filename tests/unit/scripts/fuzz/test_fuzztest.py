"""That the fuzz test builds what it says, and would notice what it is there to notice."""

from __future__ import annotations

import io
import random
import tempfile
import zlib
from collections import Counter
from pathlib import Path

import fuzztest
import httpx
import pytest
from fuzz.clients import Canary, Clients, Findings, Job, judge
from fuzz.corpus import GROUPS, build_corpus
from fuzz.damage import MOST_BYTES as MOST_BYTES_DAMAGED
from fuzz.damage import damage, damaged_file, with_right_sums
from fuzz.good_files import BROKEN, GOOD, MOST_BYTES, good_files
from fuzz.watch import Watch
from fuzz.writers.gif import gif, lzw_zeros
from fuzz.writers.iso_media import avif, jpeg_2000
from fuzz.writers.jpeg import jpeg
from fuzz.writers.png import deflated_zeros, png
from fuzz.writers.tiff import packbits_zeros, tiff, tiff_lzw_zeros
from fuzz.writers.webp import webp
from fuzztest import damaged_jobs
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.support.running.examples import examples
from tests.support.running.waiting import wait_until

PROBLEM = {"content-type": "application/problem+json"}


# Writers


@given(count=st.integers(0, 3 * 2**20))
@settings(max_examples=examples(20))
def test_deflated_zeros_are_as_many_as_they_say(count):
    assert zlib.decompress(deflated_zeros(count)) == bytes(count)


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


WRITERS = {
    "PNG": png,
    "GIF": gif,
    "JPEG": jpeg,
    "WEBP": webp,
    "JPEG2000": jpeg_2000,
    "TIFF": lambda width, height: tiff(width, height, deflated_zeros(width * height), 8),
}


@pytest.mark.parametrize("kind", WRITERS)
@given(width=st.integers(1, 700), height=st.integers(1, 700))
@settings(max_examples=examples(25))
def test_pillow_reads_what_is_written(kind, width, height):
    image = opened(WRITERS[kind](width, height))
    assert image.format == kind
    assert image.size == (width, height)
    assert len(set(image.convert("L").get_flattened_data())) == 1


@pytest.mark.parametrize("count", [1, 2, 127, 128, 129, 3839, 4095, 4096, 40_000, 20_000_000])
def test_runs_of_zeros_are_as_long_as_they_say(count):
    for number, zeros in ((32_773, packbits_zeros), (5, tiff_lzw_zeros)):
        image = opened(tiff(count, 1, zeros(count), number))
        assert image.getextrema() == (0, 0)
    assert len(lzw_zeros(count)) < 10 + count / 8 or count > 4096
    assert len(lzw_zeros(20_000_000)) < 20_000


def test_an_avif_grid_has_all_its_tiles():
    image = opened(avif(3, 2, 64))
    assert image.size == (192, 128)


# The corpus


@pytest.fixture(scope="module")
def corpus():
    return build_corpus()


def test_the_corpus_is_always_the_same(corpus):
    assert [file.data for file in build_corpus()] == [file.data for file in corpus]


def test_no_file_of_the_corpus_is_large_and_no_two_have_one_name(corpus):
    assert max(len(file.data) for file in corpus) <= MOST_BYTES
    assert len({file.name for file in corpus}) == len(corpus) > 700
    assert all(file.expected for file in corpus)


def test_few_bytes_declare_many_pixels(corpus):
    """A bomb of which each pixel takes a byte would be none."""
    sizes = {file.name: len(file.data) for file in corpus}
    assert sizes["bombs/webp-34-bytes"] <= 34
    assert sizes["bombs/jp2-codestream"] < 200
    assert sizes["bombs/jpeg-thousand-scans"] < 300_000
    assert sizes["bombs/tiff-16x16-in-a-tile-of-46000"] < 2_200_000
    assert sizes["at_the_limit/gif-at"] < 30_000


def test_pillow_identifies_the_good_files():
    for name, data in good_files().items():
        image = opened(data)
        family = {"jp2": "JPEG2000", "jpeg-mpo": "MPO"}
        kind = name.partition("-")[0]
        assert image.format == family.get(name, family.get(kind, kind.upper()))
        assert min(image.size) >= 48


def test_every_group_has_files(corpus):
    groups = Counter(file.name.partition("/")[0] for file in corpus)
    assert set(groups) == {group.__name__ for group in GROUPS}


# Damage


@given(seed=st.integers(0, 2**32), number=st.integers(0, 2**32))
def test_a_damaged_file_is_always_the_same_and_not_too_large(seed, number):
    file = damaged_file(seed, number)
    assert file == damaged_file(seed, number)
    assert len(file.data) <= MOST_BYTES_DAMAGED


def test_damaged_files_differ_and_come_of_every_container():
    damaged = [damaged_file(0, number) for number in range(500)]
    assert len({file.data for file in damaged}) > 480
    kinds = {name.partition("-")[0] for name in good_files()}
    assert {file.container for file in damaged} == kinds


@given(data=st.binary(max_size=50), seed=st.integers(0, 2**32))
def test_any_bytes_can_be_damaged(data, seed):
    damage(random.Random(seed), data, {"one": b"1", "two": b"22"})


def test_sums_of_a_png_are_made_right():
    good = png(5, 5)
    place = good.index(b"IDAT") + 4
    broken = good[:place] + b"\0" + good[place + 1 :]
    assert with_right_sums(good) == good
    assert with_right_sums(broken) != broken
    assert len(with_right_sums(broken)) == len(broken)
    assert with_right_sums(good[:50]) == good[:50]


def test_the_same_seed_sends_the_same_files_in_the_same_ways():
    assert list(damaged_jobs(3, 50)) == list(damaged_jobs(3, 50))
    assert list(damaged_jobs(3, 50)) != list(damaged_jobs(4, 50))
    assert {job.way for job in damaged_jobs(3, 50)} == {"search", "verified", "index"}


# What is noticed


def answer(status: int, headers: dict[str, str] | None = None) -> httpx.Response:
    headers = PROBLEM if headers is None and status >= 400 else headers or {}
    return httpx.Response(status, headers=headers, json={"detail": "because"})


@pytest.mark.parametrize(
    ("expected", "status", "wrong"),
    [
        (GOOD, 200, None),
        (GOOD, 201, None),
        (GOOD, 422, "and not 200"),
        (BROKEN, 422, None),
        (BROKEN, 200, "and not 422"),
        (BROKEN, 503, "and not 422"),
        (None, 200, None),
        (None, 413, None),
        (None, 503, None),
        (None, 500, "500: because"),
        (None, 404, "404: because"),
    ],
)
def test_answers_are_held_against_what_is_allowed(expected, status, wrong):
    sentence = judge(Job("a", "row", b"", "search", expected), answer(status))
    assert sentence is None if wrong is None else wrong in sentence


def test_an_error_that_is_no_problem_is_noticed():
    plain = answer(422, {"content-type": "text/plain"})
    assert "without a problem" in judge(Job("a", "row", b"", "search"), plain)


class Server:
    """Answers requests by their method and their body, in the place of a service."""

    def __init__(self, monkeypatch, answers) -> None:
        self.requests: list[httpx.Request] = []
        self._answers = answers
        client = httpx.Client

        def make(**options):
            return client(transport=httpx.MockTransport(self._reply), **options)

        monkeypatch.setattr("fuzz.clients.httpx.Client", make)
        monkeypatch.setattr("fuzz.clients.RETRY_S", 0)

    def _reply(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        reply = self._answers[request.method, request.content]
        if isinstance(reply, list):
            reply = reply.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply


def send(monkeypatch, folder: Path, jobs: list[Job], answers) -> tuple[Findings, Server]:
    server = Server(monkeypatch, answers)
    findings = Findings(folder)
    done: list[Job] = []
    Clients("http://service", findings, 2).send_all(jobs, done.append)
    assert Counter(done) == Counter(jobs)
    return findings, server


def test_files_that_were_to_blame_are_kept(monkeypatch, tmp_path):
    jobs = [
        Job(f"group/{name}", "row", name.encode(), "search") for name in ("good", "bad", "gone")
    ]
    answers = {
        ("POST", b"good"): answer(200),
        ("POST", b"bad"): answer(500),
        ("POST", b"gone"): httpx.ReadError("reset"),
    }
    findings, _ = send(monkeypatch, tmp_path, jobs, answers)
    assert findings.answers == {("row", 200): 1, ("row", 500): 1, ("row", 0): 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["group-bad", "group-gone"]
    assert (tmp_path / "group-bad").read_bytes() == b"bad"
    assert len(findings.violations) == 2


def test_a_photo_that_was_stored_is_deleted_again(monkeypatch, tmp_path):
    job = Job("group/a", "row", b"a", "index", GOOD)
    answers = {("POST", b"a"): answer(201), ("DELETE", b""): [answer(503), answer(204)]}
    findings, server = send(monkeypatch, tmp_path, [job], answers)
    assert findings.violations == []
    assert [request.method for request in server.requests] == ["POST", "DELETE", "DELETE"]
    assert server.requests[0].url.params["id"] == "fuzz-group-a"
    assert server.requests[1].url.path == "/images/fuzz-group-a"


def test_a_photo_that_cannot_be_deleted_is_reported(monkeypatch, tmp_path):
    job = Job("a", "row", b"a", "index")
    answers = {("POST", b"a"): answer(201), ("DELETE", b""): answer(404)}
    findings, _ = send(monkeypatch, tmp_path, [job], answers)
    assert "can't be deleted" in findings.violations[0]


def test_a_file_of_the_corpus_is_sent_until_its_answer_says_something(monkeypatch, tmp_path):
    job = Job("a", "row", b"a", "search", BROKEN)
    answers = {("POST", b"a"): [answer(503), answer(503), answer(422)]}
    findings, _ = send(monkeypatch, tmp_path, [job], answers)
    assert findings.violations == []
    assert findings.answers == {("row", 422): 1}


def test_a_small_photo_that_gets_no_answer_is_reported(monkeypatch, tmp_path):
    Server(monkeypatch, {("POST", b"photo"): answer(500)})
    findings = Findings(tmp_path)
    findings.begin(Job("suspect", "row", b"suspect", "search"))
    canary = Canary("http://service", b"photo", findings, patience_s=10)
    with canary.singing(period_s=0.01):
        wait_until(lambda: findings.violations, "the canary reports")
    assert "a small good photo was answered 500" in findings.violations[0]
    assert (tmp_path / "suspect").read_bytes() == b"suspect"


def test_a_small_photo_that_waits_for_long_is_reported(monkeypatch, tmp_path):
    Server(monkeypatch, {("POST", b"photo"): answer(200)})
    findings = Findings(tmp_path)
    with Canary("http://service", b"photo", findings, patience_s=0).singing(period_s=0.01):
        wait_until(lambda: findings.violations, "the canary reports")
    assert "a small photo waited" in findings.violations[0]


class Process:
    def __init__(self, pid: int, *words: str) -> None:
        self.pid = pid
        self._words = list(words)

    def cmdline(self) -> list[str]:
        return self._words

    def create_time(self) -> float:
        return 1.0


class Family:
    """The processes of a service."""

    def __init__(self, *processes: Process) -> None:
        self.of = list(processes)

    def processes(self) -> list[Process]:
        return self.of


def test_a_replica_that_is_lost_is_noticed_and_a_decoder_that_is_replaced_is_not_lost():
    store = Process(1, "ray::ServeReplica:inset:Store.apply")
    decodes = ["python", "-P", "-m", "deployments.decoding.worker"]
    idle = Process(9, "ray::IDLE")
    family, lost = Family(store, Process(2, *decodes, "5"), idle), []
    watch = Watch(family, lost.append)
    family.of = [store, Process(3, *decodes, "6")]
    watch.look()
    assert lost == []
    assert watch.decoders == 2
    family.of = [Process(4, "ray::ServeReplica:inset:Store")]
    watch.look()
    watch.look()
    assert lost == ["ServeReplica:inset:Store was lost (process 1)"]


# The command


def test_a_report_shows_each_answer_and_what_was_wrong():
    answers = Counter({("corpus: good", 200): 2, ("corpus: good", 201): 1, ("damaged: png", 0): 1})
    lines = str(fuzztest.Report(answers, ["a note"], [])).splitlines()
    assert lines[1].split() == ["corpus:", "good", "3", "3", "0", "0", "0", "0", "0", "0"]
    assert lines[2].split()[-1] == "1"
    assert lines[-1] == "No file did any harm."
    assert str(fuzztest.Report(answers, [], ["it broke"])).endswith("it broke")


@pytest.mark.parametrize(
    ("violations", "interrupted", "status"),
    [([], False, 0), (["it broke"], False, 1), ([], True, 130)],
)
def test_the_exit_status_tells_and_what_went_wrong_is_kept(
    tmp_path, monkeypatch, violations, interrupted, status
):
    folder = tmp_path / "fuzztest"

    def fuzz(where: Path, **_: object) -> fuzztest.Report:
        assert where == folder
        return fuzztest.Report(Counter(), [], violations, interrupted)

    monkeypatch.setattr(fuzztest, "fuzz", fuzz)
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **_: folder.mkdir() or str(folder))
    monkeypatch.setattr("sys.argv", ["fuzztest.py"])
    assert fuzztest.main() == status
    assert folder.exists() == bool(violations)


def test_a_file_to_repeat_that_is_missing_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["fuzztest.py", "--repeat", str(tmp_path / "none")])
    with pytest.raises(SystemExit):
        fuzztest.main()
    assert "is not a file" in capsys.readouterr().err
