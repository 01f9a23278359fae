"""Waiting for a condition, and calls at the same time."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 30) -> None:
    """Return when a condition holds; fail when it doesn't in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout_s} s in vain: {what}")
        time.sleep(0.05)


def together(calls: list[Callable[[], Any]]) -> list[Any]:
    """Make calls at the same time; return what they return, in order."""
    with ThreadPoolExecutor(len(calls)) as threads:
        return [future.result() for future in [threads.submit(call) for call in calls]]
