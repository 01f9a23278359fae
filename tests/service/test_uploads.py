"""Uploads to the running service that are slow, are cut off, or are too much."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest

from tests.support.photos.pictures import picture
from tests.support.running.waiting import wait_until
from tests.support.service.http_client import PNG, index, problem, search
from tests.support.service.raw_http import is_answered
from tests.support.service.services import LIMITS, OwnService

SLOW = 260  # more than the requests that Serve gives a replica by default


@pytest.fixture(scope="module", autouse=True)
def _many_connections() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 2048), hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def connect(service: OwnService, request: bytes) -> socket.socket:
    """Send the beginning of a request."""
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=60)
    connection.sendall(request)
    return connection


def head(length: int, path: str = "/index") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


@pytest.fixture(scope="module", autouse=True)
def dripping(service: OwnService) -> Iterator[Future[bytes]]:
    """Send a picture a drop each second, beside the other tests; gives what is answered."""

    def send() -> bytes:
        with connect(service, head(1000) + b"\x89PNG") as upload:
            for _ in range(900):  # and no more than the head has announced
                if is_answered(upload):
                    break
                upload.sendall(b"x")
                time.sleep(1)
            answer = b""
            while more := upload.recv(65536):
                answer += more
            return answer  # the connection is closed

    with ThreadPoolExecutor() as threads:
        yield threads.submit(send)


def test_slow_uploads_shut_nobody_out(service, client):
    """Nor do they when all of them hang up, which is no error in the log."""
    query = picture("beside slow uploads")
    stored = index(client, query)["id"]
    photos = client.get("/stats").json()["store"]["photos"]
    before = len(service.output())
    slow = []
    with ExitStack() as uploads:
        for number in range(SLOW):
            path = "/search" if number % 2 else "/index"
            upload = connect(service, head(1000, path) + b"\x89PNG\r\n\x1a\n12")
            slow.append(uploads.enter_context(upload))
        time.sleep(2)
        assert client.get("/healthz").status_code == 200
        assert search(client, query, limit=1)[0]["id"] == stored
        assert not any(map(is_answered, slow))  # nobody had to be sent away before
    assert client.get("/healthz").status_code == 200
    assert search(client, query, limit=1)[0]["id"] == stored
    assert client.get("/stats").json()["store"]["photos"] == photos
    time.sleep(1)  # Ray collects what the replicas say
    log = service.output()[before:]
    assert "Traceback" not in log, log[-3000:]
    assert "unexpected error" not in log


@pytest.mark.parametrize("path", ["/index", "/search"])
def test_what_is_too_large_is_refused_before_it_is_sent(service, path):
    with connect(service, head(LIMITS["max_request_bytes"] + 1, path)) as upload:
        answer = upload.recv(65536)
    assert b" 413 " in answer.partition(b"\r\n")[0]
    assert b"application/problem+json" in answer


def test_who_sends_before_it_reads_sees_the_refusal(client):
    body = bytes(10 * LIMITS["max_request_bytes"])
    assert "send less at once" in problem(client.post("/index", content=body, headers=PNG), 413)


def test_an_upload_that_is_cut_off_stores_nothing(service, client):
    photo = picture("cut off")
    connect(service, head(len(photo)) + photo[:-1]).close()

    def gone() -> bool:
        return httpx.get(f"{service.url}/healthz").status_code == 200

    wait_until(gone, "the service answers")
    assert index(client, photo)["status"] == "created"


def test_a_search_by_id_with_an_empty_chunked_body(client):
    stored = index(client, picture("searched by id"))["id"]
    response = client.post("/search", params={"id": stored}, content=iter([]))
    assert response.request.headers["transfer-encoding"] == "chunked"
    assert response.status_code == 200, response.text


def test_a_slow_upload_gets_its_answer(dripping, client):
    """After the grace: a drop each second is too little."""
    answer = dripping.result()
    assert b" 408 " in answer.partition(b"\r\n")[0]
    assert b"application/problem+json" in answer
    assert client.get("/healthz").status_code == 200
