"""The application over a service that only remembers what it was asked."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from deployments.ingress.app import build_app
from tests.support.ingress.fake_inset import FakeInset


@pytest.fixture
def service() -> FakeInset:
    """Return the service."""
    return FakeInset()


@pytest.fixture
def client(service: FakeInset) -> TestClient:
    """Return a client that gets every answer, also that to an unforeseen error."""
    return TestClient(
        build_app(service), base_url="http://localhost", raise_server_exceptions=False
    )
