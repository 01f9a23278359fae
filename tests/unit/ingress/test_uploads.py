"""How bodies are taken in: so many bytes, so many at a time, and not too slowly."""

import asyncio
import logging
import socket
import threading
from contextlib import contextmanager
from functools import partial

import httpx
import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.exceptions import ActorDiedError, TaskCancelledError

from deployments.errors import InsetError, TooLarge, TooSlow, Unavailable
from deployments.ingress.app import build_app
from deployments.ingress.uploads import Uploads
from deployments.settings import LimitSettings
from tests.support.ingress.bodies import FILE, multipart
from tests.support.ingress.fake_inset import LIMITS, PNG, FakeInset
from tests.support.running.examples import examples
from tests.support.running.skipping import run_skipping
from tests.support.running.waiting import wait_until
from tests.support.service.http_client import problem

SMALL = LimitSettings(max_request_bytes=100, max_bodies_bytes=250)
HANGS_UP = "hangs up"
STALLS = "stalls"


def scope_of(length=None, method="POST", path="/index"):
    """Return a request's scope; its body is chunked if it has no length."""
    size = (b"transfer-encoding", b"chunked") if length is None else (b"content-length", length)
    return {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": [(b"content-type", b"image/png"), size, (b"host", b"localhost")],
    }


def coming(*script):
    """Return a `receive` that does what the script says: waits, bytes, a hang-up or a stall."""
    steps = list(script)

    async def receive():
        while steps:
            match steps.pop(0):
                case int() | float() as seconds:
                    await asyncio.sleep(seconds)
                case bytes() as data:
                    more = bool(steps)
                    return {"type": "http.request", "body": data, "more_body": more}
                case "stalls":
                    await asyncio.sleep(1000)
                case _:
                    break
        return {"type": "http.disconnect"}

    return receive


async def reader(scope, receive, send):
    """An application that reads a body, works for ten seconds and answers its size."""
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message["body"])
        if not message["more_body"]:
            break
    await asyncio.sleep(10)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d" % size})


async def ask(app, scope, receive):
    """Return the status of an answer; None if there was none."""
    statuses = []

    async def send(message):
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    try:
        await app(scope, receive, send)
    except InsetError as error:
        return error.status
    return statuses[0] if statuses else None


async def never():
    raise AssertionError("the body was read")


# How many bytes


def test_content_length_decides_before_anything_is_read():
    app = Uploads(reader, SMALL)
    assert run_skipping(ask(app, scope_of(b"101"), never)) == TooLarge.status
    assert run_skipping(ask(app, scope_of(b"100"), coming(bytes(100)))) == 200


def test_a_body_that_never_fits_is_too_large():
    """Else it would be told for ever to try again."""
    app = Uploads(reader, LimitSettings(max_request_bytes=100, max_bodies_bytes=50))
    assert run_skipping(ask(app, scope_of(b"51"), never)) == TooLarge.status


def test_bodies_have_room_together():
    """It is taken until the answers are there, and a refused body takes none."""

    async def ask_some():
        app = Uploads(reader, SMALL)
        some = [asyncio.create_task(ask(app, scope_of(), coming(bytes(100)))) for _ in range(2)]
        await asyncio.sleep(1)
        assert app.held == 200
        assert await ask(app, scope_of(b"51"), never) == Unavailable.status
        assert await ask(app, scope_of(), coming(bytes(40), bytes(40))) == Unavailable.status
        assert await ask(app, scope_of(b"50"), coming(bytes(50))) == 200
        assert await asyncio.gather(*some) == [200, 200]
        assert app.held == 0

    run_skipping(ask_some())


def test_who_hangs_up_leaves_room():
    async def ask_some():
        app = Uploads(reader, SMALL)
        assert await ask(app, scope_of(), coming(bytes(90), HANGS_UP)) is None
        cut = asyncio.create_task(ask(app, scope_of(), coming(bytes(90), STALLS)))
        await asyncio.sleep(1)
        assert (app.held, app.waiting) == (90, 1)
        cut.cancel()  # what Serve does
        await asyncio.gather(cut, return_exceptions=True)
        assert (app.held, app.waiting) == (0, 0)

    run_skipping(ask_some())


@pytest.mark.parametrize("error", [TaskCancelledError(), ActorDiedError()])
def test_what_serve_says_of_a_hang_up_is_one(error, caplog):
    """Its `receive` raises what the call to its proxy raised."""
    service = FakeInset()

    async def receive():
        raise error

    assert run_skipping(ask(build_app(service), scope_of(), receive)) == 400  # nobody sees it
    assert service.calls == []
    assert not caplog.records


# How fast


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ((19, bytes(10)), 200),
        ((21, bytes(10)), TooSlow.status),
        ((bytes(10), STALLS), TooSlow.status),
        ((19, bytes(20), 2, bytes(20), 2.5, bytes(20)), 200),  # ten bytes a second, after the grace
        ((19, bytes(20), 2, bytes(10), 2.5, bytes(20)), TooSlow.status),
        ((*[4.9, bytes(49)] * 2, 19.9, b""), 200),
        ((*[1, b"1"] * 50,), TooSlow.status),  # drop by drop
    ],
)
def test_a_body_comes_at_a_least_rate(script, status):
    app = Uploads(reader, SMALL, grace_s=20, least_rate=10)
    assert run_skipping(ask(app, scope_of(), coming(*script))) == status
    assert (app.held, app.waiting) == (0, 0)


def test_the_rate_is_of_bodies_and_not_of_answers():
    """An application may wait for a hang-up as long as it works."""

    async def streaming(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        assert (await receive())["type"] == "http.disconnect"

    messages = [(0, {"type": "http.request", "body": b"x"}), (1000, {"type": "http.disconnect"})]

    async def receive():
        seconds, message = messages.pop(0)
        await asyncio.sleep(seconds)
        return message

    app = Uploads(streaming, SMALL, grace_s=1, least_rate=10)
    assert run_skipping(ask(app, scope_of(), receive)) == 200


@pytest.mark.parametrize("content_type", [b"image/png", b"multipart/form-data; boundary=b"])
@pytest.mark.parametrize("path", ["/index", "/search"])
def test_what_is_slow_gets_a_problem_and_no_connection(content_type, path):
    """Also while Starlette reads parts; what came is thrown away."""
    service, sent = FakeInset(), []
    scope = scope_of(path=path)
    scope["headers"][0] = (b"content-type", content_type)
    receive = coming(multipart(FILE)["content"][:-10], STALLS)

    async def send(message):
        sent.append(message)

    run_skipping(build_app(service)(scope, receive, send))
    assert sent[0]["status"] == 408
    headers = dict(sent[0]["headers"])
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers[b"connection"] == b"close"
    assert service.calls == []


# How many


def test_so_many_wait_for_their_bodies():
    """Those that don't wait are never in the way: nor those whose bodies are there."""

    async def ask_some():
        app = Uploads(reader, SMALL, most_waiting=3)
        there = asyncio.create_task(ask(app, scope_of(), coming(bytes(1))))
        slow = [asyncio.create_task(ask(app, scope_of(), coming(1, b"x"))) for _ in range(3)]
        await asyncio.sleep(0.5)
        assert app.waiting == 3
        assert await ask(app, scope_of(), never) == Unavailable.status
        assert await ask(app, scope_of(b"1"), never) == Unavailable.status
        for method in ("GET", "DELETE", "POST"):
            nothing = scope_of(b"0", method)
            assert await ask(app, nothing, coming(b"")) == 200
        assert await asyncio.gather(there, *slow) == [200] * 4
        assert await ask(app, scope_of(), coming(b"x")) == 200

    run_skipping(ask_some())


# Whatever happens


async def impatient(scope, receive, send):
    await receive()
    raise KeyError("a mistake")


async def deaf(scope, receive, send):
    """Answers without reading."""
    await send({"type": "http.response.start", "status": 415, "headers": []})


APPS = {"reader": reader, "impatient": impatient, "deaf": deaf}
STEPS = (
    st.integers(0, 120).map(bytes)
    | st.sampled_from([0.5, 3, 30])
    | st.sampled_from([HANGS_UP, STALLS])
)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*APPS]),
            st.lists(STEPS, max_size=6),
            st.none() | st.integers(0, 130),  # the length it announces, true or not
            st.sampled_from([0, 1, 5]),  # when it begins
            st.none() | st.sampled_from([0.5, 4, 25]),  # when it is cut off
        ),
        max_size=12,
    )
)
@settings(max_examples=examples(150))
def test_all_is_given_back_whatever_happens(requests):
    """In whatever order requests come, hang up, stall, fail, are cut off and refused."""

    async def ask_all():
        current = []

        async def app(scope, receive, send):
            await APPS[scope["app"]](scope, receive, send)

        uploads = Uploads(app, SMALL, grace_s=4, least_rate=10, most_waiting=4)

        async def one(name, script, length, begin, cut):
            await asyncio.sleep(begin)
            announced = None if length is None else b"%d" % length
            scope = scope_of(announced) | {"app": name}
            try:
                async with asyncio.timeout(cut):
                    return await ask(uploads, scope, coming(*script))
            except (KeyError, TimeoutError):
                return None

        async def watch():
            while True:
                current.append((uploads.held, uploads.waiting))
                await asyncio.sleep(0.25)

        watching = asyncio.create_task(watch())
        statuses = await asyncio.gather(*(one(*request) for request in requests))
        watching.cancel()
        assert {*statuses} <= {None, 200, 408, 413, 415, 503}
        assert (uploads.held, uploads.waiting) == (0, 0)
        assert all(0 <= held <= 250 and 0 <= waiting <= 4 for held, waiting in current)

    run_skipping(ask_all())


# With the server that Serve uses


@contextmanager
def serving(app):
    """Serve an application with uvicorn; yields its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_until(lambda: server.started, "uvicorn starts")
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def service():
    return FakeInset()


@pytest.fixture
def port(service):
    with serving(build_app(service)) as port:
        yield port


@pytest.fixture
def connection(port):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        yield connection


def head(size, path="/index", *more):
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: image/png", size, *more]
    return "\r\n".join([*lines, "", ""]).encode()


def read_answer(connection):
    """Return status and body of the next answer on a connection."""
    with connection.makefile("rb") as file:
        status = int(file.readline().split()[1])
        headers = dict(line.lower().split(b": ") for line in iter(file.readline, b"\r\n"))
        return status, file.read(int(headers[b"content-length"]))


def test_a_refusal_comes_before_the_body(service, connection):
    """And the connection is of use afterwards."""
    connection.sendall(head("Content-Length: 5001", "/index", "Expect: 100-continue"))
    status, body = read_answer(connection)
    assert (status, b"5,000 bytes" in body) == (413, True)
    connection.sendall(bytes(5001))
    connection.sendall(head("Content-Length: 7") + b"picture")
    assert read_answer(connection)[0] == 201
    assert [data for _, data, *_ in service.calls] == [b"picture"]


def test_a_refusal_in_the_middle_leaves_the_connection(connection):
    piece = b"1000\r\n" + bytes(4096) + b"\r\n"
    connection.sendall(head("Transfer-Encoding: chunked") + 2 * piece)
    assert read_answer(connection)[0] == 413  # of the image, which is larger than 1,000 bytes
    connection.sendall(100 * piece + b"0\r\n\r\n")
    connection.sendall(head("Content-Length: 7") + b"picture")
    assert read_answer(connection)[0] == 201


def test_clients_that_send_before_they_read_see_the_refusal(port):
    """Of more than the buffers between them take."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        for body in (bytes(10**7), (bytes(10**5) for _ in range(100))):
            problem(client.post("/index", content=body, headers=PNG), 413)
        assert client.post("/index", content=b"x", headers=PNG).status_code == 201


def test_a_slow_client_loses_its_connection(service, monkeypatch):
    monkeypatch.setattr("deployments.ingress.app.Uploads", partial(Uploads, grace_s=0.2))
    with (
        serving(build_app(service)) as port,
        socket.create_connection(("127.0.0.1", port), timeout=20) as connection,
    ):
        connection.sendall(head("Content-Length: 1000") + b"begin")
        status, body = read_answer(connection)
        assert (status, b"Only 5 bytes" in body) == (408, True)
        assert connection.recv(1) == b""
    assert service.calls == []


@pytest.mark.parametrize("content_type", [PNG["content-type"], "multipart/form-data; boundary=b"])
def test_a_client_that_hangs_up_is_no_error(service, port, content_type, caplog):
    caplog.set_level(logging.DEBUG)
    for path in ("/index", "/search", "/search?id=a"):
        request = head("Content-Length: 1000", path).replace(b"image/png", content_type.encode())
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(request + multipart(FILE)["content"][:-8])
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        assert client.get("/healthz").status_code == 200
    assert [name for name, *_ in service.calls] == ["check"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_limits_of_the_service_hold(service, port):
    """`build_app` passes them on."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        response = client.post("/index", content=bytes(LIMITS.max_request_bytes + 1), headers=PNG)
    assert f"{LIMITS.max_request_bytes:,} bytes" in problem(response, 413)
