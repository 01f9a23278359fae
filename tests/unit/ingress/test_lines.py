"""Photos that are answered line by line, and what is done of a request that can't be finished."""

import asyncio
import json

import httpx
import pytest
from starlette.testclient import TestClient

from deployments import errors
from deployments.ingress.app import build_app
from deployments.ingress.indexing import PARTS_IN_FLIGHT, index_each, wants_lines
from deployments.ingress.progress import FEWEST, Progress
from deployments.records import IndexedImage, NewPhoto
from tests.support.ingress.fake_inset import LIMITS, PICTURE, PNG, known

LINES = {"accept": "application/x-ndjson"}


def parts(count):
    return [("file", (f"{n}.png", b"%d" % n)) for n in range(count)]


def lines_of(response):
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    *lines, end = response.content.split(b"\n")
    assert end == b""
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    "accept",
    [
        "application/x-ndjson",
        "Application/X-NDJSON",
        "application/json, application/x-ndjson",
        "application/x-ndjson, application/json;q=0.9",
        "application/json;q=0.5;v=1,application/x-ndjson ; q=0.5",
        "text/html, application/x-ndjson;v=2;q=1.0, */*;q=0.1",
        "application/x-ndjson;q=0.001, text/html",
        "*/*, application/json;q=0.1, application/x-ndjson;q=0.2",
    ],
)
def test_lines_are_answered_if_they_are_named_and_json_is_not_preferred(accept):
    assert wants_lines(accept)


@pytest.mark.parametrize(
    "accept",
    [
        *("", ",", ";q=1", "*/*", "application/*", "application/json", "text/html"),
        "application/x-ndjson;q=0",
        "application/x-ndjson;q=0.0, text/html",
        "application/x-ndjson;q=0.8, application/json",
        "application/x-ndjson;q=0.8, application/*;q=0.9",
        "application/x-ndjson; q=0.8, */*",
        "application/x-ndjsons",
        "text/plain;a=application/x-ndjson",
    ],
)
def test_else_it_is_json(accept):
    assert not wants_lines(accept)


def test_several_headers_are_one_list(client):
    headers = [("accept", "text/html"), ("accept", "application/x-ndjson"), *PNG.items()]
    assert lines_of(client.post("/index", content=PICTURE, headers=headers))
    headers.append(("accept", "application/json"))
    headers[1] = ("accept", "application/x-ndjson;q=0.3")
    assert client.post("/index", content=PICTURE, headers=headers).status_code == 201


def test_a_line_is_the_entry_that_images_would_have(client, service):
    service.bad = {b"1": errors.BrokenImage("It is\nbroken.")}
    service.existing = {b"2"}
    whole = client.post("/index", files=parts(4)).json()["images"]
    lines = lines_of(client.post("/index", files=parts(4), headers=LINES))
    lines.sort(key=lambda line: line["part"])
    assert [line["status"] for line in lines] == ["created", "failed", "exists", "created"]
    assert [line.pop("part") for line in lines] == [0, 1, 2, 3]
    assert lines == whole


def test_a_raw_body_is_one_line(client):
    (line,) = lines_of(client.post("/index?id=x", content=PICTURE, headers={**PNG, **LINES}))
    assert (line["part"], line["id"], line["status"]) == (0, "x", "created")


def test_bad_images_are_lines_even_if_all_are_bad(client, service, caplog):
    service.bad = {
        b"0": errors.Unavailable("Later."),
        b"1": KeyError("secret"),
        b"2": errors.StoreFull("Full."),
    }
    response = client.post("/index", files=parts(3), headers=LINES)
    by_part = {line["part"]: line for line in lines_of(response)}
    assert [by_part[n]["error"]["status"] for n in range(3)] == [503, 500, 507]
    assert {line["status"] for line in by_part.values()} == {"failed"}
    assert [by_part[n]["filename"] for n in range(3)] == ["0.png", "1.png", "2.png"]
    assert "secret" not in response.text
    assert "secret" in caplog.text


@pytest.mark.parametrize(
    ("path", "request_", "status"),
    [
        ("/index?id=x", {"files": parts(2)}, 400),
        ("/index?threshold=1", {"files": parts(2)}, 400),
        ("/index", {"content": b"x", "headers": {"content-type": "text/plain"}}, 415),
        ("/index", {"content": b"x" * 1001, "headers": PNG}, 413),
        ("/index", {"files": [("file", ("a", b"x" * 900))] * 6}, 413),
        ("/index?metadata=1", {"files": parts(2)}, 400),
    ],
)
def test_an_error_of_the_whole_request_is_a_problem(client, service, path, request_, status):
    request_ = {**request_, "headers": {**LINES, **request_.get("headers", {})}}
    response = client.post(path, **request_)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert service.calls == []


# What is done, and when


class Exchange:
    """A request of many parts to the app itself, whose answer is seen piece by piece."""

    def __init__(self, service, count, headers=LINES, **options):
        service.limits = LIMITS.model_copy(update={"max_request_bytes": 10**6})
        self.app = build_app(service, **options)
        request = httpx.Request(
            "POST", "http://localhost/index", files=parts(count), headers=headers
        )
        self.body = request.read()
        self.headers = [(k.lower().encode(), v.encode()) for k, v in request.headers.items()]
        self.left = asyncio.Event()
        self.sent = []

    async def run(self):
        scope = {
            "type": "http",
            "asgi": {"spec_version": "2.3"},
            "method": "POST",
            "path": "/index",
            "query_string": b"",
            "headers": self.headers,
        }
        await self.app(scope, self.receive, self.send)

    async def receive(self):
        if self.body is None:
            await self.left.wait()
            return {"type": "http.disconnect"}
        body, self.body = self.body, None
        return {"type": "http.request", "body": body}

    async def send(self, message):
        self.sent.append(message)

    @property
    def lines(self):
        bodies = b"".join(message.get("body", b"") for message in self.sent)
        return [json.loads(line) for line in bodies.splitlines()]


async def settle():
    for _ in range(50):
        await asyncio.sleep(0.001)


class Gates:
    """Lets images pass one by one, and knows how many were begun, ended and given up."""

    def __init__(self, service):
        service.work = self
        self.begun, self.ended, self.given_up = [], [], []
        self.gates = {}

    async def __call__(self, data):
        self.begun.append(data)
        try:
            await self.gates.setdefault(data, asyncio.Event()).wait()
        except asyncio.CancelledError:
            self.given_up.append(data)
            raise
        self.ended.append(data)

    def open(self, *data):
        for one in data:
            self.gates.setdefault(one, asyncio.Event()).set()


def test_each_line_comes_as_soon_as_its_image_is_done(service):
    async def run():
        gates, exchange = Gates(service), Exchange(service, 3)
        task = asyncio.create_task(exchange.run())
        for number in (2, 0, 1):
            gates.open(b"%d" % number)
            await settle()
            assert exchange.lines[-1]["part"] == number
        await task
        assert [line["part"] for line in exchange.lines] == [2, 0, 1]

    asyncio.run(run())


@pytest.mark.parametrize("headers", [LINES, {}])
def test_so_many_are_worked_at_at_the_same_time(service, headers):
    async def run():
        gates, exchange = Gates(service), Exchange(service, 40, headers)
        task = asyncio.create_task(exchange.run())
        await settle()
        assert len(gates.begun) == PARTS_IN_FLIGHT
        gates.open(b"0", b"7", b"9")
        await settle()
        assert len(gates.begun) == PARTS_IN_FLIGHT + 3
        gates.open(*(b"%d" % n for n in range(40)))
        await task
        assert sorted(gates.ended) == sorted(b"%d" % n for n in range(40))

    asyncio.run(run())


@pytest.mark.parametrize(("headers", "cancelled"), [(LINES, False), (LINES, True), ({}, True)])
def test_what_has_not_begun_when_the_client_hangs_up_is_not_begun(service, headers, cancelled):
    """The server says so, or, as Serve does, cancels the request."""

    async def run():
        gates, exchange = Gates(service), Exchange(service, 40, headers)
        task = asyncio.create_task(exchange.run())
        gates.open(b"0", b"1")
        await settle()
        begun = len(gates.begun)
        assert begun == PARTS_IN_FLIGHT + 2
        task.cancel() if cancelled else exchange.left.set()
        await asyncio.wait([task])
        gates.open(*(b"%d" % n for n in range(40)))
        await settle()
        assert len(gates.begun) == begun
        assert sorted(gates.ended) == [b"0", b"1"]
        assert len(gates.given_up) == PARTS_IN_FLIGHT

    asyncio.run(run())


# Requests that can't be finished


@pytest.fixture
def slow(service):
    """The service, of which it is known that it takes 0.1 s for a photo."""

    async def work(data):
        await asyncio.sleep(0.1)

    def start(**options):
        client = TestClient(build_app(service, **options), base_url="http://localhost")
        for _ in range(FEWEST):
            assert client.post("/index", content=PICTURE, headers=PNG).status_code == 201
        service.calls.clear()
        service.work = None
        return client

    service.work = work
    service.limits = LIMITS.model_copy(update={"max_request_bytes": 10**6})
    return start


def test_a_request_that_would_be_cut_off_is_refused_at_once(service, slow):
    client = slow(request_timeout_s=1)
    for headers in ({}, LINES):
        response = client.post("/index", files=parts(100), headers=headers)
        assert response.status_code == 413
        assert response.headers["content-type"] == "application/problem+json"
        detail = response.json()["detail"]
        assert detail.startswith("100 photos would take about ")
        assert "a request is cut off after 1 s: send at most " in detail
    assert service.calls == []
    most = int(detail.split("at most ")[1].split()[0])
    assert 1 <= most <= 10
    assert client.post("/index", files=parts(most)).status_code == 201


def test_without_a_time_limit_nothing_is_refused(slow):
    assert slow().post("/index", files=parts(100)).status_code == 201


@pytest.mark.parametrize("closed", [False, True])
def test_photos_of_a_request_in_work_count_until_they_are_done_or_given_up(closed):
    progress = Progress()
    gates = {data: asyncio.Event() for data in (b"%d" % n for n in range(40))}

    def image(data):
        async def read():
            return NewPhoto(data)

        return read

    async def index(photos):
        (photo,) = photos
        await gates[photo.data].wait()
        return [IndexedImage(status="created", **dict(known("a")))]

    async def run():
        results = index_each([image(data) for data in gates], index, progress, group=1)
        assert progress.unfinished == 0  # it has not begun
        for number in (0, 1, 2):
            gates[b"%d" % number].set()
            assert (await anext(results))[0] == number
        assert progress.unfinished == 37
        if closed:
            await results.aclose()
        else:
            for gate in gates.values():
                gate.set()
            assert len([one async for one in results]) == 37
        assert progress.unfinished == 0

    asyncio.run(run())
