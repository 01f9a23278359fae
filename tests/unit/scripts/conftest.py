"""What stands in the place of a service."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import httpx
import pytest
from common.client import KEY

T = TypeVar("T")


@pytest.fixture
def answers(monkeypatch) -> Callable[[T], T]:
    """Return what lets a function answer all requests in the place of a service; without a key."""
    monkeypatch.delenv(KEY, raising=False)

    def answers(handler: T) -> T:
        for name in ("Client", "AsyncClient"):
            kind = getattr(httpx, name)
            monkeypatch.setattr(
                httpx,
                name,
                lambda kind=kind, **options: kind(
                    transport=httpx.MockTransport(handler), **options
                ),
            )
        return handler

    return answers
