"""That odd requests are what the fuzz test says, and that it would notice a wrong answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import fuzztest
import pytest
from fuzz.clients import Findings
from fuzz.odd_requests import OddRequest, odd_request, odd_requests, seeds
from fuzz.raw_requests import RawClients, read_outline
from fuzztest import Plan
from starlette.testclient import TestClient

from deployments.ingress.app import build_app
from deployments.ingress.static_files import FOLDER
from deployments.settings import LimitSettings
from tests.support.ingress.fake_inset import FakeInset

HEAD = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
GET = HEAD + b"\r\n"
POST = b"POST /index HTTP/1.1\r\nHost: localhost\r\n"


# What is sent


@pytest.fixture(scope="module")
def service():
    inset = FakeInset()
    inset.limits = LimitSettings()
    return TestClient(build_app(inset), base_url="http://localhost", raise_server_exceptions=False)


def test_the_same_seed_sends_the_same_requests():
    requests = list(odd_requests(3, 200))
    assert requests == [odd_request(3, number) for number in range(200)]
    assert requests != list(odd_requests(4, 200))
    assert len({request.data for request in requests}) > 150


def test_every_operation_is_tried_and_every_file_of_the_page(service):
    paths = service.get("/openapi.json").json()["paths"]
    described = {f"{method.upper()} {path}" for path, item in paths.items() for method in item}
    tried = {seed.operation for seed in seeds()}
    assert tried == described | {"GET /", "GET /page/{name}", "GET /openapi.json"}
    assert {f"/page/{file.name}" for file in FOLDER.iterdir()} <= {seed.path for seed in seeds()}


@pytest.mark.parametrize("seed", seeds(), ids=lambda seed: seed.operation)
def test_a_seed_is_one_whole_request(seed):
    outline = read_outline(seed.draft().render())
    assert (outline.whole, len(outline.messages), outline.is_broken) == (1, 1, False)
    assert outline.keeps


@pytest.mark.parametrize("seed", seeds(), ids=lambda seed: seed.operation)
def test_a_seed_is_valid(service, seed):
    draft = seed.draft()
    query = "&".join(parameter.decode() for parameter in draft.parameters)
    answer = service.request(
        draft.method.decode(),
        f"{seed.path}?{query}",
        headers=[*draft.headers],
        content=draft.body,
    )
    # What stands in for the service here knows no photo by these ids.
    assert answer.status_code < 400 or "{id}" in seed.operation, answer.text


def test_many_odd_requests_are_read_and_many_are_not():
    outlines = [read_outline(request.data) for request in odd_requests(0, 1000)]
    assert 400 < sum(outline.keeps for outline in outlines) < 900
    assert sum(outline.is_broken for outline in outlines) > 100


@pytest.mark.parametrize(
    ("data", "whole", "is_broken", "keeps"),
    [
        (GET, 1, False, True),
        (GET + GET, 2, False, True),
        (GET + HEAD, 1, False, False),
        (GET + b"\0\0", 1, True, False),
        (HEAD, 0, False, False),
        (b"\0\0", 0, True, False),
        (b"", 0, False, False),
        (POST + b"Content-Length: 3\r\n\r\nab", 0, False, False),
        (POST + b"Content-Length: 3\r\n\r\nabc", 1, False, True),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", 1, False, True),
        (POST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 0, True, False),
        (HEAD + b"Connection: close\r\n\r\n", 1, False, False),
    ],
)
def test_it_is_known_what_has_to_be_answered(data, whole, is_broken, keeps):
    outline = read_outline(data)
    assert (outline.whole, outline.is_broken, outline.keeps) == (whole, is_broken, keeps)


# What is noticed


def answer(status: str, body: bytes = b"{}", *headers: bytes, kind: bytes = b"text/plain") -> bytes:
    lines = [b"HTTP/1.1 %b" % status.encode(), b"Content-Type: " + kind, *headers]
    lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, b"", b""]) + body


def problem(status: str) -> bytes:
    return answer(status, kind=b"application/problem+json")


def close(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def server(reply: bytes | Callable[[socket.socket], object]) -> Iterator[tuple[str, list[int]]]:
    """Answer all that comes by the same; yields the URL, and how often each connection was used."""
    used: list[int] = []
    sockets: list[socket.socket] = []

    def serve(connection: socket.socket, number: int) -> None:
        with connection, suppress(OSError):
            while connection.recv(65_536):
                used[number] += 1
                if callable(reply):
                    reply(connection)
                else:
                    connection.sendall(reply)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                sockets.append(connection)
                used.append(0)
                threading.Thread(target=serve, args=(connection, len(used) - 1)).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", used
        listener.shutdown(socket.SHUT_RDWR)
        for connection in sockets:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def send(folder: Path, reply: bytes | Callable[[socket.socket], object], *data: bytes) -> Findings:
    findings = Findings(folder)
    requests = [OddRequest(f"{n}.http", "row", one) for n, one in enumerate(data)]
    done: list[OddRequest] = []
    with server(reply) as (url, _):
        RawClients(url, findings, answer_s=0.5).send_all(iter(requests), done.append)
    assert sorted(done, key=lambda one: one.name) == requests
    return findings


@pytest.mark.parametrize(
    ("reply", "wrong"),
    [
        (answer("200 OK"), None),
        (problem("422 U"), None),
        (problem("503 S"), None),
        (problem("507 I"), None),
        (problem("500 I"), "was answered 500"),
        (problem("504 G"), "was answered 504"),
        (answer("404 N"), "404 without a problem"),
        (answer("500 I", b"Internal Server Error"), "was answered 500"),
        (answer("400 B", b"Invalid HTTP request received."), None),
        (answer("400 B", b"Invalid"), "400 without a problem"),
        (answer("408 R"), "408 without a problem"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", None),
        (b"HTTP/1.1 100 C\r\n\r\nHTTP/1.1 204 N\r\n\r\n", None),
        (b"SSH-2.0\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 ", "no answer in 0 s"),
        (b"", "no answer in 0 s"),
        (close, "was not answered"),
    ],
)
def test_a_wrong_answer_is_noticed(tmp_path, reply, wrong):
    findings = send(tmp_path, reply, GET)
    if wrong is None:
        assert findings.violations == []
        assert not list(tmp_path.iterdir())
    else:
        (sentence,) = findings.violations
        assert wrong in sentence
        assert (tmp_path / "0.http").read_bytes() == GET
    assert findings.answers.total() == 1


@pytest.mark.parametrize("data", [HEAD, POST + b"Content-Length: 3\r\n\r\na", b"", b"\0\0"])
def test_what_is_not_a_whole_request_needs_no_answer(tmp_path, data):
    assert send(tmp_path, close, data).violations == []


def test_an_answer_to_what_is_not_whole_is_looked_at_as_well(tmp_path):
    findings = send(tmp_path, problem("500 I"), HEAD)
    assert "was answered 500" in findings.violations[0]


@pytest.mark.parametrize(
    ("header", "is_of_proxy"),
    [
        (b"X-Request-Id: \xff", True),
        (b"serve-multiplexed-model-id: \xff", True),
        (b"X_Session_Id: \xff", True),
        (b"X-Request-Timeout-Seconds: \xff", True),
        (b"X-Request-Id: a", False),
        (b"X_Request_Id: \xff", False),
        (b"Cookie: \xff", False),
    ],
)
def test_only_a_header_that_the_proxy_can_not_read_excuses_its_error(tmp_path, header, is_of_proxy):
    data = HEAD + header + b"\r\n\r\n"
    findings = send(tmp_path, answer("500 I", b"Internal Server Error"), data)
    assert (findings.violations == []) == is_of_proxy
    assert findings.answers == {("Ray's proxy: no UTF-8" if is_of_proxy else "row", 500): 1}
    of_service = answer("500 I", b"Internal Server Error", b"X-Request-Id: 1")
    assert send(tmp_path, of_service, data).violations


def test_a_request_that_holds_two_has_two_answers(tmp_path):
    findings = send(tmp_path, problem("404 N") + problem("500 I"), GET + GET)
    assert findings.answers == {("row", 404): 1, ("row", 500): 1}


def test_a_connection_is_used_again(tmp_path):
    findings = Findings(tmp_path)
    requests = iter([OddRequest(str(number), "row", GET) for number in range(200)])
    with server(answer("200 OK")) as (url, used):
        RawClients(url, findings).send_all(requests, lambda _: None)
    assert findings.answers == {("row", 200): 200}
    assert sum(used) == 200
    assert len(used) <= 16


# The command


def test_a_request_that_was_kept_is_sent_again_as_it_was(tmp_path):
    (tmp_path / "request-0-1.http").write_bytes(GET)
    (tmp_path / "damaged-0-1-png").write_bytes(b"image")
    plan = Plan.repeat(sorted(tmp_path.iterdir()))
    assert [request.data for request in plan.odd] == [GET]
    assert {job.data for job in plan.jobs} == {b"image"}
    assert plan.requests == 1


@pytest.mark.parametrize(
    ("options", "files", "requests"),
    [
        ([], fuzztest.FILES, 0),
        (["--requests", "5"], 0, 5),
        (["--requests", "5", "--files", "7"], 7, 5),
    ],
)
def test_requests_are_sent_alone_unless_files_are_asked_for(monkeypatch, options, files, requests):
    asked = {}

    def fuzz(_: Path, **options: object) -> fuzztest.Report:
        asked.update(options)
        return fuzztest.Report({}, [], [])

    monkeypatch.setattr(fuzztest, "fuzz", fuzz)
    monkeypatch.setattr("sys.argv", ["fuzztest.py", *options])
    assert fuzztest.main() == 0
    assert (asked["files"], asked["requests"]) == (files, requests)


def test_a_report_shows_the_answers_to_requests():
    answers = {("GET /", 200): 2, ("GET /", 0): 1}
    lines = str(fuzztest.Report({}, ["a note"], [], requests=answers)).splitlines()
    assert lines[1].split() == ["GET", "/", "3", "-:", "1", "200:", "2"]
    assert lines[-1] == "No request did any harm."
