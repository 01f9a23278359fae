"""Overload harms nothing, the end is clean; and what can't start says why and ends.

What kills do is in `test_crashtest.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from conftest import Service, picture, together, wait_until

from deployments.records import EncoderIdentity
from deployments.store import Store

PNG = {"Content-Type": "image/png"}
START_FAILURE_S = 180  # two of them start at the same time


def identity(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def listed(client: httpx.Client) -> list[str]:
    return [image["id"] for image in client.get("/images?limit=1000").json()["images"]]


def assert_whole(client: httpx.Client, photos: dict[str, bytes]) -> None:
    """Each photo has its own bytes, and a search by them finds it first."""
    for id, data in photos.items():
        assert id == identity(data)
        assert client.get(f"/images/{id}").content == data
        response = client.post("/search", content=data, headers=PNG, params={"limit": 1})
        (match,) = response.json()["matches"]
        assert match["id"] == id
        assert match["distance"] < 0.001


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with short queues that may be stopped."""
    queues = {"max_ongoing_requests": 2, "max_queued_requests": 6}
    with Service(
        tmp_path_factory.mktemp("own"),
        {"segmenter": {"batch_size": 2}},
        {"Segmenter": queues, "QueryEncoder": queues},
    ) as service:
        service.start()
        yield service


@pytest.fixture
def client(own: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=own.url, timeout=60) as client:
        yield client


def test_an_overloaded_service_says_so_and_harms_nothing(own, client):
    """Each answer is what was asked for, or a 503 that says when to try again."""
    pictures = [picture(f"overload {number}") for number in range(40)]
    for path, success in [("/index", 201), ("/search", 200)]:
        responses = together(
            [
                lambda data=data, path=path: client.post(path, content=data, headers=PNG)
                for data in pictures
            ]
        )
        assert {response.status_code for response in responses} == {success, 503}, path
        for response in responses:
            if response.status_code == 503:
                assert response.headers["content-type"] == "application/problem+json"
                assert int(response.headers["retry-after"]) > 0
                assert "queue is full" in response.json()["detail"]
        if path == "/index":
            stored = [data for data, r in zip(pictures, responses, strict=True) if r.is_success]
            assert sorted(listed(client)) == sorted(map(identity, stored))
    assert client.get("/healthz").status_code == 200
    assert_whole(client, {identity(data): data for data in stored})


def test_ctrl_c_stops_everything_and_lets_go_of_the_store(own, client):
    """Last in this file for the service that the tests above share."""
    stats = client.get("/stats").json()
    own.stop()
    encoder = EncoderIdentity(
        **{key: stats["encoder"][key] for key in ("name", "dimension", "digest")}
    )
    store = Store(own.store, encoder, lock_timeout_s=0)
    try:
        assert store.stats().photos == stats["store"]["photos"]
    finally:
        store.close()


# What can't start


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Service]]:
    """Services that can't start: one while the graph is built, one in a replica. They are started
    together, because each takes a while to say so.
    """

    def folder(name: str) -> Path:
        return tmp_path_factory.mktemp(name)

    services = {
        "unknown key": Service(folder("key"), {"segmenter": {"confidence": 0.5}}),
        "other encoder": Service(folder("other")),
    }
    other = EncoderIdentity("other/encoder", 256, "ab" * 32)
    Store(services["other encoder"].store, other).close()
    # As in a script that starts it with `&`, where Ctrl-C reaches nobody.
    in_background = ("sh", "-c", 'trap "" INT; exec "$@"', "sh")
    try:
        for name, service in services.items():
            prefix = in_background if name == "unknown key" else ()
            service.launch(*prefix, HF_HUB_OFFLINE="1")
        yield services
    finally:
        for service in services.values():
            service.kill_everything()


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("unknown key", ["segmenter.confidence is not an option", "confidence_threshold"]),
        ("other encoder", ["other/encoder", "models/compact", "index into a new folder"]),
    ],
)
def test_a_service_that_can_not_start_says_why_and_ends(failures, name, parts):
    service = failures[name]
    wait_until(lambda: service.process.poll() is not None, "serve run ends", START_FAILURE_S)
    sentence = "Inset can't start: "
    lines = [line for line in service.output().splitlines() if sentence in line]
    assert lines, service.output()[-3000:]
    assert len({line.partition(sentence)[2] for line in lines}) == 1
    for part in parts:
        assert part in lines[0]
