"""How fast the machine itself is at the moment: neighbours on the same host take from it.

The same small computation before and between the measurements. It counts the CPU time of one
thread, so that a service that runs beside it doesn't count, but a slower core does.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch

SIDE = 512  # of the matrices: they fit a core's own cache
SECONDS = 0.5  # of CPU time

COLUMNS = {
    "moment": ("moment", "{}"),
    "pace": ("pace", "{:.2f}"),
}


def pace() -> float:
    """Return how many multiplications of matrices a second of one core's time holds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        matrix = torch.eye(SIDE)
        torch.mm(matrix, matrix)  # the first one chooses its kernel
        began, count = time.thread_time(), 0
        while time.thread_time() - began < SECONDS:
            torch.mm(matrix, matrix)
            count += 1
        return count / (time.thread_time() - began)
    finally:
        torch.set_num_threads(threads)


def rows(paces: Iterable[tuple[dict[str, Any], float]]) -> list[dict[str, Any]]:
    """Return the paces of all moments, of the fastest one."""
    paces = list(paces)
    fastest = max(found for _, found in paces)
    return [moment | {"pace": found / fastest} for moment, found in paces]
