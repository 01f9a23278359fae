"""The machine that a benchmark runs on, and how fast it is at the moment.

On a shared host, other users slow the machine down. So the same small computation runs before and
between the measurements. It counts the CPU time of one thread: a service that runs at the same time
makes no difference, but a slower core does.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

# Instructions that determine how fast networks are on a CPU.
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
PACKAGES = ("torch", "ray", "transformers")
GIB = 2**30

SIDE = 512  # of the matrices, which fit in a core's own cache
SECONDS = 0.5  # of CPU time

PACE_COLUMNS = {
    "moment": ("moment", "{}"),
    "pace": ("pace", "{:.2f}"),
}


def describe_machine() -> dict[str, str]:
    """Return what figures depend on besides the code: CPU, memory, versions."""
    known = dict(
        line.split(":", 1)
        for line in Path("/proc/cpuinfo").read_text().replace("\t", "").splitlines()
        if ":" in line
    )
    flags = known.get("flags", "").split()
    return {
        "CPU": known.get("model name", platform.machine()).strip(),
        "cores": str(os.cpu_count()),
        "instructions": ", ".join(flag for flag in FLAGS if flag in flags) or "none of these",
        "memory": f"{psutil.virtual_memory().total / GIB:.0f} GiB",
        "Python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def pace() -> float:
    """Return how many multiplications of matrices fit in a second of one core's time."""
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


def pace_rows(paces: Iterable[tuple[dict[str, Any], float]]) -> list[dict[str, Any]]:
    """Return rows of moments and paces, as shares of the fastest one."""
    paces = list(paces)
    fastest = max(found for _, found in paces)
    return [moment | {"pace": found / fastest} for moment, found in paces]
