"""Work in a new process, which has memory and an environment of its own."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

R = TypeVar("R")


def in_new_process(work: Callable[..., R], *args: Any, environment: Mapping[str, str]) -> R:
    """Call a function of a module in a new process; return what it returns, or raise its error.

    Args:
        environment: variables to add. The allocator and OpenMP read theirs when a process begins.

    Raises:
        BrokenProcessPool: the process was killed.
    """
    before = dict(os.environ)
    os.environ |= environment
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            return process.submit(work, *args).result()
    finally:
        os.environ.clear()
        os.environ |= before
