"""Photos, tiny models and a running service for the tests."""

from __future__ import annotations

import hashlib
import io
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import skimage
from common.own_service import OwnService as Service
from common.own_service import free_port
from common.paths import ROOT
from PIL import Image

# Their assertions explain themselves as those of tests do.
pytest.register_assert_rewrite("boxes", "http_client", "stores")

__all__ = ["ROOT", "Service", "free_port"]  # for the tests, besides what is defined here

PHOTOS = Path(skimage.__file__).parent / "data"
# What can be refused is refused here early, so that the tests needn't send much.
LIMITS = {
    "max_image_bytes": 4 * 2**20,
    "max_request_bytes": 6 * 2**20,
    "max_pixels": 20_000_000,
    "timeout_s": 60,
}
# Short, so that the test that fills them needn't send much; no other test sends as many at once.
QUEUES = {"max_ongoing_requests": 4, "max_queued_requests": 40}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the files that ask the service come last: while it runs, it takes its share of the
    machine, also from those that start a service of their own.
    """
    asking = {item.path for item in items if "service" in item.fixturenames}
    items.sort(key=lambda item: item.path in asking)


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 30) -> None:
    """Return when a condition holds; fail when it doesn't in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout_s} s in vain: {what}")
        time.sleep(0.05)


def encode(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(name: str, width: int = 96, height: int = 64) -> Image.Image:
    """A coarse pattern that follows from a name, so that each test has pictures of its own."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def picture(name: str) -> bytes:
    return encode(pixels(name))


def together(calls: list[Callable[[], Any]]) -> list[Any]:
    """Make calls at the same time; returns what they return, in order."""
    with ThreadPoolExecutor(len(calls)) as threads:
        return [future.result() for future in [threads.submit(call) for call in calls]]


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Let child processes heed SIGINT also where pytest runs in the background of a shell."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def photos() -> Path:
    """Folder of the free photos in scikit-image's wheel."""
    return PHOTOS


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service as configured by default, but for small limits and short queues; shared by all
    tests.

    Tests leave photos behind, so none may assume that the store is empty.
    """
    with Service(
        tmp_path_factory.mktemp("service"),
        {"limits": LIMITS},
        {"Segmenter": QUEUES, "QueryEncoder": QUEUES},
    ) as service:
        service.start()
        yield service


@pytest.fixture(scope="session")
def client(service: Service) -> Iterator[httpx.Client]:
    """A client of the shared service."""
    with httpx.Client(base_url=service.url, timeout=60) as client:
        yield client
