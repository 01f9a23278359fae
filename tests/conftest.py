"""The fixtures of all tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.paths import PHOTOS
from tests.support.services import LIMITS, QUEUES, Service


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the files that ask the service come last: while it runs, it takes its share of the
    machine, also from those that start a service of their own.
    """
    asking = {item.path for item in items if "service" in item.fixturenames}
    items.sort(key=lambda item: item.path in asking)


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Let child processes heed SIGINT also where pytest runs in the background of a shell."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def photos() -> Path:
    """Return the folder of the free photos in scikit-image's wheel."""
    return PHOTOS


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Start the service that all tests share: as configured by default, but for small limits and
    short queues.

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
    """Return a client of the shared service."""
    with httpx.Client(base_url=service.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def batches_without_replicas() -> Iterator[None]:
    """Let `serve.batch` work where no replica is around it."""
    from tests.support.batches import batches_without_replicas

    with batches_without_replicas():
        yield
