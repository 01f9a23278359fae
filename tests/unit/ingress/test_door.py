"""Which requests come in: by which name, from which site, with which headers."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from deployments.errors import StartupError
from deployments.ingress.app import build_app
from deployments.ingress.door import Door, is_everywhere, is_this_machine_alone
from deployments.ingress.keys import make_key
from deployments.settings import HttpSettings
from tests.support.ingress.fake_inset import PICTURE, PNG, REQUESTS, FakeInset

HERE = "http://localhost:8000"


def client_of(service, **http):
    return TestClient(build_app(service, http=HttpSettings(**http)), base_url=HERE)


async def answer(scope, receive, send):
    """Answer every request with the address of its client."""
    await PlainTextResponse(scope["client"][0])(scope, receive, send)


def status(host, listens_at="127.0.0.1", **http):
    client = TestClient(Door(answer, listens_at, HttpSettings(**http)), base_url=HERE)
    return client.get("/", headers={"host": host}).status_code


# Names


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "localhost:8000", "LocalHost", "localhost.", "127.0.0.1", "127.0.0.1:80"),
        *("127.8.9.1", "[::1]", "[::1]:8000"),
    ],
)
def test_this_machine_is_reached_by_its_own_names(host):
    assert status(host) == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example"),
        *("evil.example@localhost", "localhost@evil.example", "localhost/evil", "localhost:x", ""),
        *("10.0.0.1", "[fe80::1]", "0.0.0.0", "2130706433", "localhost, evil.example", "[::1"),
    ],
)
def test_no_other_name_is(host):
    assert status(host) == 421


def test_other_names_are_allowed_by_the_config():
    allowed = {"allowed_hosts": ["Photos.example.org"]}
    assert status("photos.example.org", **allowed) == 200
    assert status("PHOTOS.example.org:443", **allowed) == 200
    assert status("example.org", **allowed) == 421
    assert status("a.photos.example.org", **allowed) == 421


def test_the_host_that_is_listened_at_is_a_name():
    assert status("10.1.2.3", "10.1.2.3") == 200
    assert status("box.lan:8000", "box.lan") == 200
    assert status("10.1.2.4", "10.1.2.3") == 421
    assert status("[2001:db8::1]:80", "2001:db8::1") == 200


@pytest.mark.parametrize("everywhere", ["0.0.0.0", "::"])
def test_listening_everywhere_allows_addresses_but_no_names(everywhere):
    """A name can be pointed at this machine by its owner, an address can't."""
    assert status("10.1.2.3:8000", everywhere) == 200
    assert status("[2001:db8::1]", everywhere) == 200
    assert status("evil.example", everywhere) == 421
    assert is_everywhere(everywhere)


@pytest.mark.parametrize("hosts", [[], ["localhost", "localhost"], ["localhost", "evil.example"]])
def test_a_request_has_one_name(hosts):
    statuses = []

    async def send(message):
        statuses.append(message.get("status"))

    headers = [(b"host", host.encode()) for host in hosts]
    scope = {"type": "http", "method": "GET", "path": "/", "headers": headers}
    asyncio.run(Door(answer, "127.0.0.1", HttpSettings())(scope, None, send))
    assert statuses[0] == 421


@given(st.text(alphabet="abcdelohst.127:@[]/\\ %#?é\x00", max_size=20))
def test_whatever_the_name_is_it_is_refused_or_this_machine(name):
    door = Door(answer, "127.0.0.1", HttpSettings())
    if door._is_own(name):
        own = name.lower().rstrip("0123456789").rstrip(":").rstrip(".")
        assert own == "localhost" or own.startswith(("127.", "[::1]")) or name.startswith("127.")


# Sites

CROSS = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}
FORM = {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}


@pytest.mark.parametrize("operation", REQUESTS)
@pytest.mark.parametrize(
    "headers",
    [
        CROSS,
        {**CROSS, "sec-fetch-site": "same-site"},  # another port of localhost
        {**CROSS, "sec-fetch-mode": "cors", "sec-fetch-dest": "empty"},
        {**CROSS, "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
        {"sec-fetch-site": "nonsense"},
    ],
)
def test_nothing_is_loaded_by_another_site(service, operation, headers):
    method, path, request = REQUESTS[operation]
    request = {**request, "headers": {**request.get("headers", {}), **headers}}
    answer = client_of(service).request(method, path, **request)
    assert answer.status_code == 403
    assert answer.headers["content-type"] == "application/problem+json"
    assert service.calls == []


@pytest.mark.parametrize("operation", ["index", "search", "delete"])
@pytest.mark.parametrize(
    "headers",
    [
        *(FORM, {"origin": "https://evil.example"}, {"origin": "null"}, {"origin": ""}),
        {"origin": "http://localhost:3000"},
        {"origin": "http://localhost"},
        {"origin": "ftp://localhost:8000"},
        {"origin": "http://localhost:8000:1"},
    ],
)
def test_nothing_is_changed_by_another_site(service, operation, headers):
    """Browsers of before 2023 send no Sec-Fetch-Site, but the Origin."""
    method, path, request = REQUESTS[operation]
    request = {**request, "headers": {**request.get("headers", {}), **headers}}
    assert client_of(service).request(method, path, **request).status_code == 403
    assert service.calls == []


@pytest.mark.parametrize("operation", REQUESTS)
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": HERE, "sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"},
        {"origin": HERE},
        {"sec-fetch-site": "none"},
        {},
    ],
)
def test_the_page_and_programs_come_in(service, operation, headers):
    method, path, request = REQUESTS[operation]
    request = {**request, "headers": {**request.get("headers", {}), **headers}}
    assert client_of(service).request(method, path, **request).is_success


def test_behind_a_proxy_with_tls_the_page_comes_in():
    door = Door(answer, "127.0.0.1", HttpSettings(allowed_hosts=["photos.example.org"]))
    headers = {"host": "photos.example.org", "origin": "https://photos.example.org"}
    assert TestClient(door, base_url=HERE).post("/index", headers=headers).status_code == 200


def test_a_link_from_another_site_opens_the_page(service):
    link = {**CROSS, "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert client_of(service).get("/", headers=link).status_code == 200
    assert client_of(service).post("/index", headers=link).status_code == 403


def test_other_pages_are_allowed_by_the_config(service):
    gallery = "https://gallery.example.org"
    client = client_of(service, cors_origins=[gallery])
    fetch = {"origin": gallery, "sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}
    asked = {"access-control-request-method": "DELETE", "access-control-request-headers": "range"}
    may = client.options("/images/a", headers={**fetch, **asked})
    assert may.status_code == 200
    assert may.headers["access-control-allow-origin"] == gallery
    answer = client.post("/search", content=PICTURE, headers={**PNG, **fetch})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == gallery
    assert "access-control-allow-credentials" not in answer.headers
    assert client.get("/images", headers=fetch).status_code == 200
    evil = {**fetch, "origin": "https://evil.example"}
    assert client.options("/images/a", headers={**evil, **asked}).status_code == 403
    assert client.get("/images", headers=evil).status_code == 403


def test_without_the_config_no_page_is_told_that_it_may(service):
    asked = {"origin": "https://a.example", "access-control-request-method": "GET"}
    answer = client_of(service).options("/images", headers=asked)
    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]


# Headers


@pytest.mark.parametrize(
    "header",
    [
        *("X-Request-Timeout-Seconds", "X-Request-Disconnect-Disabled"),
        *("Serve_Multiplexed_Model_Id", "serve-multiplexed-model-id", "X-Session-Id"),
    ],
)
def test_what_steers_serve_is_not_for_clients(service, header):
    answer = client_of(service).get("/images", headers={header: "0"})
    assert answer.status_code == 400
    assert header.lower() in answer.json()["detail"]
    assert service.calls == []


@pytest.mark.parametrize("id", ["a", "3f9c-11", "root=1;x".replace(";", ":"), "A" * 128])
def test_a_request_may_bring_its_id(service, id):
    assert client_of(service).get("/images", headers={"x-request-id": id}).status_code == 200


@pytest.mark.parametrize("id", ["", "a b", "-a", "A" * 129, "a\tb", "<script>"])
def test_an_id_that_could_harm_a_log_is_refused(service, id):
    answer = client_of(service).get("/images", headers={"x-request-id": id})
    assert answer.status_code == 400


@pytest.mark.parametrize("path", ["/images", "/images/a", "/nothing", "/openapi.json", "/healthz"])
def test_no_answer_may_act_as_a_page_or_be_shown_by_another_site(service, path):
    headers = client_of(service).get(path).headers
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert "sandbox" in headers["content-security-policy"]
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["x-content-type-options"] == "nosniff"


def test_the_page_has_a_policy_of_its_own(service):
    policy = client_of(service).get("/").headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "sandbox" not in policy


# Proxies


def address(peer, forwarded, behind_haproxy=False, **http):
    door = Door(answer, "127.0.0.1", HttpSettings(**http), behind_haproxy)
    client = TestClient(door, base_url=HERE, client=peer)
    return client.get("/", headers={"x-forwarded-for": forwarded}).text


def test_what_a_proxy_says_of_the_client_counts_if_it_is_trusted():
    assert address(("10.0.0.7", 40000), "203.0.113.9") == "10.0.0.7"
    assert address(("10.0.0.7", 40000), "203.0.113.9", trusted_proxies=["10.0.0.0/8"]) == (
        "203.0.113.9"
    )
    # Whoever comes before the proxy may say what it likes.
    chain = "1.1.1.1, 203.0.113.9"
    assert address(("10.0.0.7", 1), chain, trusted_proxies=["10.0.0.0/8"]) == "203.0.113.9"


@pytest.mark.parametrize(("forwarded", "port"), [("203.0.113.9", 0), ("203.0.113.9:77", 77)])
def test_what_uvicorn_believes_of_local_programs_counts_if_they_are_trusted(forwarded, port):
    """Uvicorn has put the address in the place of 127.0.0.1 before we see the request."""
    peer = "203.0.113.9", port
    assert address(peer, forwarded) == "127.0.0.1"
    assert address(peer, forwarded, trusted_proxies=["127.0.0.1"]) == "203.0.113.9"


def test_haproxy_says_who_the_client_is():
    """It adds the address that it sees to what the client has sent."""
    peer = "203.0.113.9", 0  # of uvicorn, as above
    claimed = "1.1.1.1, 203.0.113.9"
    assert address(peer, claimed, behind_haproxy=True) == "203.0.113.9"
    proxied = "198.51.100.3, 10.0.0.7"
    assert address(("10.0.0.7", 0), proxied, behind_haproxy=True) == "10.0.0.7"
    assert address(
        ("10.0.0.7", 0), proxied, behind_haproxy=True, trusted_proxies=["10.0.0.0/8"]
    ) == ("198.51.100.3")


# The start


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.1.2.3"])
def test_without_keys_it_serves_this_machine(host):
    assert is_this_machine_alone(host)
    build_app(FakeInset(), host=host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "box.lan", ""])
def test_without_keys_it_serves_nobody_else(tmp_path, host):
    http = HttpSettings(keys_path=str(tmp_path / "keys.json"))
    with pytest.raises(StartupError) as error:
        build_app(FakeInset(), host=host, http=http)
    for part in (host, "keys.json", "scripts/keys.py", "127.0.0.1"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "option", [{"allowed_hosts": ["photos.example.org"]}, {"trusted_proxies": ["127.0.0.1"]}]
)
def test_without_keys_no_reverse_proxy_lets_others_in(tmp_path, option):
    path = tmp_path / "keys.json"
    http = HttpSettings(keys_path=str(path), **option)
    with pytest.raises(StartupError, match=next(iter(option))):
        build_app(FakeInset(), http=http)
    make_key(path, "first", ("admin",))
    build_app(FakeInset(), http=http)


def test_a_file_of_keys_that_is_none_is_said_at_the_start(tmp_path):
    path = tmp_path / "keys.json"
    path.write_text("{}")
    with pytest.raises(StartupError, match="is no file of keys"):
        build_app(FakeInset(), http=HttpSettings(keys_path=str(path)))


def test_websockets_are_not_spoken():
    client = TestClient(build_app(FakeInset()), base_url=HERE)
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/"):
        pass
