"""The commands of scripts/bench.py: what each measures, and its part of the report."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from common.own_service import OwnService

from benchmarks import (
    machine,
    networks,
    overload,
    service,
    stages,
    store,
    verification,
    yardstick,
)
from benchmarks.options import (
    CLIENTS,
    add_batches,
    add_clients,
    add_dtypes,
    add_megapixels,
    add_photos,
    add_requests,
    add_seconds,
    add_segmenter,
    add_service,
    add_store,
    add_times,
)
from benchmarks.report import COMPARISON_COLUMNS, Section, compare
from benchmarks.service import Pictures, prepared

Rows = list[dict[str, Any]]


class Command(NamedTuple):
    """Something to measure.

    Attributes:
        section: of the report.
        options: functions that add options to a parser.
        measure: from the options and the folder of an encoder to rows.
    """

    section: Section
    options: tuple[Callable[[argparse.ArgumentParser], object], ...]
    measure: Callable[[argparse.Namespace, Path], Rows]


def measure_ceiling(arguments: argparse.Namespace, encoder: Path) -> Rows:
    """Time the bare networks."""
    return networks.ceiling(encoder, arguments.dtypes, arguments.batches)


def measure_plain(arguments: argparse.Namespace, encoder: Path) -> Rows:
    """Measure the yardstick."""
    return yardstick.measure_both(
        encoder, arguments.segmenter, arguments.photos, arguments.count, arguments.seconds
    )


def measure_store(arguments: argparse.Namespace, encoder: Path) -> Rows:
    """Put made-up photos into a store; this takes no encoder."""
    return store.measure(arguments.groups, arguments.seconds, arguments.folder)


def measure_index(arguments: argparse.Namespace, encoder: Path) -> Rows:
    """Index photos into an empty service."""
    with prepared(encoder, arguments.args) as running:
        running.start()
        return fill(arguments, running, Pictures(arguments.photos))


def measure_search(arguments: argparse.Namespace, encoder: Path) -> Rows:
    """Search with several numbers of clients."""
    with filled(arguments, encoder) as (running, pictures):
        return service.search(running, pictures, arguments.clients, arguments.seconds)


def measure_verify(arguments: argparse.Namespace, encoder: Path) -> Rows:
    """Search with verification and without, in photos of several sizes."""
    files, stored = arguments.photos, arguments.count
    if stored >= len(files):  # something must be found nowhere
        stored = len(files) // 2
    queries, rows = verification.cut_kinds(files, stored), []
    with tempfile.TemporaryDirectory(prefix="photos-") as folder:
        sizes = verification.in_sizes(files[:stored], arguments.megapixels, Path(folder))
        for name, photos in sizes:
            with prepared(encoder, arguments.args) as running:
                running.start()
                rows += verification.verify(
                    running, name, photos, queries, arguments.in_flight, arguments.seconds
                )
    return rows


def measure_mixed(arguments: argparse.Namespace, encoder: Path) -> Rows:
    """Search, index, and do both at once."""
    with filled(arguments, encoder) as (running, pictures):
        return service.mixed(running, pictures, arguments.in_flight, arguments.seconds)


def measure_overload(arguments: argparse.Namespace, encoder: Path) -> Rows:
    """Send many times as many photos as can be stored."""
    with prepared(encoder, arguments.args) as running:
        running.start()
        return overload.overload(
            running,
            *overload.divide(arguments.photos),
            arguments.in_flight,
            arguments.times,
            arguments.seconds,
        )


def measure_startup(arguments: argparse.Namespace, encoder: Path) -> Rows:
    """Start a service without photos, and again with photos."""
    pictures = Pictures(arguments.photos)
    with prepared(encoder, arguments.args) as running:
        empty = service.startup(running, pictures)
        fill(arguments, running, pictures)
        running.stop()
        return [empty, service.startup(running, pictures)]


def measure_stages(arguments: argparse.Namespace, encoder: Path) -> Rows:
    """Divide the time of requests among their stages."""
    pictures = Pictures(arguments.photos)
    with (
        tempfile.TemporaryDirectory(prefix="spans-") as folder,
        prepared(encoder, arguments.args, stages.TRACING) as running,
    ):
        stages.start(running, Path(folder))
        return stages.stages(
            running, Path(folder), pictures.photos, pictures.queries, arguments.count
        )


def measure_memory(arguments: argparse.Namespace, encoder: Path) -> Rows:
    """Start a service, and measure its memory during requests."""
    with prepared(encoder, arguments.args) as running:
        running.start()
        return watch_memory(arguments, running, Pictures(arguments.photos))


def everything(arguments: argparse.Namespace, encoder: Path) -> Iterator[tuple[str, Rows]]:
    """Run all commands, with one service that is started twice; yield tables by their names."""
    tables: dict[str, Rows] = {}

    def keep(name: str, rows: Rows) -> tuple[str, Rows]:
        tables[name] = rows
        return name, rows

    arguments.segmenter = arguments.args.get("segmenter", {})
    yield keep("ceiling", measure_ceiling(arguments, encoder))
    yield keep("plain", measure_plain(arguments, encoder))
    yield keep("store", measure_store(arguments, encoder))
    pictures = Pictures(arguments.photos)
    with prepared(encoder, arguments.args) as running:
        empty = service.startup(running, pictures)
        yield keep("index", fill(arguments, running, pictures))
        yield keep("search", service.search(running, pictures, CLIENTS, arguments.seconds))
        yield keep(
            "mixed",
            service.mixed(running, pictures, arguments.in_flight, arguments.seconds),
        )
        yield keep(
            "overload",
            overload.overload(
                running,
                *overload.divide(arguments.photos),
                arguments.in_flight,
                arguments.times,
                arguments.seconds,
            ),
        )
        running.stop()
        yield keep("startup", [empty, service.startup(running, pictures)])
        yield keep("memory", watch_memory(arguments, running, pictures))
    yield keep("verify", measure_verify(arguments, encoder))
    yield keep("stages", measure_stages(arguments, encoder))
    yield keep("comparison", compare(tables))


def fill(arguments: argparse.Namespace, running: OwnService, pictures: Pictures) -> Rows:
    """Index photos into a running service."""
    return [service.index(running, pictures, arguments.count, arguments.in_flight)]


@contextmanager
def filled(arguments: argparse.Namespace, encoder: Path) -> Iterator[tuple[OwnService, Pictures]]:
    """Start a service, and index photos into it."""
    pictures = Pictures(arguments.photos)
    with prepared(encoder, arguments.args) as running:
        running.start()
        fill(arguments, running, pictures)
        yield running, pictures


def watch_memory(arguments: argparse.Namespace, running: OwnService, pictures: Pictures) -> Rows:
    """Measure the memory of a running service during requests."""
    return service.memory(
        running, pictures, arguments.searches, arguments.indexings, arguments.in_flight
    )


# By their names on the command line.
COMMANDS = {
    "ceiling": Command(
        Section(
            "The bare networks",
            "Nothing else in the loop, all cores: the most that the machine can do.",
            networks.COLUMNS,
        ),
        (add_dtypes, add_batches),
        measure_ceiling,
    ),
    "plain": Command(
        Section(
            "The yardstick",
            "[`scripts/benchmarks/plain.py`](scripts/benchmarks/plain.py): the same work in one "
            "process, without Ray, HTTP and database; by default, and tuned as the service is.",
            yardstick.COLUMNS,
        ),
        (add_photos, add_segmenter, add_seconds),
        measure_plain,
    ),
    "store": Command(
        Section(
            "The store alone",
            "Made-up photos of 180 kB, in groups that share one sync to disk. The plain file gets "
            "the same bytes with as many syncs. Writing is CPU time of the thread that commits; "
            "the making is done beside it.",
            store.COLUMNS,
        ),
        (add_store, add_seconds),
        measure_store,
    ),
    "index": Command(
        Section(
            "Indexing",
            "Through HTTP, from bytes to the answer that they are on disk and can be found.",
            service.INDEX_COLUMNS,
        ),
        (add_photos, add_service),
        measure_index,
    ),
    "search": Command(
        Section(
            "Searching",
            "Through HTTP, by parts of the photos; each client sends the next query when the "
            "last one was answered.",
            service.SEARCH_COLUMNS,
        ),
        (add_photos, add_service, add_clients, add_seconds),
        measure_search,
    ),
    "verify": Command(
        Section(
            "What verification costs",
            "Each query is sent with `verify=none` and with `verify=auto`, one after the other. "
            "Only the first half of the photos is stored, or as many as `--count` says. Queries "
            "cut out of the others are in no photo: each takes second looks.",
            verification.COLUMNS,
        ),
        (add_photos, add_service, add_seconds, add_megapixels),
        measure_verify,
    ),
    "mixed": Command(
        Section(
            "Both at once",
            "One client searches, while photos are indexed at full speed.",
            service.MIXED_COLUMNS,
        ),
        (add_photos, add_service, add_seconds),
        measure_mixed,
    ),
    "overload": Command(
        Section(
            "Overload",
            "One client searches, while photos are sent at a fixed rate, whatever becomes of them. "
            "Refused is who got a 503. The memory is of all processes, at the end of the load.",
            overload.COLUMNS,
        ),
        (add_photos, add_service, add_seconds, add_times),
        measure_overload,
    ),
    "stages": Command(
        Section(
            "Where the time of a request goes",
            "One request after another, so none waits for another one. Means; each moment counts "
            "for the function that began last, so the parts add up to the whole.",
            stages.COLUMNS,
        ),
        (add_photos, add_service),
        measure_stages,
    ),
    "startup": Command(
        Section(
            "Starting",
            "From the command to the first search that was answered.",
            service.STARTUP_COLUMNS,
        ),
        (add_photos, add_service),
        measure_startup,
    ),
    "memory": Command(
        Section(
            "Memory",
            "PSS: what processes share is divided among them. The growth is that of the second "
            "half of the requests, without pages of files.",
            service.MEMORY_COLUMNS,
        ),
        (add_photos, add_service, partial(add_requests, searches=10_000, indexings=2_000)),
        measure_memory,
    ),
}
SECTIONS = {
    "comparison": Section(
        "Compared",
        "The ceiling is the photos a second that are possible if only the networks take time: for "
        "each photo one pass of the detector, and its crops in the encoder's fastest batch.",
        COMPARISON_COLUMNS,
    ),
    **{name: command.section for name, command in COMMANDS.items()},
    "pace": Section(
        "The pace of the machine",
        "What one core did in the same time before and between the measurements, as a share of the "
        "best: where it is lower, all figures are.",
        machine.PACE_COLUMNS,
    ),
}
