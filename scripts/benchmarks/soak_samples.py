"""What a service takes while it works for long: memory, files, threads, disk; and what grew."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import psutil
from common.own_service import command

from benchmarks.closed_loop import percentiles
from benchmarks.memory import MIB, measure, role

ALL = "all together"
SHARED_MEMORY = Path("/dev/shm")
# What is asked for, and what its columns are called.
KINDS = {"index": "photos", "search": "searches", "bare search": "bare"}


class Usage(NamedTuple):
    """What processes of one role take together.

    Attributes:
        processes: how many they are.
        memory: bytes without pages of files, see `benchmarks.memory.Memory.own`.
        files: open files and connections.
    """

    processes: int = 0
    memory: int = 0
    files: int = 0
    threads: int = 0

    def with_(self, other: Usage) -> Usage:
        """Return what both take together."""
        return Usage(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


class Sample(NamedTuple):
    """What a service takes at a moment.

    Attributes:
        at: seconds of `time.monotonic`.
        roles: of its processes.
        places: bytes of the store, of Ray's session (its logs), and of all that is in /dev/shm.
    """

    at: float
    roles: Mapping[str, Usage]
    places: Mapping[str, int]


def take_sample(serve_run: int, store: Path) -> Sample:
    """Return what a service takes now.

    Args:
        serve_run: the id of its first process.
        store: its folder.
    """
    first = psutil.Process(serve_run)
    processes = [first, *first.children(recursive=True)]
    places = {"the store": size_of(store)}
    session = _session(processes)
    if session is not None:
        places["Ray's session"] = size_of(session)
    if SHARED_MEMORY.exists():
        places[str(SHARED_MEMORY)] = shutil.disk_usage(SHARED_MEMORY).used
    return Sample(time.monotonic(), usage_by_role(processes), places)


def usage_by_role(processes: Iterable[psutil.Process]) -> dict[str, Usage]:
    """Return what processes take by their role, and all together; not those that have ended."""
    found: dict[str, Usage] = defaultdict(Usage)
    for process in processes:
        with suppress(psutil.Error):
            files, threads = process.num_fds(), process.num_threads()
            usage = Usage(1, measure(process).own, files, threads)
            for name in (role(command(process)), ALL):
                found[name] = found[name].with_(usage)
    return dict(found)


def size_of(folder: Path) -> int:
    """Return the bytes that the files in a folder take on the disk."""
    size = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # it was removed
                size += 512 * Path(path, name).lstat().st_blocks
    return size


def _session(processes: Iterable[psutil.Process]) -> Path | None:
    words = (word for process in processes for word in command(process).split())
    folders = (word.split("=")[1] for word in words if word.startswith("--session_dir="))
    return next(map(Path, folders), None)


class Tally:
    """Counts answers, by what was asked for. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: list[tuple[float, str, int, float]] = []

    def count(self, kind: str, status: int, seconds: float) -> None:
        """Count an answer that came now; the status is 0 if there was none."""
        with self._lock:
            self._answers.append((time.monotonic(), kind, status, seconds))

    def row(self, began: float, ended: float) -> dict[str, Any]:
        """Return the rates, times and errors of a stretch of time, seconds of `time.monotonic`."""
        with self._lock:
            answers = [one[1:] for one in self._answers if began <= one[0] < ended]
        row: dict[str, Any] = {}
        for kind, name in KINDS.items():
            good = [1000 * s for of, status, s in answers if of == kind and status < 300 and status]
            row[name] = len(good) / max(ended - began, 1e-9)
            row |= {f"{name}_{key}": value for key, value in percentiles(good).items()}
        others = Counter(status for _, status, _ in answers if not 200 <= status < 300)
        row["errors"] = ", ".join(
            f"{status or 'none'}: {number:,}" for status, number in sorted(others.items())
        )
        return row


TIME_COLUMNS = {
    "until": ("until, min", "{:.1f}"),
    "photos": ("photos/s", "{:.2f}"),
    "photos_p50": ("p50, ms", "{:,.0f}"),
    "photos_p99": ("p99, ms", "{:,.0f}"),
    "searches": ("searches/s", "{:.1f}"),
    "searches_p50": ("p50, ms", "{:,.0f}"),
    "searches_p99": ("p99, ms", "{:,.0f}"),
    "bare": ("without verification/s", "{:.1f}"),
    "bare_p50": ("p50, ms", "{:,.0f}"),
    "bare_p99": ("p99, ms", "{:,.0f}"),
    "errors": ("other answers", "{}"),
    "mishaps": ("kills and faults", "{}"),
    "memory": ("memory, MiB", "{:,.0f}"),
    "files": ("open files", "{:,.0f}"),
    "threads": ("threads", "{:,.0f}"),
    "disk": ("store, MiB", "{:,.1f}"),
}


def time_row(samples: Sequence[Sample], ended: float) -> dict[str, Any]:
    """Return what the last sample before a moment has; nothing if there is none."""
    those = [sample for sample in samples if sample.at < ended]
    if not those:
        return {}
    last = those[-1]
    everything = last.roles.get(ALL, Usage())
    return {
        "memory": everything.memory / MIB,
        "files": everything.files,
        "threads": everything.threads,
        "disk": last.places["the store"] / MIB,
    }


def _columns(what: str, form: str) -> dict[str, tuple[str, str]]:
    return {
        f"{what}_first": (f"{what}, first quarter", f"{{:,{form}}}"),
        f"{what}_last": ("last", f"{{:,{form}}}"),
        f"{what}_grew": ("grew by", f"{{:+,{form}}}"),
    }


ROLE_COLUMNS = {
    "role": ("process", "{}"),
    "number": ("number", "{:.0f}"),
    **_columns("MiB", ".0f"),
    **_columns("open files", ".0f"),
    **_columns("threads", ".0f"),
}
PLACE_COLUMNS = {"place": ("place", "{}"), **_columns("MiB", ".1f")}


def quarters(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Return the samples of the first and of the last quarter of the time; at least one of each."""
    began, ended = samples[0].at, samples[-1].at
    quarter = (ended - began) / 4
    first = [sample for sample in samples if sample.at <= began + quarter]
    return first, [sample for sample in samples if sample.at >= ended - quarter]


def growth_by_role(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Return a row for each role, that whose memory grew most first: means of the quarters."""
    first, last = quarters(samples)
    names = {name for sample in (*first, *last) for name in sample.roles}

    def means(some: Sequence[Sample], name: str) -> dict[str, float]:
        usages = [sample.roles.get(name, Usage()) for sample in some]
        return {
            "MiB": mean(usage.memory for usage in usages) / MIB,
            "open files": mean(usage.files for usage in usages),
            "threads": mean(usage.threads for usage in usages),
        }

    rows = [
        {
            "role": name,
            "number": mean(sample.roles.get(name, Usage()).processes for sample in last),
            **_grown(means(first, name), means(last, name)),
        }
        for name in names
    ]
    return sorted(rows, key=lambda row: (row["role"] == ALL, -row["MiB_grew"]))


def growth_by_place(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Return a row for each place, likewise."""
    first, last = quarters(samples)

    def means(some: Sequence[Sample], name: str) -> dict[str, float]:
        return {"MiB": mean(sample.places.get(name, 0) for sample in some) / MIB}

    names = dict.fromkeys(name for sample in (*first, *last) for name in sample.places)
    return [{"place": name, **_grown(means(first, name), means(last, name))} for name in names]


def _grown(first: Mapping[str, float], last: Mapping[str, float]) -> dict[str, float]:
    row: dict[str, float] = {}
    for what, before in first.items():
        row |= {
            f"{what}_first": before,
            f"{what}_last": last[what],
            f"{what}_grew": last[what] - before,
        }
    return row
