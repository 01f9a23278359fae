"""What was acknowledged stays, whatever is killed; and what can't start says why and ends."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from conftest import Service, picture, together, wait_until

from deployments.records import EncoderIdentity
from deployments.store import Store

PNG = {"Content-Type": "image/png"}
IN_FLIGHT = 4
RECOVERY_S = 90
START_FAILURE_S = 60


def identity(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Indexing:
    """Indexes pictures with several requests in flight, each until it is acknowledged.

    Attributes:
        acknowledged: pictures by id, as their 201 comes.
    """

    def __init__(self, url: str, pictures: list[bytes]) -> None:
        self.acknowledged: dict[str, bytes] = {}
        self._url = url
        self._pictures = iter(pictures)
        self._next = threading.Lock()
        self._stopped = threading.Event()

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Index while the block runs, and go on until all is done, unless `stop` was called."""
        with ThreadPoolExecutor(IN_FLIGHT) as threads:
            workers = [threads.submit(self._work) for _ in range(IN_FLIGHT)]
            try:
                yield
            except BaseException:
                self.stop()
                raise
        for worker in workers:
            worker.result()

    def stop(self) -> None:
        """Begin no other request, and try none again."""
        self._stopped.set()

    def wait_for(self, count: int) -> None:
        """Return when so many are acknowledged."""
        wait_until(lambda: len(self.acknowledged) >= count, f"{count} photos", RECOVERY_S)

    def _work(self) -> None:
        with httpx.Client(base_url=self._url, timeout=60) as client:
            while not self._stopped.is_set():
                with self._next:
                    data = next(self._pictures, None)
                if data is None:
                    return
                self._index(client, data)

    def _index(self, client: httpx.Client, data: bytes) -> None:
        deadline = time.monotonic() + RECOVERY_S
        while not self._stopped.is_set():
            assert time.monotonic() < deadline, "the service doesn't recover"
            with suppress(httpx.TransportError):
                response = client.post("/index", content=data, headers=PNG)
                if response.status_code == 201:
                    self.acknowledged[response.json()["images"][0]["id"]] = data
                    return
                assert response.status_code == 503, response.text
                assert response.json()["detail"]
            self._stopped.wait(0.3)


def kill(service: Service, *deployments: str) -> None:
    """SIGKILL the replicas of deployments at a random moment."""
    time.sleep(random.uniform(0, 0.3))
    for deployment in deployments:
        replicas = service.replicas(deployment)
        assert replicas, f"there is no replica of {deployment}"
        for replica in replicas:
            replica.kill()


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
    """A service that may be killed, with short queues."""
    queues = {"max_ongoing_requests": 2, "max_queued_requests": 6}
    service = Service(
        tmp_path_factory.mktemp("own"),
        {"segmenter": {"batch_size": 2}},
        {"Segmenter": queues, "QueryEncoder": queues},
    )
    try:
        service.start()
        yield service
    finally:
        service.kill_everything()


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


def test_any_replica_may_be_killed_while_photos_are_indexed(own, client):
    """The service recovers by itself; each photo is stored once, and found."""
    before = set(listed(client))
    sequence = client.get("/stats").json()["store"]["sequence"]
    pictures = [picture(f"kill {number}") for number in range(24)]
    indexing = Indexing(own.url, pictures)
    with indexing.going_on():
        indexing.wait_for(3)
        kill(own, "Store")
        indexing.wait_for(9)
        kill(own, "ChunkIndex", "IndexEncoder")
        indexing.wait_for(15)
        kill(own, "Store", "QueryEncoder", "Segmenter")
    assert set(indexing.acknowledged) == set(map(identity, pictures))
    own.wait_until_ready()

    found = listed(client)
    assert len(found) == len(set(found))
    assert set(found) - before == set(indexing.acknowledged)
    # Each photo was put once, though requests were repeated.
    assert client.get("/stats").json()["store"]["sequence"] == sequence + len(pictures)
    assert_whole(client, indexing.acknowledged)


def test_what_was_acknowledged_survives_the_death_of_everything(own, client):
    before = set(listed(client))
    pictures = {identity(data): data for data in (picture(f"death {n}") for n in range(200))}
    indexing = Indexing(own.url, list(pictures.values()))
    with indexing.going_on():
        indexing.wait_for(6)
        indexing.stop()
        own.kill_everything()
    assert len(indexing.acknowledged) < len(pictures)

    own.start()
    found = set(listed(client))
    assert found >= before | set(indexing.acknowledged)
    # One that was stored but not acknowledged is as whole as the others.
    assert found <= before | set(pictures)
    assert_whole(client, {id: pictures[id] for id in found - before})
    assert client.get("/stats").json()["chunk_index"]["photos"] == len(found)


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
    """Services that can't start; started together, because each takes a while to say so."""

    def folder(name: str) -> Path:
        return tmp_path_factory.mktemp(name)

    services = {
        "unknown key": Service(folder("key"), {"segmenter": {"confidence": 0.5}}),
        "no such encoder": Service(
            folder("encoder"), {"encoder": {"pretrained_model_name_or_path": "openai/no-such-clip"}}
        ),
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
        ("no such encoder", ["openai/no-such-clip"]),
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
