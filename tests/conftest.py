"""The fixtures of all tests."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.paths import PHOTOS
from tests.support.running.examples import register_profiles
from tests.support.running.slow import Guard
from tests.support.service.services import LIMITS, QUEUES, Locked, OwnService

# They start services of their own, the longest first.
OWN = (
    "tests/service/test_crashtest.py",
    "tests/service/test_evaluate_service.py",
    "tests/service/test_bench_gpu_service.py",
    "tests/service/test_startup.py",
)
# It stops the shared service, and starts it again.
LAST = "tests/service/test_stopping.py"


def asks_service(nodeid: str) -> bool:
    """Tell whether a test is in a file that asks the shared services."""
    return nodeid.startswith(("tests/page/", "tests/service/")) and not nodeid.startswith(OWN)


register_profiles()
guard = Guard()


def pytest_configure() -> None:
    """Watch what tests do that aren't marked as slow."""
    guard.install()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark a test as slow that uses a fixture which starts something."""
    if "slow" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.slow)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let the files that ask the shared services come last, and of these the page's first.

    While a service runs, it takes its share of the machine; the page is tested with a store that
    has only its own photos. Where several processes test, what lasts longest comes first.
    """

    def turn(item: pytest.Item) -> tuple[int, bool, bool]:
        last = 2 if asks_service(item.nodeid) else item.nodeid.startswith(OWN)
        place = -last if hasattr(config, "workerinput") else last
        page = item.nodeid.startswith("tests/page/")
        return place, item.nodeid.startswith(LAST), not page

    items.sort(key=turn)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Test a file in one process, and all files that ask the shared services in the same."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "service" if asks_service(nodeid) else super()._split_scope(nodeid)

    return Scheduling(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let only tests that are marked do what is slow; fixtures that they need included."""
    guard.is_on = item.get_closest_marker("slow") is None
    try:
        return (yield)
    finally:
        guard.is_on = False


@pytest.fixture(scope="session")
def slow() -> None:
    """Mark all tests as slow that use a fixture which asks for this one."""


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Let child processes heed SIGINT also where pytest runs in the background of a shell."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def photos() -> Path:
    """Return the folder of the free photos in scikit-image's wheel."""
    return PHOTOS


@pytest.fixture(scope="session")
def service(slow: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnService]:
    """Start the service that all tests share: as configured by default, but for small limits and
    short queues.

    Tests leave photos behind, so none may assume that the store is empty.
    """
    with OwnService(tmp_path_factory.mktemp("service"), {"limits": LIMITS}, QUEUES) as service:
        service.start()
        yield service


@pytest.fixture(scope="session")
def client(service: OwnService) -> Iterator[httpx.Client]:
    """Return a client of the shared service."""
    with httpx.Client(base_url=service.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def locked(slow: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locked]:
    """Start the service that takes keys, which tests share: by `serve run` alone."""
    with Locked(tmp_path_factory.mktemp("locked")) as service:
        service.start()
        yield service


@pytest.fixture(scope="session")
def admin(locked: Locked) -> Iterator[httpx.Client]:
    """Return a client of the service that takes keys, with one that allows everything."""
    with httpx.Client(base_url=locked.url, headers=locked.admin, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def batches_without_replicas() -> Iterator[None]:
    """Let `serve.batch` work where no replica is around it."""
    from tests.support.graph.batches import batches_without_replicas

    with batches_without_replicas():
        yield
