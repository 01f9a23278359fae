"""Photos that are sent several in a request: which are sent again, and which failure is whose."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator, Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from common import indexing
from common.client import KEY, NotAllowed
from common.indexing import ASKED_IN_VAIN, Summary, index_files
from fastapi import Request

from deployments.ingress.bodies import read_images


class Service:
    """Takes photos in the place of a service.

    Attributes:
        stored: the bytes of the photos, by their names.
        known: the SHA-256 in the record of an id.
        may_read: what a record that is not there is answered by.
        groups: the photos of each request, as their names.
        answers: in the place of a request's answer; each is used once.
        bad: entries in the place of `created`, by the name of the photo; a list one after another.
        cut_after: so many lines, by the number of the request, from 1.
        asked: ids whose records were asked for.
        most_at_once: photos that were in work.
        waits: how long clients would have waited.
    """

    def __init__(self) -> None:
        self.stored: dict[str, bytes] = {}
        self.known: dict[str, str] = {}
        self.groups: list[list[str]] = []
        self.answers: list[Callable[[list[str]], httpx.Response | None]] = []
        self.bad: dict[str, Any] = {}
        self.cut_after: dict[int, int] = {}
        self.metadata: list[str | None] = []
        self.headers: list[httpx.Headers] = []
        self.asked: list[str] = []
        self.may_read = 404
        self.at_once = self.most_at_once = 0
        self.waits: list[float] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.headers.append(request.headers)
        if request.method == "GET":
            digest = request.url.path.split("/")[2]
            self.asked.append(digest)
            if digest in self.known:
                return httpx.Response(200, json={"sha256": self.known[digest]})
            return httpx.Response(self.may_read, json={"detail": "no"})
        photos, fields = await read(request)
        self.groups.append([name for name, _ in photos])
        self.metadata.append(fields.get("metadata"))
        if self.answers:
            answer = self.answers.pop(0)(self.groups[-1])
            if answer is not None:
                return answer
        headers = {"Content-Type": "application/x-ndjson"}
        lines = self.lines(photos, self.cut_after.get(len(self.groups)))
        return httpx.Response(200, headers=headers, content=lines)

    async def lines(
        self, photos: list[tuple[str, bytes]], cut_after: int | None
    ) -> AsyncIterator[bytes]:
        self.at_once += len(photos)
        try:
            for part in reversed(range(len(photos))):  # the last is done first
                self.most_at_once = max(self.most_at_once, self.at_once)
                await asyncio.sleep(0.002)
                if cut_after == 0:
                    yield b'{"status": "crea'
                    raise httpx.ReadError("reset")
                cut_after = None if cut_after is None else cut_after - 1
                name, data = photos[part]
                entry = self.bad.get(name) or {
                    "status": "exists" if name in self.stored else "created",
                    "filename": f"{name}\u2028",  # for `str.splitlines`, a line ends there
                }
                if isinstance(entry, list):
                    entry = entry.pop(0) if len(entry) > 1 else entry[0]
                if entry["status"] != "failed":
                    self.stored[name] = data
                self.at_once -= 1
                line = json.dumps(entry | {"part": part}, ensure_ascii=False).encode() + b"\n"
                yield line[:9]
                yield line[9:]
        except httpx.ReadError:
            self.at_once = 0
            raise


async def read(request: httpx.Request) -> tuple[list[tuple[str, bytes]], dict[str, str]]:
    """Read a body as the service does."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": request.content}

    headers = [(name.lower(), value) for name, value in request.headers.raw]
    scope = {"type": "http", "method": "POST", "headers": headers}
    images, fields = await read_images(Request(scope, receive), 10**9, frozenset({"metadata"}))
    return [(image.filename, await image.read()) for image in images], fields


@pytest.fixture
def service(answers, monkeypatch) -> Service:
    """Return the service that clients talk to, who never wait."""
    service = answers(Service())
    sleep, thread = asyncio.sleep, threading.get_ident()

    async def wait(seconds: float) -> None:
        if threading.get_ident() != thread:  # what other tests left running in the background
            return await sleep(seconds)
        if seconds >= 0.1:
            service.waits.append(seconds)
        await sleep(min(seconds, 0.002))

    monkeypatch.setattr(indexing.asyncio, "sleep", wait)
    return service


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    for number in range(12):
        (tmp_path / f"{number:02}.jpg").write_bytes(b"photo %d" % number)
    return sorted(tmp_path.iterdir())


def run(files: list[Path], in_flight: int = 8, **options: Any) -> Summary:
    return asyncio.run(index_files("http://service", files, in_flight, **options))


def refuse(status: int, **headers: str) -> Callable[[list[str]], httpx.Response]:
    return lambda names: httpx.Response(
        status, headers=headers, json={"detail": f"{len(names)} of them"}
    )


def test_every_photo_arrives_with_its_name_and_bytes(service, files) -> None:
    summary = run(files)
    assert (summary.counts, summary.failures) == ({"created": 12}, [])
    assert service.stored == {file.name: file.read_bytes() for file in files}
    assert sorted(name for group in service.groups for name in group) == sorted(service.stored)
    assert len(service.groups) < 12
    assert service.metadata == [None] * len(service.groups)


@pytest.mark.parametrize(
    "name", ['a "b".jpg', "a%22b.jpg", "=?utf-8?B?YQ==?=.jpg", "a;b=c.jpg", "a\\b\n.jpg", "\u2028"]
)
def test_names_of_any_characters_arrive(service, tmp_path, name) -> None:
    (tmp_path / name).write_bytes(b"photo")
    assert run([tmp_path / name]).counts == {"created": 1}
    assert list(service.stored) == [name]


@pytest.mark.parametrize(
    ("name", "sent"), [("Zu\u0308rich.jpg".encode(), "Zürich.jpg"), (b"caf\xe9.jpg", "caf?.jpg")]
)
def test_a_file_of_any_name_is_sent(service, tmp_path, name, sent) -> None:
    """A Mac has names in NFD, and old disks have names that are not UTF-8."""
    file = tmp_path / os.fsdecode(name)
    file.write_bytes(b"photo")
    assert run([file]).counts == {"created": 1}
    assert list(service.stored) == [sent]


@pytest.mark.parametrize("in_flight", [1, 2, 8, 40])
def test_about_as_many_photos_are_in_work_as_were_asked_for(service, files, in_flight) -> None:
    more = [files[0].with_name(f"more-{number}.jpg") for number in range(60)]
    for number, file in enumerate(more):
        file.write_bytes(b"more %d" % number)
    assert run([*files, *more], in_flight).counts == {"created": 72}
    assert in_flight / 2 <= service.most_at_once <= in_flight
    assert max(map(len, service.groups)) <= min(in_flight, 16)


def test_a_request_is_not_large(service, files, monkeypatch) -> None:
    monkeypatch.setattr(indexing, "MOST_BYTES", 20)
    files[3].write_bytes(b"x" * 50)
    assert run(files).counts == {"created": 12}
    for group in service.groups:
        assert len(group) == 1 or sum(len(service.stored[name]) for name in group) <= 20


def test_metadata_goes_with_each_request(service, files) -> None:
    run(files, metadata={"camera": "é", "year": 2024})
    assert {text and json.loads(text)["camera"] for text in service.metadata} == {"é"}


def test_what_is_stored_is_not_sent_again(service, files) -> None:
    digests = [sha256(file.read_bytes()).hexdigest() for file in files]
    service.known = {digest: digest for digest in digests[:7]}
    service.known[digests[7]] = "0" * 64  # an id that somebody gave to another photo
    assert run(files).counts == {"exists": 7, "created": 5}
    assert set(service.stored) == {file.name for file in files[7:]}


def test_new_photos_are_sent_without_a_question_until_one_is_stored_already(
    service, files, tmp_path
) -> None:
    """Of 200 photos 16 are asked about, then one that comes later turns out to be stored."""
    later = [tmp_path / f"later-{number:03}.jpg" for number in range(200)]
    for number, file in enumerate(later):
        file.write_bytes(b"later %d" % number)
    run(later[:100], in_flight=1)
    assert len(service.asked) == ASKED_IN_VAIN
    service.asked.clear()
    digests = [sha256(file.read_bytes()).hexdigest() for file in later]
    service.known = {digest: digest for digest in digests[50:100]}
    counts = run([*later[100:150], *later[50:100], *later[150:]], in_flight=1).counts
    assert counts == {"created": 100, "exists": 50}
    # The first one that is stored is sent, because nobody asked; the others are asked about.
    assert len(service.asked) == ASKED_IN_VAIN + 49 + ASKED_IN_VAIN
    assert later[50].name in service.groups[50]


def test_a_key_that_may_not_read_sends_everything(service, files) -> None:
    service.may_read = 403
    service.stored = {files[0].name: b""}
    assert run(files, in_flight=2).counts == {"exists": 1, "created": 11}
    assert len(service.asked) <= 2  # it is told once, or as often as it asked before


def test_bad_files_fail_alone_with_their_reasons(service, files, tmp_path) -> None:
    problem = {"status": 422, "detail": "The JPEG is cut."}
    service.bad = {"03.jpg": {"status": "failed", "error": problem}}
    files[5].unlink()
    summary = run(files)
    assert summary.counts == {"created": 10, "failed": 2}
    reasons = {file.name: reason for file, reason in summary.failures}
    assert reasons["03.jpg"] == "422: The JPEG is cut."
    assert "No such file" in reasons["05.jpg"]


def test_a_photo_that_found_a_full_queue_is_sent_again(service, files) -> None:
    problem = {"status": 503, "detail": "The queue is full."}
    failed = {"status": "failed", "error": problem}
    service.bad = {"03.jpg": [failed, failed, {"status": "created"}]}
    assert run(files).counts == {"created": 12}
    sent = [name for group in service.groups for name in group]
    assert sorted(sent) == sorted([file.name for file in files] + ["03.jpg"] * 2)
    service.bad = {"03.jpg": [failed]}
    summary = run(files[3:4])
    assert summary.failures == [(files[3], "given up after 5 attempts: 503: The queue is full.")]


def test_after_a_cut_only_the_photos_without_a_line_are_sent_again(service, files) -> None:
    service.cut_after = {1: 0, 2: 2, 3: 1}
    summary = run(files)
    assert (summary.counts, summary.failures) == ({"created": 12}, [])
    assert set(service.stored) == {file.name for file in files}
    sent = [name for group in service.groups for name in group]
    lost = len(service.groups[0]) + len(service.groups[1][:-2]) + len(service.groups[2][:-1])
    assert len(sent) == 12 + lost


def test_an_answer_that_ends_early_is_like_a_cut(service, files) -> None:
    service.answers = [lambda names: httpx.Response(200, content=b'{"part": 0, "status"')]
    assert run(files).counts == {"created": 12}


def test_a_photo_that_brings_the_service_down_is_not_blamed_on_others(service, files) -> None:
    def crash(names: list[str]) -> None:
        service.answers.append(crash)
        if "03.jpg" in names:
            raise httpx.ReadError("reset")

    service.answers = [crash]
    summary = run(files)
    assert summary.counts == {"created": 11, "failed": 1}
    assert summary.failures == [(files[3], "given up after 5 attempts: ReadError reset")]
    assert service.waits[-4:] == [1, 2, 4, 8]


def test_an_overloaded_service_is_asked_again_when_it_says(service, files) -> None:
    service.answers = [refuse(503, **{"Retry-After": "7"})] * 2
    assert run(files).counts == {"created": 12}
    assert set(service.waits) == {7}


def test_too_many_at_once_are_fewer_next_time(service, files) -> None:
    def at_most_two(names: list[str]) -> httpx.Response | None:
        service.answers.append(at_most_two)
        return refuse(413)(names) if len(names) > 2 else None

    service.answers = [at_most_two]
    assert run(files).counts == {"created": 12}
    refused = [group for group in service.groups if len(group) > 2]
    assert len(refused) <= 3  # those that were under way
    assert service.waits == []


def test_a_file_that_is_too_large_fails_alone(service, files) -> None:
    def too_large(names: list[str]) -> httpx.Response | None:
        service.answers.append(too_large)
        return refuse(413)(names) if "03.jpg" in names else None

    service.answers = [too_large]
    summary = run(files)
    assert summary.counts == {"created": 11, "failed": 1}
    assert summary.failures == [(files[3], "413: 1 of them")]


@pytest.mark.parametrize("status", [400, 408, 500])
def test_what_refuses_a_request_as_a_whole_is_asked_for_each_photo(service, files, status) -> None:
    def refuse_one(names: list[str]) -> httpx.Response | None:
        service.answers.append(refuse_one)
        return refuse(status)(names) if "03.jpg" in names else None

    service.answers = [refuse_one]
    summary = run(files)
    assert summary.failures == [(files[3], f"{status}: 1 of them")]
    assert summary.counts["created"] == 11


@pytest.mark.parametrize(("status", "advice"), [(401, "Set INSET_KEY"), (403, "of them")])
def test_without_the_right_key_the_first_answer_ends_the_run(
    service, files, status, advice
) -> None:
    service.answers = [refuse(status)] * 12
    with pytest.raises(NotAllowed, match=f"{status}: .*{advice}"):
        run(files)
    assert sum(map(len, service.groups)) <= 8  # those that were under way
    assert service.stored == {}


def test_an_unknown_key_ends_the_run_before_anything_is_sent(service, files) -> None:
    service.may_read = 401
    with pytest.raises(NotAllowed, match=r"401: no Set INSET_KEY"):
        run(files)
    assert service.groups == []


def test_the_key_is_sent_with_every_request(service, files, monkeypatch, capfd) -> None:
    monkeypatch.setenv(KEY, "inset_secret")
    run(files)
    assert {headers["Authorization"] for headers in service.headers} == {"Bearer inset_secret"}
    assert "inset_secret" not in "".join(capfd.readouterr())


def test_an_interruption_ends_requests_and_leaves_nothing_running(service, files) -> None:
    async def interrupted() -> int:
        work = asyncio.create_task(index_files("http://service", files, 4))
        while not service.stored:
            await asyncio.sleep(0.001)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        return len(asyncio.all_tasks())

    assert asyncio.run(interrupted()) == 1
    assert 0 < len(service.stored) < 12
