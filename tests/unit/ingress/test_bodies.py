"""Bodies of requests: one image or several parts, whoever made them and however they come."""

import asyncio
import errno
import gc
import json
import string
import tempfile
import time
from contextlib import suppress

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.testclient import TestClient

from deployments.errors import BadParameter, InsetError
from deployments.ingress.app import build_app
from deployments.ingress.bodies import (
    MAX_HEADERS_BYTES,
    MAX_PART_HEADER_BYTES,
    MAX_PARTS,
    SPOOL_BYTES,
    has_body,
    read_images,
)
from tests.support.ingress.bodies import FIELD, FILE, drip, multipart, part
from tests.support.ingress.fake_inset import LIMITS, PICTURE, PNG
from tests.support.running.examples import examples
from tests.support.service.http_client import problem

STRANGER = b'Content-Disposition: form-data; name="photo"; filename="a.png"\r\n\r\nx'
NAMELESS = b'Content-Disposition: form-data; filename="a.png"\r\n\r\nx'
HEADLESS = b"Content-Type: image/png\r\n\r\nx"


@pytest.fixture
def client(service):
    return TestClient(build_app(service), base_url="http://localhost")


@pytest.fixture
def large(service):
    """A client of a service that takes more."""
    service.limits = LIMITS.model_copy(
        update={"max_request_bytes": 10**7, "max_image_bytes": 10**6}
    )
    return TestClient(build_app(service), base_url="http://localhost")


def request_of(pieces, content_type=b"multipart/form-data; boundary=b"):
    """Return a request whose body comes in these pieces."""
    messages = iter([*pieces, b""])

    async def receive():
        piece = next(messages)
        return {"type": "http.request", "body": piece, "more_body": bool(piece)}

    return Request({"type": "http", "headers": [(b"content-type", content_type)]}, receive)


# Bodies that are none


@pytest.mark.parametrize("path", ["/index", "/search"])
@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (multipart(), "no part named 'file'"),
        (multipart(FIELD), "has no filename"),
        (multipart(FILE, FIELD), "has no filename"),
        (multipart(FILE, STRANGER), "a part named 'photo': name each 'file'"),
        (multipart(FILE, part(b"x" * 4000, b"")), "named 'xxx"),
        (multipart(NAMELESS), "name"),
        (multipart(HEADLESS), "Content-Disposition"),
        (multipart(FILE, boundary="other"), "multipart"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, "boundary"),
        ({"content": b"--b\r\nno header\r\n", "headers": multipart()["headers"]}, "multipart"),
    ],
)
def test_a_wrong_multipart_body_is_a_problem(client, service, path, request_, sentence):
    detail = problem(client.post(path, **request_), 400)
    assert sentence.lower() in detail.lower()
    assert len(detail) < 300
    assert service.calls == []


@pytest.mark.parametrize("cut", [1, 3, 5, 7, 30])
def test_a_body_that_ends_early_is_a_problem(client, service, cut):
    """Whoever sent it would take it for stored, or for never sent."""
    request = multipart(FILE, FILE)
    request["content"] = request["content"][: -len(b"\r\n") - cut]
    problem(client.post("/index", **request), 400)
    assert service.calls == []


def test_too_many_parts(large, service):
    assert large.post("/index", **multipart(*[FILE] * MAX_PARTS)).status_code == 201
    detail = problem(large.post("/index", **multipart(*[FILE] * (MAX_PARTS + 1))), 400)
    assert f"{MAX_PARTS}" in detail
    assert len(service.calls) == MAX_PARTS


@pytest.mark.parametrize("path", ["/index", "/search"])
@pytest.mark.parametrize("media_type", [None, "application/json", "text/plain", "image", ""])
def test_another_content_type_is_a_problem(client, service, path, media_type):
    headers = {} if media_type is None else {"content-type": media_type}
    detail = problem(client.post(path, content=b"x", headers=headers), 415)
    assert media_type or "missing" in detail
    assert "image/jpeg" in detail
    assert service.calls == []


def test_a_long_content_type_is_not_sent_back(client):
    response = client.post("/index", content=b"x", headers={"content-type": "x" * 10_000})
    assert len(problem(response, 415)) < 400


def test_parameters_of_a_content_type_are_allowed(client, service):
    headers = {"content-type": "Image/JPEG; quality=90"}
    assert client.post("/index", content=PICTURE, headers=headers).status_code == 201
    assert service.calls[0][1] == PICTURE


# Empty bodies

EMPTY = {
    "nothing": {},
    "content-length: 0": {"headers": {"content-length": "0"}},
    "content-length: 00": {"headers": {"content-length": "00"}},
    "chunked": {"content": drip(b"")},
    "an image": {"headers": PNG},
    "a chunked image": {"content": drip(b""), "headers": PNG},
    "parts": {"headers": multipart()["headers"]},
    "chunked parts": {"content": drip(b""), "headers": multipart()["headers"]},
    "another type": {"headers": {"content-type": "application/x-www-form-urlencoded"}},
}


@pytest.mark.parametrize("request_", EMPTY.values(), ids=EMPTY)
def test_a_search_by_id_may_have_an_empty_body(client, service, request_):
    """Programs send headers of a body, and then none."""
    response = client.post("/search?id=a", **request_)
    assert response.status_code == 200, response.text
    ((_, data, query),) = service.calls
    assert (data, query["id"]) == (None, "a")


def test_a_query_that_comes_in_pieces_is_whole(client, service):
    assert client.post("/search", content=drip(PICTURE, 1), headers=PNG).is_success
    request = multipart(FILE.replace(b"\r\n\r\nx", b"\r\n\r\n" + PICTURE))
    request["content"] = drip(request["content"], 1)
    assert client.post("/search", **request).is_success
    assert [data for _, data, _ in service.calls] == [PICTURE, PICTURE]


@given(st.lists(st.binary(max_size=4), max_size=5), st.booleans())
@settings(max_examples=examples(100))
def test_what_was_looked_at_is_not_lost(pieces, ask):
    """Whatever the pieces are, and whether or not somebody asked for the first one."""
    whole = b"".join(pieces)

    async def read():
        messages = [
            {"type": "http.request", "body": piece, "more_body": number < len(pieces)}
            for number, piece in enumerate([*pieces, b""])
        ]

        async def receive():
            return messages.pop(0)

        request = Request({"type": "http", "headers": [(b"content-type", b"image/png")]}, receive)
        if ask:
            assert await has_body(request) == bool(whole)
        (image,), _ = await read_images(request, 1000)
        return await image.read()

    assert asyncio.run(read()) == whole


# How much is read


@pytest.mark.parametrize("path", ["/index", "/search"])
@pytest.mark.parametrize("body", [bytes, drip])
def test_an_image_over_the_limit(client, service, path, body):
    assert client.post(path, content=body(b"x" * 1000), headers=PNG).is_success
    assert service.calls[0][1] == b"x" * 1000
    detail = problem(client.post(path, content=body(b"x" * 1001), headers=PNG), 413)
    assert "1,000 bytes" in detail
    assert len(service.calls) == 1


def test_a_part_over_the_limit(client, service):
    assert client.post("/search", files={"file": ("a", b"x" * 1000)}).is_success
    problem(client.post("/search", files={"file": ("a", b"x" * 1001)}), 413)
    problem(client.post("/index", files={"file": ("a", b"x" * 1001)}), 413)


@pytest.mark.parametrize("body", [bytes, drip])
def test_a_request_over_the_limit(client, service, body):
    request = httpx.Request("POST", "http://t/", files=[("file", ("a", b"x" * 900))] * 6)
    content, media_type = request.read(), request.headers["content-type"]
    response = client.post("/index", content=body(content), headers={"content-type": media_type})
    assert "5,000 bytes" in problem(response, 413)
    assert service.calls == []


def test_no_more_is_read_than_the_limit(service):
    """A body without end is not read to its end, whatever its type."""
    read = 0

    async def receive():
        nonlocal read
        read += 100
        return {"type": "http.request", "body": b"x" * 100, "more_body": True}

    async def request(media_type):
        sent = []
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/index",
            "query_string": b"",
            "headers": [
                (b"host", b"localhost"),
                (b"content-type", media_type),
                (b"transfer-encoding", b"chunked"),
            ],
        }

        async def send(message):
            sent.append(message)

        await asyncio.wait_for(build_app(service)(scope, receive, send), 10)
        return sent[0]["status"]

    assert asyncio.run(request(b"image/png")) == 413
    assert read <= 1100
    read = 0
    assert asyncio.run(request(b"multipart/form-data; boundary=b")) in (400, 413)
    assert read <= 5100


# Whatever the content type says of charsets

TEXT = json.dumps({"place": "Zürich 写真"}, ensure_ascii=False)
NAMED = 'Content-Disposition: form-data; name="file"; filename="写真.png"\r\n\r\nx'.encode()


@pytest.mark.parametrize(
    "charset",
    [
        *("punycode", "idna", "klingon", "undefined", "zlib", "hex", "utf-16", "latin-1", "utf-7"),
        *('""', '"a\\"b"', "a\x00b", "../utf_8", "x" * 3000, ""),
    ],
)
def test_parts_are_utf8_whatever_the_charset(client, service, charset):
    request = multipart(NAMED, part(b"metadata", TEXT.encode()))
    request["headers"] = {"content-type": f"multipart/form-data; charset={charset}; boundary=b"}
    response = client.post("/index", **request)
    assert response.status_code == 201, response.text
    ((_, _, _, filename, _, metadata),) = service.calls
    assert (filename, metadata) == ("写真.png", json.loads(TEXT))


def test_a_content_type_is_not_a_book(client):
    for charset in ("x" * 10_000, ";" * 10_000):
        request = multipart(FILE)
        request["headers"] = {"content-type": f"multipart/form-data; charset={charset}; boundary=b"}
        assert "4,096 bytes" in problem(client.post("/index", **request), 400)


@given(st.text(string.ascii_letters + string.digits + "'()+_,-./:=? ", min_size=1, max_size=70))
@settings(max_examples=examples(50))
def test_a_boundary_is_what_the_standard_allows(boundary):
    """RFC 2046, 5.1.1; it may not end with a space."""
    boundary = boundary.rstrip() or "b"
    edge = b"--" + boundary.encode()
    body = edge + b"\r\n" + FILE + b"\r\n" + edge + b"--\r\n"
    header = f'multipart/form-data; boundary="{boundary}"'.encode()
    images, _ = asyncio.run(read_images(request_of([body], header), 1000))
    assert len(images) == 1


@given(
    st.lists(st.binary(max_size=30) | st.just(b"\r\n--") | st.just(b"\r\n--b"), max_size=4),
    st.lists(st.integers(1, 60), min_size=1, max_size=8),
)
@settings(max_examples=examples(100))
def test_parts_are_the_same_however_they_are_cut(contents, sizes):
    """A piece may end within a boundary or a header."""
    contents = [content for content in contents if b"\r\n--b" not in content + b"\r\n"]
    head = b'Content-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
    body = multipart(*(head + content for content in contents))["content"]
    pieces, place = [], 0
    while place < len(body):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(body[place : place + size])
        place += size

    async def read():
        try:
            images, _ = await read_images(request_of(pieces), 1000)
        except BadParameter:
            return []
        return [await image.read() for image in images]

    assert asyncio.run(read()) == contents


# What is kept on disk


@pytest.fixture
def opened(monkeypatch):
    """The temporary files that were opened."""
    files = []
    open_one = tempfile.TemporaryFile

    def opening(*args, **kwargs):
        files.append(open_one(*args, **kwargs))
        return files[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", opening)
    return files


def test_large_parts_are_kept_on_disk(large, service, opened):
    sizes = (10, SPOOL_BYTES, SPOOL_BYTES + 1, 300_000)
    files = [("file", (str(size), bytes(size))) for size in sizes]
    assert large.post("/index", files=files).status_code == 201
    assert sorted(len(data) for _, data, *_ in service.calls) == sorted(sizes)
    assert len(opened) == 2


def full(*args, **kwargs):
    return open("/dev/full", "w+b")


def raising(number):
    def fail(*args, **kwargs):
        raise OSError(number, "as the system says it")

    return fail


@pytest.mark.parametrize(
    ("opening", "sentence"),
    [
        (full, "temporary folder is full"),
        (raising(errno.ENOSPC), "temporary folder is full"),
        (raising(errno.EDQUOT), "temporary folder is full"),
        (raising(errno.ENOENT), "temporary folder can't be used"),  # Python found no folder
        (raising(errno.EMFILE), "temporary folder can't be used"),
    ],
)
@pytest.mark.parametrize("path", ["/index", "/search"])
def test_a_full_disk_is_no_surprise(large, service, path, opening, sentence, monkeypatch, caplog):
    monkeypatch.setattr(tempfile, "TemporaryFile", opening)
    response = large.post(path, files={"file": ("a", bytes(SPOOL_BYTES + 1))})
    assert sentence in problem(response, 503)
    assert response.headers["retry-after"]
    assert "can't be kept on disk" in caplog.text
    assert service.calls == []


# Others get their turn


def named(spelling):
    return b"Content-Disposition: form-data; name=file" + spelling + b"\r\n\r\nx"


def pieces_of(count, size):
    return b"".join(b"; filename*%d*=%s" % (n, b"%E5" * size) for n in range(count))


SLOW = {
    "pieces": multipart(*[named(pieces_of(30, 30))] * 700),
    "words": multipart(*[named(b'; filename="' + b"=?utf-8?Q?=C3=A9?= " * 60 + b'"')] * 1000),
    "semicolons": multipart(*[named(b"; filename=a" + b";" * 4000)] * 1000),
    "quoted semicolons": multipart(*[named(b'; filename="' + b";" * 60 + b'"')] * 1000),
    "names of computers": multipart(*[named(b"; filename*=idna''xn--" + b"a" * 3500)] * 500),
    "small parts": multipart(*[FILE] * 1000),
    "half boundaries": multipart(FILE + b"\r\n--bX" * 300_000),
    "spaces after a boundary": {"content": b"--b\r\n" + FILE + b"\r\n--b" + b" " * 2 * 10**6},
}


@pytest.fixture
def no_garbage_of_others():
    """Keep the collector from what the tests before this one left: half a second of work."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("no_garbage_of_others")
@pytest.mark.parametrize("request_", SLOW.values(), ids=SLOW)
def test_no_body_keeps_others_waiting(request_):
    """In CPU time of this thread, because the machine may have other work."""
    content = request_["content"]
    longest = 0.0

    async def watch():
        nonlocal longest
        while True:
            start = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - start)

    async def read():
        watching = asyncio.create_task(watch())
        await asyncio.sleep(0)
        with suppress(InsetError):
            await read_images(request_of([content]), 10**7)  # all of it in one piece
        await asyncio.sleep(0)  # its last turn counts, too
        watching.cancel()

    asyncio.run(read())
    assert longest < 0.5  # a twentieth of that is usual


@pytest.mark.usefixtures("no_garbage_of_others")
def test_names_of_computers_are_no_charset():
    """Half a second of work for a hundred names."""
    request = multipart(*[named(b"; filename*=idna''xn--" + b"a" * 3500)] * 100)
    start = time.thread_time()
    images, _ = asyncio.run(read_images(request_of([request["content"]]), 1000))
    assert time.thread_time() - start < 0.4
    assert images[0].filename == "xn--" + "a" * 996


def test_headers_of_parts_have_a_limit(large):
    def with_headers(*sizes):
        lines = [b"X: " + b"x" * (size - len(b"X")) for size in sizes]
        return FILE.replace(b"\r\n\r\n", b"\r\n" + b"\r\n".join(lines) + b"\r\n\r\n")

    used = len(FILE) - len(b": \r\n\r\nx")
    assert large.post("/index", **multipart(with_headers(4000, 4100 - used))).is_success
    detail = problem(large.post("/index", **multipart(with_headers(4000, 4000, 500))), 400)
    assert f"{MAX_PART_HEADER_BYTES:,} bytes" in detail
    count = MAX_HEADERS_BYTES // 4000
    assert large.post("/index", **multipart(*[with_headers(4000 - used)] * count)).is_success
    parts = [with_headers(4000 - used)] * (count + 1)
    assert f"{MAX_HEADERS_BYTES:,} bytes" in problem(large.post("/index", **multipart(*parts)), 400)
