"""Pictures as they are sent: whole, in part, or not at all."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from deployments.errors import UnknownId
from deployments.ingress.app import build_app
from tests.support.ingress.fake_inset import (
    DIGEST,
    ETAG,
    PICTURE,
    REQUESTS,
    THUMBNAIL,
    FakeInset,
)

TAGS = {
    "/images/a": ETAG,
    "/images/a/thumbnail": f'"{hashlib.sha256(THUMBNAIL).hexdigest()}"',
}
SIZE = len(PICTURE)


def problem(response, status):
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    return response.json()["detail"]


def test_an_original_is_what_the_decoder_says_it_is(client, service):
    response = client.get("/images/a")
    assert response.content == PICTURE
    assert response.headers["content-type"] == "image/png"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["accept-ranges"] == "bytes"
    assert response.headers["etag"] == ETAG
    assert service.calls == [("record", "a"), ("get", "a")]


def test_a_thumbnail_is_a_picture_of_its_own(client, service):
    """Whatever the original is; so it has another ETag, that of its own bytes."""
    response = client.get("/images/a/thumbnail")
    assert response.content == THUMBNAIL
    assert response.headers["content-type"] == "image/jpeg"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "private, no-cache"
    assert response.headers["etag"] == TAGS["/images/a/thumbnail"] != ETAG
    assert service.calls == [("thumbnail", "a")]


@pytest.mark.parametrize("path", TAGS)
@pytest.mark.parametrize("tags", ["{}", "W/{}", '"other", {}', 'W/"o",W/{}', "*"])
def test_an_unchanged_picture_is_not_sent_again(client, service, path, tags):
    tag = TAGS[path]
    response = client.get(path, headers={"if-none-match": tags.format(tag)})
    assert (response.status_code, response.content) == (304, b"")
    assert response.headers["etag"] == tag
    assert response.headers["cache-control"] == "private, no-cache"
    assert "get" not in [name for name, *_ in service.calls]


@pytest.mark.parametrize("path", TAGS)
def test_several_headers_are_one_list(client, path):
    headers = [("if-none-match", '"other"'), ("if-none-match", TAGS[path])]
    assert client.get(path, headers=headers).status_code == 304


@pytest.mark.parametrize("path", TAGS)
@pytest.mark.parametrize(
    "tags", ['"other"', 'W/"other"', DIGEST, f'"x{DIGEST}"', "", '"{0}', '"x" {0}', "x{0}"]
)
def test_another_etag_is_no_reason_not_to_send(client, path, tags):
    response = client.get(path, headers={"if-none-match": tags.replace("{0}", TAGS[path])})
    assert response.status_code == 200
    assert response.content in (PICTURE, THUMBNAIL)


@pytest.mark.parametrize("path", TAGS)
def test_nobody_has_an_unknown_photo(client, service, path):
    service.error = UnknownId("There is no photo 'a'.")
    problem(client.get(path, headers={"if-none-match": "*"}), 404)


@pytest.mark.parametrize(
    ("id", "kept"),
    [(DIGEST, "private, max-age=31536000, immutable")]
    + [(id, "private, no-cache") for id in ("a", "0" * 64, DIGEST.upper())],
)
def test_a_photo_that_is_named_after_its_bytes_never_changes(client, id, kept):
    """Others may be deleted, and their ids given to other photos."""
    path = f"/images/{id}"
    tag = {"if-none-match": ETAG}
    for response in (
        client.get(path),
        client.head(path),
        client.get(path, headers=tag),
        client.get(path, headers={"range": "bytes=0-1"}),
    ):
        assert response.headers["cache-control"] == kept


# HEAD


@pytest.mark.parametrize(
    "path",
    [path for method, path, _ in REQUESTS.values() if method == "GET"]
    + ["/openapi.json", "/", "/page/main.js"],
)
def test_head_is_get_without_the_body(client, path):
    """RFC 9110, 9.1: whoever supports GET must support HEAD."""
    plain = {"accept-encoding": "identity"}
    get, head = client.get(path, headers=plain), client.head(path, headers=plain)
    assert head.status_code == get.status_code == 200
    assert head.headers == get.headers
    assert int(head.headers["content-length"]) == len(get.content)
    assert head.content == b""


def test_head_does_not_read_the_original(client, service):
    head = client.head("/images/a", headers={"range": "bytes=0-1"})
    assert (head.status_code, head.headers["content-length"]) == (200, f"{SIZE}")
    assert client.head("/images/a", headers={"if-none-match": ETAG}).status_code == 304
    assert service.calls == [("record", "a")] * 2


@pytest.mark.parametrize("path", ["/nowhere", "/images/-"])
def test_the_head_of_a_problem_is_that_of_get(client, path):
    get, head = client.get(path), client.head(path)
    assert (head.status_code, head.headers) == (get.status_code, get.headers)


def test_no_body_is_sent_for_head(service):
    """A server in front may or may not drop it."""
    bodies = []

    class Spy:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            async def note(message):
                bodies.append(message.get("body"))
                await send(message)

            await self.app(scope, receive, note)

    client = TestClient(Spy(build_app(service)), base_url="http://localhost")
    for path in ("/images/a", "/images", "/", "/nowhere"):
        client.head(path)
    assert set(bodies) == {None, b""}


# Ranges


@pytest.mark.parametrize(
    ("range_", "start", "stop"),
    [
        *(("bytes=0-2", 0, 3), ("bytes=3-3", 3, 4), ("bytes=2-", 2, SIZE), ("bytes=-2", 5, SIZE)),
        *(("bytes=0-", 0, SIZE), ("bytes=4-99", 4, SIZE), ("bytes=-99", 0, SIZE)),
    ],
)
def test_only_the_part_that_is_asked_for_is_read(client, service, range_, start, stop):
    response = client.get("/images/a", headers={"range": range_})
    assert (response.status_code, response.content) == (206, PICTURE[start:stop])
    assert response.headers["content-range"] == f"bytes {start}-{stop - 1}/{SIZE}"
    assert response.headers["content-length"] == f"{stop - start}"
    assert response.headers["content-type"] == "image/png"
    assert response.headers["etag"] == ETAG
    assert service.calls == [("record", "a"), ("part", "a", start, stop)]


@given(
    content=st.binary(min_size=1, max_size=20),
    first=st.integers(0, 25),
    length=st.integers(1, 25),
)
def test_what_is_answered_is_the_slice(content, first, length):
    service = FakeInset()
    service.content = content
    headers = {"range": f"bytes={first}-{first + length - 1}"}
    response = TestClient(build_app(service), base_url="http://localhost").get(
        "/images/a", headers=headers
    )
    expected = content[first : first + length]
    if expected:
        assert (response.status_code, response.content) == (206, expected)
    else:
        problem(response, 416)


@pytest.mark.parametrize("range_", ["bytes=0-1,3-4", "bytes=1", "items=0-1", "bytes=2-1", ""])
def test_another_range_is_answered_by_the_whole(client, range_):
    response = client.get("/images/a", headers={"range": range_})
    assert (response.status_code, response.content) == (200, PICTURE)
    assert "content-range" not in response.headers


@pytest.mark.parametrize("range_", [f"bytes={SIZE}-", "bytes=99-100", "bytes=-0"])
def test_a_range_beyond_the_photo_is_a_problem(client, service, range_):
    response = client.get("/images/a", headers={"range": range_})
    assert f"{SIZE} bytes" in problem(response, 416)
    assert response.headers["content-range"] == f"bytes */{SIZE}"
    assert service.calls == [("record", "a")]


def test_an_unchanged_photo_is_not_sent_in_part(client):
    headers = {"range": "bytes=0-1", "if-none-match": ETAG}
    assert client.get("/images/a", headers=headers).status_code == 304


def test_the_rest_of_another_photo_is_not_sent(client):
    """A download that goes on begins anew if the photo was replaced."""
    for tag, status in ((ETAG, 206), ('"other"', 200), (f"W/{ETAG}", 200)):
        headers = {"range": "bytes=3-", "if-range": tag}
        assert client.get("/images/a", headers=headers).status_code == status


def test_a_photo_that_is_replaced_meanwhile_is_not_mixed_with_the_other(service):
    """The part is of the one that the headers are about."""
    parts = service.part

    async def part(id, sha256, start, stop):
        if service.content == PICTURE:
            service.content = b"another picture"
        return await parts(id, sha256, start, stop)

    service.part = part
    headers = {"range": "bytes=3-"}
    response = TestClient(build_app(service), base_url="http://localhost").get(
        "/images/a", headers=headers
    )
    assert (response.status_code, response.content) == (206, b"ther picture")
    assert response.headers["etag"] == f'"{hashlib.sha256(b"another picture").hexdigest()}"'
    assert response.headers["content-range"] == "bytes 3-14/15"


def test_an_original_that_is_replaced_meanwhile_has_its_own_tag(service):
    get = service.get

    async def replaced(id):
        service.content = b"another picture"
        return await get(id)

    service.get = replaced
    response = TestClient(build_app(service), base_url="http://localhost").get("/images/a")
    assert response.content == b"another picture"
    assert response.headers["etag"] == f'"{hashlib.sha256(response.content).hexdigest()}"'


def test_thumbnails_are_sent_whole(client):
    response = client.get("/images/a/thumbnail", headers={"range": "bytes=0-1"})
    assert (response.status_code, response.content) == (200, THUMBNAIL)
    assert "accept-ranges" not in response.headers
