"""More photos than the service can take: what it stores, whom it refuses, and how searches fare."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from common.own_service import OwnService

from benchmarks.closed_loop import ClosedLoop, Stretch, complete, steady
from benchmarks.memory import MIB, measure_roles, total
from benchmarks.service import Pictures, index_loop, search_loop, warm_up

REFUSED = 503
# The service takes what it can do within its time limit; that many clients wait for an answer.
WAITING_S = 60

COLUMNS = {
    "load": ("load", "{}"),
    "sent_per_second": ("photos sent/s", "{:.1f}"),
    "stored_per_second": ("stored/s", "{:.2f}"),
    "refused": ("refused", "{:,}"),
    "errors": ("other errors", "{:,}"),
    "p50": ("stored: p50, s", "{:.1f}"),
    "p99": ("p99, s", "{:.1f}"),
    "search_p50": ("search p50, ms", "{:.0f}"),
    "search_p99": ("p99, ms", "{:.0f}"),
    "pss": ("PSS, MiB", "{:,.0f}"),
}


def divide(files: Sequence[Path]) -> tuple[Pictures, Pictures]:
    """Divide photos among those that are sent, and a quarter that is searched for.

    If what is searched for were sent too, it would be stored again and again, and a search would
    take longer for each copy that it has to look at.
    """
    sent = [file for number, file in enumerate(files) if number % 4]
    return Pictures(sent or files), Pictures(files[::4])


def overload(
    service: OwnService,
    pictures: Pictures,
    searched: Pictures,
    in_flight: int,
    times: float,
    seconds: float,
) -> list[dict[str, Any]]:
    """Search alone; beside as many photos as fit; beside many times as many; and after that.

    A client searches all the time. Who sends photos beyond what fits doesn't wait for answers, and
    doesn't come back when refused.

    Args:
        pictures, searched: see `divide`.
        in_flight: requests at a time, at which the service does as much as it can.
        times: how many times as many photos a second are sent then.
        seconds: how long that lasts, and the other loads at most.
    """
    once = islice(searched.others, searched.count)
    with index_loop(service, once, in_flight) as loop:
        complete(loop, searched.count, "photo")
    warm_up(service, searched)
    short = min(seconds, 60)
    fitting = fit(service, pictures, searched, in_flight, short)
    with search_loop(service, searched.queries, 1) as searches:
        (alone,) = steady([searches], short)
    rows = [row("searches alone", service, alone), row("photos that fit", service, *fitting)]
    rate = fitting[1].rate
    paced = at_rate(pictures.photos, times * rate)
    with (
        index_loop(service, paced, in_flight + int(WAITING_S * rate)) as photos,
        search_loop(service, searched.queries, 1) as searches,
    ):
        for half in ("first", "last"):
            load = f"{times:g} times, the {half} {seconds / 2:.0f} s"
            rows.append(row(load, service, *during(seconds / 2, searches, photos)))
    rows.append(row("after that", service, *fit(service, pictures, searched, in_flight, short)))
    return rows


def fit(
    service: OwnService, pictures: Pictures, searched: Pictures, in_flight: int, seconds: float
) -> tuple[Stretch, Stretch]:
    """Search and index at full rate; return the answers to searches and to photos."""
    with (
        index_loop(service, pictures.photos, in_flight) as photos,
        search_loop(service, searched.queries, 1) as searches,
    ):
        found, indexed = steady([searches, photos], seconds)
    return found, indexed


def during(seconds: float, *loops: ClosedLoop) -> list[Stretch]:
    """Return the answers to loops in so many seconds from now."""
    began = time.perf_counter()
    time.sleep(seconds)
    ended = time.perf_counter()
    return [
        Stretch([answer for answer in loop.answers if began <= answer.ended < ended], ended - began)
        for loop in loops
    ]


def row(
    load: str, service: OwnService, searched: Stretch, indexed: Stretch | None = None
) -> dict[str, Any]:
    """Return what a load came to. Photos that wait at its end are not in it."""
    found = {
        "load": load,
        "search_p50": searched.latency.get("p50"),
        "search_p99": searched.latency.get("p99"),
        "errors": searched.errors,
        "pss": total(measure_roles(service.processes())).pss / MIB,
    }
    if indexed is None:
        return found
    refused = sum(answer.status == REFUSED for answer in indexed.answers)
    return found | {
        "sent_per_second": len(indexed.answers) / indexed.seconds,
        "stored_per_second": indexed.rate,
        "refused": refused,
        "errors": searched.errors + indexed.errors - refused,
        "p50": indexed.latency.get("p50", 0) / 1000,
        "p99": indexed.latency.get("p99", 0) / 1000,
    }


def at_rate(bodies: Iterator[bytes], rate: float) -> Iterator[bytes]:
    """Yield so many bodies a second; if nobody took one in time, it is not made up for."""
    due = time.perf_counter()
    for body in bodies:
        due = max(due + 1 / rate, time.perf_counter())
        time.sleep(max(0, due - time.perf_counter()))
        yield body
