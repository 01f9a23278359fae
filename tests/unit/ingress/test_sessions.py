"""Keys in requests: what each of them allows, and what wrong ones get."""

import asyncio
import logging
import time

import pytest
from starlette.testclient import TestClient

from deployments.errors import Unavailable
from deployments.ingress import sessions
from deployments.ingress.app import build_app
from deployments.ingress.keys import SCOPES, make_key, revoke_key
from deployments.ingress.sessions import COOKIE, Failures
from deployments.settings import HttpSettings
from tests.support.ingress.fake_inset import REQUESTS

HERE = "http://localhost:8000"
# The scope that each operation needs; "" for any key, None for none.
NEEDED = {
    "index": "write",
    "search": "search",
    "list": "read",
    "get": "read",
    "thumbnail": "read",
    "record": "read",
    "delete": "admin",
    "check": None,
    "ready": None,
    "stats": "",
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("deployments.ingress.keys.LOOK_S", 0)
    monkeypatch.setattr(sessions, "WAIT_PER_FAILURE_S", 0.0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.json"


@pytest.fixture
def client(service, path):
    make_key(path, "first", ("admin",))
    return TestClient(build_app(service, http=HttpSettings(keys_path=str(path))), base_url=HERE)


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def ask(client, operation, headers=None):
    method, path, request = REQUESTS[operation]
    headers = {**request.get("headers", {}), **(headers or {})}
    return client.request(method, path, **{**request, "headers": headers})


def test_every_operation_has_its_line():
    assert NEEDED.keys() == REQUESTS.keys()


@pytest.mark.parametrize("operation", REQUESTS)
@pytest.mark.parametrize("scope", SCOPES)
def test_a_key_allows_what_its_scope_says(client, service, path, operation, scope):
    key = make_key(path, "mine", (scope,))
    answer = ask(client, operation, bearer(key))
    if NEEDED[operation] in (scope, "", None) or scope == "admin":
        assert answer.is_success
        return
    assert answer.status_code == 403
    assert "mine" in answer.json()["detail"]
    assert NEEDED[operation] in answer.json()["detail"]
    assert service.calls == []


@pytest.mark.parametrize("operation", REQUESTS)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("inset_wrong"),
        bearer(""),
        {"Authorization": "Basic eDp5"},
        {"Authorization": "x"},
    ],
)
def test_without_a_right_key_nothing_is_done(client, service, operation, headers):
    answer = ask(client, operation, headers)
    if NEEDED[operation] is None:
        assert answer.is_success
        return
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.headers["content-type"] == "application/problem+json"
    assert service.calls == []


def test_a_key_comes_before_what_else_is_wrong(client):
    """Nobody learns without a key what would be right."""
    assert client.get("/images?limit=x").status_code == 401
    assert client.post("/search?colour=red").status_code == 401
    assert client.get("/images/a b").status_code == 401


def test_keys_are_made_and_revoked_while_it_runs(client, path):
    key = make_key(path, "phone", ("read",))
    assert ask(client, "list", bearer(key)).status_code == 200
    revoke_key(path, "phone")
    assert ask(client, "list", bearer(key)).status_code == 401


def test_the_last_key_that_is_revoked_leaves_the_door_locked(client, path):
    revoke_key(path, "first")
    assert ask(client, "list").status_code == 401
    path.unlink()
    assert ask(client, "list").status_code == 401


def test_without_a_file_of_keys_all_is_allowed(service, path):
    client = TestClient(build_app(service, http=HttpSettings(keys_path=str(path))), base_url=HERE)
    assert ask(client, "delete").status_code == 204
    assert client.get("/session").json() == {"name": None, "scopes": list(SCOPES), "keys": False}
    key = make_key(path, "first", ("read",))
    assert ask(client, "delete").status_code == 401
    assert ask(client, "list", bearer(key)).status_code == 200


def test_a_broken_file_lets_nobody_in(client, path):
    path.write_text("{")
    answer = ask(client, "list")
    assert answer.status_code == 503
    assert "keys.json is no file of keys" in answer.json()["detail"]


def test_a_key_in_the_address_is_none(client, path):
    key = make_key(path, "phone", ("read",))
    assert client.get("/images", params={"key": key}).status_code == 401
    assert client.get("/images", params={"access_token": key}).status_code == 401


# The session of the page


def test_a_session_keeps_the_key(client, path):
    key = make_key(path, "page", ("read", "search"))
    answer = client.post("/session", headers=bearer(key))
    assert answer.json() == {"name": "page", "scopes": ["search", "read"], "keys": True}
    cookie = answer.headers["set-cookie"]
    for part in ("HttpOnly", "SameSite=strict", "Path=/"):
        assert part in cookie
    assert "Secure" not in cookie
    assert client.cookies[COOKIE] == key
    assert ask(client, "list").status_code == 200
    assert ask(client, "delete").status_code == 403
    assert client.get("/session").json()["name"] == "page"
    ended = client.delete("/session")
    assert (ended.status_code, ended.headers["clear-site-data"]) == (204, '"cache"')
    assert COOKIE not in client.cookies
    assert ask(client, "list").status_code == 401
    assert client.get("/session").status_code == 401


@pytest.mark.parametrize("headers", [{}, bearer("inset_wrong")])
def test_no_session_without_a_right_key(client, headers):
    answer = client.post("/session", headers=headers)
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers


def test_a_session_over_tls_stays_there(service, path):
    key = make_key(path, "page", ("read",))
    http = HttpSettings(keys_path=str(path), allowed_hosts=["photos.example.org"])
    client = TestClient(build_app(service, http=http), base_url="http://photos.example.org")
    headers = {**bearer(key), "Origin": "https://photos.example.org"}
    assert "Secure" in client.post("/session", headers=headers).headers["set-cookie"]


def test_an_admin_has_all_scopes(client, path):
    key = make_key(path, "boss", ("admin",))
    assert client.get("/session", headers=bearer(key)).json()["scopes"] == list(SCOPES)


# Wrong keys


def test_wrong_keys_wait_longer_and_longer_and_a_right_one_never(monkeypatch):
    monkeypatch.setattr(sessions, "WAIT_PER_FAILURE_S", 0.02)
    monkeypatch.setattr(sessions, "LONGEST_WAIT_S", 0.2)
    failures, waits = Failures(), []

    async def fail():
        start = time.monotonic()
        await failures.wait("203.0.113.9")
        waits.append(time.monotonic() - start)

    async def attack():
        await asyncio.gather(*[fail() for _ in range(50)])

    asyncio.run(attack())
    assert min(waits) < max(waits)
    assert 0.19 < max(waits) < 10


def test_only_so_many_wait(monkeypatch):
    monkeypatch.setattr(sessions, "WAIT_PER_FAILURE_S", 0.3)
    monkeypatch.setattr(sessions, "MOST_WAITING", 3)

    async def attack():
        failures = Failures()
        return await asyncio.gather(
            *[failures.wait("203.0.113.9") for _ in range(5)], return_exceptions=True
        )

    results = asyncio.run(attack())
    assert [type(result) for result in results if result is not None] == [Unavailable] * 2


def test_wrong_keys_are_logged_with_their_address_and_without_the_key(client, caplog, monkeypatch):
    monkeypatch.setattr(sessions, "LOG_S", 60)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            ask(client, "list", bearer("inset_secret"))
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["wrong keys lately: 1, the last one from testclient"]
    assert "secret" not in caplog.text
