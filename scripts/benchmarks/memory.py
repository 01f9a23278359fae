"""Memory of processes, as the kernel counts it.

Memory that processes share (libraries, Ray's object store) is divided among them (PSS), so that the
sum over all processes is what they take together.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
from common.own_service import command

MIB = 2**20
FEWEST = 200  # events that a growth is computed from


class Memory(NamedTuple):
    """Memory of a process, or of several.

    Attributes:
        pss: bytes, shared pages divided by the number of processes that share them.
        own: bytes of that without pages of files, such as those of the store's database: the
            kernel can't take these bytes back.
    """

    pss: int
    own: int


def measure(process: psutil.Process) -> Memory:
    """Return the memory of a process; zero if it has just ended."""
    sizes: Counter[str] = Counter()
    with suppress(OSError):
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]:
            key, size, _ = line.split()
            sizes[key] = 1024 * int(size)
    return Memory(sizes["Pss:"], sizes["Pss:"] - sizes["Pss_File:"])


def measure_roles(processes: Iterable[psutil.Process]) -> dict[str, Memory]:
    """Return the memory of processes by their role; those of the same role together."""
    found: dict[str, Memory] = {}
    for process in processes:
        pss, own = found.get(name := role(command(process)), Memory(0, 0))
        memory = measure(process)
        found[name] = Memory(pss + memory.pss, own + memory.own)
    return found


def role(line: str) -> str:
    """Return the role of a process of a service, from its command line.

    `ray::ServeReplica:inset:Store.apply` is a `Store`, `/lib/ray/raylet --port=1` a `raylet`,
    `python -u /lib/ray/agent/main.py` an `agent/main.py`, `python /bin/serve run` a `serve`.
    """
    program, *rest = line.split() or ["(ended)"]
    if program.startswith("ray::"):
        return program.partition(".")[0].rpartition(":")[2]
    if program.startswith("ray-dashboard-"):  # of which there are many
        return "ray-dashboard"
    path = Path(program)
    if path.name.startswith("python"):
        if "-c" in rest:
            return "python -c"
        path = Path(next((word for word in rest if word[0] != "-"), program))
    return "/".join(path.parts[-2:]) if path.suffix == ".py" else path.name


def total(roles: Mapping[str, Memory]) -> Memory:
    """Return the memory of all together."""
    return Memory(sum(m.pss for m in roles.values()), sum(m.own for m in roles.values()))


def growth(counts: Sequence[float], sizes: Sequence[float]) -> float | None:
    """Return by how much a size grows per 1,000 events, by least squares.

    Only the second half of the samples counts, because at first caches fill and replicas warm up.

    Args:
        counts: events up to each sample, ascending.
        sizes: at each sample.

    Returns:
        None if the second half has less than `FEWEST` events: the growth would be that of an
        allocator's ups and downs.
    """
    half = len(counts) // 2
    if counts[-1] - counts[half] < FEWEST:
        return None
    return 1000 * float(np.polyfit(counts[half:], sizes[half:], 1)[0])


class Peak:
    """The largest PSS of processes while a block runs, measured every few seconds.

    Args:
        processes: returns the processes at the moment.
        period_s: seconds between two measurements; one of thirty processes takes 0.15 s of a core.

    Attributes:
        pss: bytes.
    """

    def __init__(
        self, processes: Callable[[], Iterable[psutil.Process]], period_s: float = 10
    ) -> None:
        self.pss = 0
        self._period_s = period_s
        self._processes = processes
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(self._period_s):
            self._measure()
        self._measure()

    def _measure(self) -> None:
        self.pss = max(self.pss, sum(measure(process).pss for process in self._processes()))
