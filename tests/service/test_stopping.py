"""How a service ends that systemd or Docker stops, by the signal that the documents name.

It is the shared service, when all other tests have asked what they wanted.
"""

from __future__ import annotations

import signal
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil

from tests.support.service.services import OwnService

PICTURES = ("chelsea.png", "coffee.png", "astronaut.png", "rocket.jpg")


def index(service: OwnService, photo: Path) -> httpx.Response:
    """Store a photo, as one that isn't stored yet."""
    files = {"file": (photo.name, photo.read_bytes())}
    parameters = {"id": f"stopping-{photo.name}"}
    return httpx.post(f"{service.url}/index", files=files, params=parameters, timeout=60)


def test_it_ends_quietly_and_can_start_again_at_once(service: OwnService, photos: Path) -> None:
    first, *others = (photos / name for name in PICTURES)
    assert index(service, first).status_code == 201
    family = service.processes()
    with ThreadPoolExecutor(len(others)) as clients:
        asked: dict[Path, Future[httpx.Response]] = {
            photo: clients.submit(index, service, photo) for photo in others
        }
        printed = len(service.output())
        service.launched().send_signal(signal.SIGTERM)  # as systemd does it: to the first one only
        _, left = psutil.wait_procs(family, timeout=90)
    assert not left
    assert service.launched().wait() == 0
    for word in ("Traceback", "***", "PC: @"):
        assert word not in service.output()[printed:]
    # Some may have been hung up on, but what was answered is there.
    answered = {photo: one.result() for photo, one in asked.items() if one.exception() is None}
    stored = [first, *(photo for photo, answer in answered.items() if answer.status_code == 201)]

    service.start()
    for photo in stored:
        original = httpx.get(f"{service.url}/images/stopping-{photo.name}", timeout=60)
        assert original.content == photo.read_bytes()
