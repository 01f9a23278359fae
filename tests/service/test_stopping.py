"""How a service ends that systemd or Docker stops, by the signal that the documents name."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.services import OwnService

PICTURES = ("chelsea.png", "coffee.png", "astronaut.png", "rocket.jpg")


@pytest.fixture
def service(slow: None, tmp_path: Path) -> Iterator[OwnService]:
    with OwnService(tmp_path) as service:
        service.start()
        yield service


def index(service: OwnService, photo: Path) -> httpx.Response:
    files = {"file": (photo.name, photo.read_bytes())}
    return httpx.post(f"{service.url}/index", files=files, timeout=60)


def test_it_ends_quietly_and_can_start_again_at_once(service: OwnService, photos: Path) -> None:
    first, *others = (photos / name for name in PICTURES)
    assert index(service, first).status_code == 201
    family = service.processes()
    with ThreadPoolExecutor(len(others)) as clients:
        asked: list[Future[httpx.Response]] = [
            clients.submit(index, service, photo) for photo in others
        ]
        printed = len(service.output())
        service.launched().send_signal(signal.SIGINT)  # as systemd does it: to the first one only
        _, left = psutil.wait_procs(family, timeout=90)
    assert not left
    assert service.launched().wait() == 0
    for word in ("Traceback", "***", "PC: @"):
        assert word not in service.output()[printed:]
    # Ray's proxy may have hung up on some, but what was answered is there.
    answered = [one.result() for one in asked if one.exception() is None]
    stored = 1 + sum(answer.status_code == 201 for answer in answered)

    service.start()
    assert httpx.get(f"{service.url}/stats").json()["store"]["photos"] >= stored
