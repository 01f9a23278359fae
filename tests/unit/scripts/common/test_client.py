"""The key that every script sends, and what is said when the service refuses."""

from __future__ import annotations

import asyncio
import sys

import httpx
import index
import pytest
import search as search_script
import store as store_script
from benchmarks.closed_loop import Client
from common.client import (
    KEY,
    NotAllowed,
    RequestFailed,
    call,
    fetch_stats,
    key_headers,
    open_async_client,
    open_client,
    search,
)

URL = "http://service"
SECRET = "inset_" + "s" * 43


class Locked:
    """A service that knows one key, which may search."""

    def __init__(self) -> None:
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        if request.url.path == "/healthz":
            return httpx.Response(200, json={})
        given = request.headers.get("Authorization")
        if given != f"Bearer {SECRET}":
            detail = "This needs a key." if given is None else "This key is not known."
            return httpx.Response(401, json={"detail": detail})
        if request.url.path == "/search":
            photo = {"url": "/images/a", "id": "a", "verified": False}
            return httpx.Response(200, json={"found": None, "texture": None, "matches": [photo]})
        if request.url.path == "/stats":
            return httpx.Response(200, json={"store": {"photos": 1}})
        return httpx.Response(403, json={"detail": "The key phone may not do this."})


@pytest.fixture
def locked(answers) -> Locked:
    return answers(Locked())


def test_without_a_key_nothing_is_sent(locked, monkeypatch) -> None:
    for given in (None, "", " "):
        if given is not None:
            monkeypatch.setenv(KEY, given)
        assert key_headers() == {}
        with pytest.raises(NotAllowed):
            fetch_stats(URL)
    assert all("Authorization" not in request.headers for request in locked.asked)


@pytest.mark.parametrize("given", [SECRET, f" {SECRET}\n"])
def test_the_key_is_in_a_header_of_each_request_and_in_no_url(locked, monkeypatch, given) -> None:
    monkeypatch.setenv(KEY, given)
    assert fetch_stats(URL) == {"store": {"photos": 1}}
    assert search(URL, b"query", limit=3)["matches"][0]["id"] == "a"
    with open_client(URL) as client:
        client.get("/stats")

    async def ask() -> None:
        async with open_async_client(URL) as client:
            await client.get("/stats")

    asyncio.run(ask())
    assert len(locked.asked) == 4
    for request in locked.asked:
        assert request.headers["Authorization"] == f"Bearer {SECRET}"
        assert SECRET not in str(request.url)


def test_clients_of_benchmarks_send_it_too(monkeypatch) -> None:
    monkeypatch.setenv(KEY, SECRET)
    client = Client("http://127.0.0.1:1")
    sent = []
    monkeypatch.setattr(
        client._connection, "request", lambda method, path, body, headers: sent.append(headers)
    )
    monkeypatch.setattr(client._connection, "getresponse", lambda: (_ for _ in ()).throw(OSError))
    client.post("/search", b"query")
    assert sent == [{"Content-Type": "image/*", "Authorization": f"Bearer {SECRET}"}]


@pytest.mark.parametrize("given", ["two words", "a\nb", "schl\u00fcssel"])
def test_what_cant_be_sent_is_told_but_not_printed(locked, monkeypatch, given) -> None:
    monkeypatch.setenv(KEY, given)
    with pytest.raises(RequestFailed, match="INSET_KEY is no key") as caught:
        fetch_stats(URL)
    assert given not in str(caught.value)
    assert locked.asked == []


def test_what_to_do_is_said_without_a_key_and_with_a_wrong_one(locked, monkeypatch) -> None:
    advice = r" Set INSET_KEY to a key of this service \(scripts/keys.py makes them\)\.$"
    with pytest.raises(NotAllowed, match=rf"^401: This needs a key\.{advice}"):
        call(URL, "GET", "/stats")
    monkeypatch.setenv(KEY, "inset_wrong")
    with pytest.raises(NotAllowed, match=rf"^401: This key is not known\.{advice}") as caught:
        call(URL, "GET", "/stats")
    assert "inset_wrong" not in str(caught.value)
    monkeypatch.setenv(KEY, SECRET)
    with pytest.raises(NotAllowed, match=r"^403: The key phone may not do this\.$"):
        call(URL, "DELETE", "/images/a")


@pytest.fixture
def run(monkeypatch, capsys):
    def run(script, *words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["script.py", *map(str, words)])
        status = script.main()
        return status, *capsys.readouterr()

    return run


@pytest.mark.parametrize("script", [index, search_script])
def test_scripts_end_with_one_sentence_if_the_door_is_locked(
    locked, run, tmp_path, monkeypatch, script
) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(name.encode())
    monkeypatch.setenv(KEY, "inset_wrong")
    status, out, err = run(script, tmp_path / "a.png", "--url", URL)
    assert (status, out) == (1, "")
    assert "401: This key is not known. Set INSET_KEY" in err
    assert "Traceback" not in err
    assert "inset_wrong" not in err


def test_a_picture_of_photos_that_the_key_may_not_read_is_a_sentence(
    locked, run, tmp_path, monkeypatch
) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "query.png")
    monkeypatch.setenv(KEY, SECRET)
    monkeypatch.setattr(search_script, "list_answer", lambda *_: "the answer")
    options = ["--url", URL, "--picture", tmp_path / "out.png"]
    status, out, err = run(search_script, tmp_path / "query.png", *options)
    assert (status, out) == (1, "the answer\n")
    assert err == "403: The key phone may not do this.\n"


def test_the_index_of_a_locked_service_is_compared_with_a_key_only(locked, monkeypatch) -> None:
    with pytest.raises(store_script.NotComparable, match="401: This needs a key"):
        store_script.read_index_state(URL)
    monkeypatch.setenv(KEY, SECRET)
    with pytest.raises(store_script.NotComparable, match="no Inset service"):
        store_script.read_index_state(URL)
