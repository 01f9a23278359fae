"""Fixtures of several folders of unit tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.store.store import Store
from tests.support.stored.stores import ENCODER


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return where a test's store lies; nothing is there yet."""
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path) -> Iterator[Store]:
    """Return an empty store."""
    store = Store(folder, ENCODER)
    yield store
    store.close()
