"""Attacks on a service with keys, each as an attacker would make it, over real HTTP.

What depends on the server in front is tried behind both of Ray's: its own proxy, and HAProxy.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from deployments.ingress.keys import SCOPES
from tests.support.photos.pictures import picture
from tests.support.running.waiting import together, wait_until
from tests.support.service.http_client import PNG, problem
from tests.support.service.raw_http import connect, drip, exchange, is_answered, statuses
from tests.support.service.services import Locked, OwnService, bearer

OPEN = {
    *(("GET", path) for path in ("/healthz", "/livez", "/readyz", "/openapi.json")),
    ("DELETE", "/session"),
}


@pytest.fixture(params=["HAProxy", "Ray's proxy"])
def port(request: pytest.FixtureRequest, locked: Locked, service: OwnService) -> int:
    """Return the port of a service behind HAProxy, and of one behind Ray's own proxy."""
    return (service if request.param == "HAProxy" else locked).port


@pytest.fixture(scope="module")
def keys(locked: Locked) -> dict[str, str]:
    """Return a key for each scope."""
    return {scope: locked.make_key(scope)[1] for scope in SCOPES}


@pytest.fixture(scope="module")
def stranger(locked: Locked) -> Iterator[httpx.Client]:
    """Return a client without a key."""
    with httpx.Client(base_url=locked.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def photo(admin: httpx.Client) -> str:
    """Return the id of a stored photo."""
    answer = admin.post("/index?id=secret", content=picture("secret"), headers=PNG)
    assert answer.status_code == 201
    return "secret"


@pytest.fixture(scope="module")
def operations(admin: httpx.Client) -> list[tuple[str, str, set[str] | None]]:
    """Return each operation of /openapi.json, and the scopes that it says it needs."""
    found = []
    for path, methods in admin.get("/openapi.json").json()["paths"].items():
        for method, operation in methods.items():
            security = operation.get("security")
            scopes = (
                None
                if security is None
                else {s for way in security for names in way.values() for s in names}
            )
            found.append((method.upper(), path, scopes))
    return found


def request(client: httpx.Client, method: str, path: str, **headers: str) -> httpx.Response:
    """Send what a route expects."""
    path = path.replace("{id}", "secret")
    body = {"content": picture("secret"), "headers": {**PNG, **headers}}
    options = body if method == "POST" else {"headers": headers}
    if path == "/index":
        path += "?id=secret"
    return client.request(method, path, **options)


# Who may do what


def test_no_route_is_open_that_should_not_be(operations):
    """A new route without a scope fails here."""
    assert {(method, path) for method, path, scopes in operations if scopes is None} <= OPEN
    assert {scope for _, _, scopes in operations for scope in scopes or ()} == set(SCOPES)


def test_without_a_key_nobody_comes_in(operations, stranger, photo):
    for method, path, _ in operations:
        if (method, path) not in OPEN:
            answer = request(stranger, method, path)
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("scope", SCOPES)
def test_no_key_does_more_than_its_scope(operations, stranger, admin, keys, photo, scope):
    header = bearer(keys[scope])
    for method, path, scopes in sorted(operations, key=lambda found: found[0] == "DELETE"):
        answer = request(stranger, method, path, **header)
        if not scopes or scope in scopes or scope == "admin":
            assert answer.status_code in (200, 201, 204), (method, path, answer.text)
        else:
            assert answer.status_code == 403, (method, path)
        if method == "DELETE" and scope == "admin":
            assert request(admin, "POST", "/index").status_code == 201
    assert admin.get("/images/secret/record").status_code == 200


def test_a_key_counts_until_it_is_revoked(locked, stranger):
    name, secret = locked.make_key("read")
    assert stranger.get("/images", headers=bearer(secret)).status_code == 200
    locked.revoke_key(name, secret)
    assert stranger.get("/images", headers=bearer(secret)).status_code == 401


def test_guessing_keys_is_slow_and_nobody_else_waits(stranger, admin, locked):
    def guess(number: int) -> float:
        start = time.perf_counter()
        answer = stranger.get("/images", headers=bearer(f"inset_{number:043}"))
        assert answer.status_code in (401, 503)
        return time.perf_counter() - start

    def overtakes() -> bool:
        """Send a wrong key, then a right one; return whether the right one is answered first."""
        guessed = threads.submit(guess, 0)
        assert admin.get("/images?limit=1").status_code == 200
        return not guessed.done()

    seconds = together([lambda number=number: guess(number) for number in range(60)])
    assert max(seconds) > 0.5
    with ThreadPoolExecutor() as threads:
        wait_until(overtakes, "a right key is answered before a wrong one")
    assert "wrong keys lately" in locked.output()


def test_no_key_stands_in_the_log(locked, keys, admin, stranger):
    stranger.get("/images", headers=bearer("inset_this-is-a-wrong-key"))
    output = locked.output()
    assert "wrong-key" not in output
    assert not [key for key in keys.values() if key in output]


def test_a_request_has_its_id_in_the_answer_and_in_the_log(locked, admin, stranger):
    answer = admin.get("/images?limit=1", headers={"X-Request-Id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    assert len(admin.get("/images?limit=1").headers["x-request-id"]) > 20
    wrong = bearer("inset_wrong") | {"X-Request-Id": "guess-77"}

    def is_logged() -> bool:
        """Guess; the log has a line about wrong keys every second."""
        assert stranger.get("/images", headers=wrong).status_code == 401
        return re.search(r"guess-77.*wrong keys lately", locked.output()) is not None

    wait_until(is_logged, "the line with the id")


# Pages of other sites

EVIL = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}
IMAGE = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}


def test_a_form_of_another_site_stores_nothing(admin):
    form = {"files": {"file": ("a.png", picture("form"))}, "headers": EVIL}
    assert "another site" in problem(admin.post("/index?id=form", **form), 403)
    assert admin.get("/images/form/record").status_code == 404


@pytest.mark.parametrize("headers", [EVIL, IMAGE], ids=["fetch", "image"])
@pytest.mark.parametrize("id", ["secret", "nothing"])
def test_another_site_can_not_tell_what_is_stored(admin, photo, headers, id):
    answer = admin.get(f"/images/{id}", headers=headers)
    assert problem(answer, 403) == problem(admin.get("/images/x", headers=headers), 403)
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_name_that_was_pointed_here_reads_and_deletes_nothing(operations, locked, admin, photo):
    rebound = {"Host": f"evil.example:{locked.port}"}
    for method, path, _ in [*operations, ("GET", "/", None), ("GET", "/page/main.js", None)]:
        assert request(admin, method, path, **rebound).status_code == 421, (method, path)
    assert admin.get("/images/secret/record").status_code == 200


# Odd paths and headers


@pytest.mark.parametrize(
    "path",
    [
        *("/page/../../serve_config.yaml", "/page/%2e%2e%2fapp.py", "/page/..%5capp.py"),
        *("//images", "/images/", "/index/", "/images/..%2f..%2fetc%2fpasswd", "/images/%00"),
        *("/images/a%0d%0aX-Evil:1", "/%2e%2e/images", "/images;x=1", "/IMAGES", "/./images"),
        *("/images/%ff", "/images/%F0%9F%90%88", "/-/../images", "http://evil.example/x"),
    ],
)
def test_odd_paths_lead_nowhere(port, path):
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    answer = exchange(port, f"{head}\r\n".encode())
    (status,) = statuses(answer)
    assert status in (400, 401, 404, 405, 421)
    assert b"\r\nX-Evil" not in answer
    assert b"location:" not in answer.lower()


@pytest.mark.parametrize(
    "header",
    [
        *("X-Request-Timeout-Seconds: 0", "X-Request-Disconnect-Disabled: ?1"),
        *("Serve-Multiplexed-Model-Id: x", "X-Session-Id: x", "X-Request-Id: a b"),
    ],
)
def test_what_steers_the_proxy_is_refused(port, header):
    head = f"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{header}\r\n\r\n"
    assert statuses(exchange(port, head.encode())) == [400]


# Two requests in the body of one: whoever reads it differently would let the second one through

INNER = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        b"Content-Length: 4\r\nContent-Length: 60\r\n",
        b"Content-Length: 4, 60\r\n",
        b"Content-Length: +4\r\n",
        b"Content-Length: 0x4\r\n",
        b"Content-Length: -1\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding:\x0bchunked\r\n",
        b"X: y\nTransfer-Encoding: chunked\r\n",
    ],
)
def test_a_body_is_read_in_one_way(port, head):
    data = b"POST /index HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n" + head
    answer = exchange(port, data + b"\r\n0\r\n\r\n" + INNER)
    found = statuses(answer)
    # Either the whole is refused, or there are two requests one after the other, as HTTP says.
    assert found
    assert all(400 <= status < 500 for status in found), answer
    if 404 in found or 401 in found[1:]:
        assert len(found) == 2
        assert b"chunked" in head


# Slow ones


def test_slow_heads_and_bodies_keep_nobody_out(locked, admin):
    head = b"POST /index HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
    heads = [connect(locked.port) for _ in range(150)]
    bodies = [connect(locked.port) for _ in range(150)]
    try:
        for connection in bodies:
            connection.sendall(head + b"Content-Length: 1000\r\n\r\n")
        drip([*heads, *bodies], head[:6], 4)
        assert admin.get("/healthz").status_code == 200
        assert admin.get("/images?limit=1").status_code == 200
        assert not any(map(is_answered, heads))  # nobody had to be sent away before
    finally:
        for connection in [*heads, *bodies]:
            connection.close()
