"""Over real HTTP: answers line by line, clients that hang up, and pictures in part."""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import suppress

import httpx
import pytest

from tests.support.photos.pictures import picture
from tests.support.service.http_client import index, problem, wait_until_nothing_is_stored

LINES = {"Accept": "application/x-ndjson"}


def parts(name: str, count: int) -> list[tuple[str, tuple[str, bytes]]]:
    return [("file", (f"{n}.png", picture(f"{name} {n}"))) for n in range(count)]


def stored(client: httpx.Client, files: list[tuple[str, tuple[str, bytes]]]) -> list[bool]:
    """Say for each whether it is stored; it is stored wholly, or not at all."""
    found = []
    for _, (_, data) in files:
        id = hashlib.sha256(data).hexdigest()
        statuses = {
            client.get(f"/images/{id}{part}").status_code for part in ("", "/record", "/thumbnail")
        }
        assert statuses in ({200}, {404})
        found.append(statuses == {200})
    return found


def test_lines_come_while_other_photos_are_worked_at(client):
    files = parts("line by line", 24)
    files[3] = ("file", ("bad.png", b"no image"))
    came, lines = [], []
    with client.stream("POST", "/index", files=files, headers=LINES) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/x-ndjson"
        for line in response.iter_lines():
            came.append(time.monotonic())
            lines.append(json.loads(line))
            if len(lines) == 1 and lines[0]["status"] == "created":  # it is on disk, and found
                assert client.get(f"/images/{lines[0]['id']}/record").status_code == 200
    assert sorted(line["part"] for line in lines) == list(range(24))
    by_part = {line["part"]: line for line in lines}
    assert {n: line["status"] for n, line in by_part.items()} == {
        n: "failed" if n == 3 else "created" for n in range(24)
    }
    assert by_part[3]["error"]["status"] == 415
    # If they had been kept until the last was done, they would have come at once.
    assert came[-1] - came[0] > 0.1


@pytest.mark.parametrize("headers", [LINES, {}])
def test_a_client_that_hangs_up_leaves_no_half_photo_and_no_work_behind(client, service, headers):
    files = parts(f"hung up {len(headers)}", 240)
    with (
        suppress(httpx.ReadTimeout),
        httpx.Client(base_url=service.url, timeout=httpx.Timeout(60, read=2)) as other,
        other.stream("POST", "/index", files=files, headers=headers) as response,
    ):
        next(response.iter_lines())
    index(client, picture(f"behind those hung up {len(headers)}"))
    wait_until_nothing_is_stored(client)  # what was begun may still be done
    assert sum(stored(client, files)) < 240


def test_an_original_is_sent_in_part(client):
    data = picture("in part")
    path = f"/images/{index(client, data)['id']}"
    tag = f'"{hashlib.sha256(data).hexdigest()}"'
    for range_, expected in (
        ("bytes=0-99", data[:100]),
        ("bytes=100-", data[100:]),
        ("bytes=-7", data[-7:]),
    ):
        response = client.get(path, headers={"Range": range_, "If-Range": tag})
        assert (response.status_code, response.content) == (206, expected)
        assert response.headers["content-range"].endswith(f"/{len(data)}")
    response = client.get(path, headers={"Range": "bytes=0-99", "If-Range": '"other"'})
    assert (response.status_code, response.content) == (200, data)
    response = client.get(path, headers={"Range": f"bytes={len(data)}-"})
    assert f"{len(data):,} bytes" in problem(response, 416)
    assert response.headers["content-range"] == f"bytes */{len(data)}"


def test_head_says_what_get_would_send(client):
    id = index(client, picture("head"))["id"]
    for path in (f"/images/{id}", f"/images/{id}/thumbnail", f"/images/{id}/record", "/", "/stats"):
        get = client.get(path, headers={"Accept-Encoding": "identity"})
        head = client.head(path, headers={"Accept-Encoding": "identity"})
        assert (head.status_code, head.content) == (200, b"")
        for name in ("content-length", "content-type", "etag", "accept-ranges", "cache-control"):
            if path != "/stats" or name != "content-length":
                assert head.headers.get(name) == get.headers.get(name), (path, name)
    assert client.head("/images/nobody").status_code == 404


def test_only_what_never_changes_is_kept_without_asking(client):
    named = index(client, picture("named"), id="named")
    own = index(client, picture("named"))
    kept = {path: client.get(f"/images/{path}") for path in (named["id"], own["id"])}
    assert kept["named"].headers["cache-control"] == "private, no-cache"
    assert "immutable" in kept[own["id"]].headers["cache-control"]


def test_an_id_that_another_photo_may_get_is_refused(client):
    victim = hashlib.sha256(picture("victim")).hexdigest()
    response = client.post(
        "/index", params={"id": victim}, files=[("file", ("a.png", picture("attacker")))]
    )
    assert "looks like a SHA-256" in problem(response, 400)
    assert client.get(f"/images/{victim}").status_code == 404
    assert index(client, picture("victim"))["status"] == "created"
