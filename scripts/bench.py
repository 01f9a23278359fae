"""Measure Inset, its parts, and what it is compared with.

    scripts/bench.py WHAT --photos FOLDER... [--encoder models/compact] [--json FILE]
    scripts/bench.py all --photos FOLDER...    # everything but `chunks`, and writes BENCHMARKS.md

Each command prints a Markdown table. The modules of `benchmarks/` measure, and say how.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import bench_gpu
from benchmarks import chunks as bench_chunks
from benchmarks import machine as bench_pace
from benchmarks import networks as bench_models
from benchmarks import service as bench_service
from benchmarks import stages as bench_stages
from benchmarks import yardstick as bench_plain
from benchmarks.options import (
    CLIENTS,
    VIT_B_32,
    add_batches,
    add_chunks,
    add_clients,
    add_common,
    add_dtypes,
    add_photos,
    add_requests,
    add_seconds,
    add_segmenter,
    add_service,
)
from benchmarks.report import COMPARISON_COLUMNS, Section, compare, describe_machine, report
from benchmarks.service import Pictures, prepared
from common.own_service import Service, ServiceFailed
from common.paths import ROOT
from evaluation.queries import EvaluationFailed
from index import find_images

from deployments.encoder.encoder import find_encoder
from deployments.errors import ModelUnavailable

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


# What is measured


def ceiling(arguments: argparse.Namespace, encoder: Path) -> Rows:
    return bench_models.ceiling(encoder, arguments.dtypes, arguments.batches)


def plain(arguments: argparse.Namespace, encoder: Path) -> Rows:
    return bench_plain.plain(
        encoder, arguments.segmenter, arguments.photos, arguments.count, arguments.seconds
    )


def index(arguments: argparse.Namespace, encoder: Path) -> Rows:
    with prepared(encoder, arguments.args) as service:
        service.start()
        return fill(arguments, service, Pictures(arguments.photos))


def search(arguments: argparse.Namespace, encoder: Path) -> Rows:
    with filled(arguments, encoder) as (service, pictures):
        return bench_service.search(service, pictures, arguments.clients, arguments.seconds)


def mixed(arguments: argparse.Namespace, encoder: Path) -> Rows:
    with filled(arguments, encoder) as (service, pictures):
        return bench_service.mixed(service, pictures, arguments.in_flight, arguments.seconds)


def startup(arguments: argparse.Namespace, encoder: Path) -> Rows:
    pictures = Pictures(arguments.photos)
    with prepared(encoder, arguments.args) as service:
        empty = bench_service.startup(service, pictures)
        fill(arguments, service, pictures)
        service.stop()
        return [empty, bench_service.startup(service, pictures)]


def stages(arguments: argparse.Namespace, encoder: Path) -> Rows:
    pictures = Pictures(arguments.photos)
    with (
        tempfile.TemporaryDirectory(prefix="spans-") as folder,
        prepared(encoder, arguments.args, bench_stages.NOTING) as service,
    ):
        bench_stages.start(service, Path(folder))
        return bench_stages.stages(
            service, Path(folder), pictures.photos, pictures.queries, arguments.count
        )


def memory(arguments: argparse.Namespace, encoder: Path) -> Rows:
    with prepared(encoder, arguments.args) as service:
        service.start()
        return watch_memory(arguments, service, Pictures(arguments.photos))


def everything(arguments: argparse.Namespace, encoder: Path) -> Iterator[tuple[str, Rows]]:
    """Measure all of it, with one service that is started twice; yields tables by their names."""
    tables: dict[str, Rows] = {}

    def keep(name: str, rows: Rows) -> tuple[str, Rows]:
        tables[name] = rows
        return name, rows

    arguments.segmenter = arguments.args.get("segmenter", {})
    yield keep("ceiling", ceiling(arguments, encoder))
    yield keep("plain", plain(arguments, encoder))
    pictures = Pictures(arguments.photos)
    with prepared(encoder, arguments.args) as service:
        empty = bench_service.startup(service, pictures)
        yield keep("index", fill(arguments, service, pictures))
        yield keep("search", bench_service.search(service, pictures, CLIENTS, arguments.seconds))
        yield keep(
            "mixed",
            bench_service.mixed(service, pictures, arguments.in_flight, arguments.seconds),
        )
        service.stop()
        yield keep("startup", [empty, bench_service.startup(service, pictures)])
        yield keep("memory", watch_memory(arguments, service, pictures))
    yield keep("stages", stages(arguments, encoder))
    yield keep("comparison", compare(tables))


def fill(arguments: argparse.Namespace, service: Service, pictures: Pictures) -> Rows:
    """Index photos into a running service."""
    return [bench_service.index(service, pictures, arguments.count, arguments.in_flight)]


@contextmanager
def filled(arguments: argparse.Namespace, encoder: Path) -> Iterator[tuple[Service, Pictures]]:
    """Start a service, and index photos into it."""
    pictures = Pictures(arguments.photos)
    with prepared(encoder, arguments.args) as service:
        service.start()
        fill(arguments, service, pictures)
        yield service, pictures


def watch_memory(arguments: argparse.Namespace, service: Service, pictures: Pictures) -> Rows:
    return bench_service.memory(
        service, pictures, arguments.searches, arguments.indexings, arguments.in_flight
    )


# The command

COMMANDS = {
    "ceiling": Command(
        Section(
            "The bare networks",
            "Nothing else in the loop, all cores: what the machine has to give.",
            bench_models.COLUMNS,
        ),
        (add_dtypes, add_batches),
        ceiling,
    ),
    "plain": Command(
        Section(
            "The yardstick",
            "[`scripts/benchmarks/plain.py`](scripts/benchmarks/plain.py): the same work in one "
            "process, without Ray, HTTP and database; as it comes, and tuned as the service is.",
            bench_plain.COLUMNS,
        ),
        (add_photos, add_segmenter, add_seconds),
        plain,
    ),
    "index": Command(
        Section(
            "Indexing",
            "Through HTTP, from bytes to the answer that they are on disk and can be found.",
            bench_service.INDEX_COLUMNS,
        ),
        (add_photos, add_service),
        index,
    ),
    "search": Command(
        Section(
            "Searching",
            "Through HTTP, by parts of the photos; each client sends the next query when the "
            "last one was answered.",
            bench_service.SEARCH_COLUMNS,
        ),
        (add_photos, add_service, add_clients, add_seconds),
        search,
    ),
    "mixed": Command(
        Section(
            "Both at once",
            "One client searches, while photos are indexed as fast as it goes.",
            bench_service.MIXED_COLUMNS,
        ),
        (add_photos, add_service, add_seconds),
        mixed,
    ),
    "stages": Command(
        Section(
            "Where the time of a request goes",
            "One request after another, so nothing waits for another request. Means; each moment "
            "belongs to the function that began last, so the parts are all of the whole.",
            bench_stages.COLUMNS,
        ),
        (add_photos, add_service),
        stages,
    ),
    "startup": Command(
        Section(
            "Starting",
            "From the command to the first search that was answered.",
            bench_service.STARTUP_COLUMNS,
        ),
        (add_photos, add_service),
        startup,
    ),
    "memory": Command(
        Section(
            "Memory",
            "PSS: what processes share is divided among them. The growth is that of the second "
            "half of the requests, without pages of files.",
            bench_service.MEMORY_COLUMNS,
        ),
        (add_photos, add_service, partial(add_requests, searches=10_000, indexings=2_000)),
        memory,
    ),
}
SECTIONS = {
    "comparison": Section(
        "Compared",
        "The ceiling is the photos a second there could be if nothing but the networks took time: "
        "for each photo one pass of the detector, and its crops in the encoder's fastest batch.",
        COMPARISON_COLUMNS,
    ),
    **{name: command.section for name, command in COMMANDS.items()},
    "pace": Section(
        "The pace of the machine",
        "What one core did in the same time before and between the measurements, of the best: "
        "where it is lower, all figures are.",
        bench_pace.COLUMNS,
    ),
}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="WHAT")
    for name, command in COMMANDS.items():
        one = commands.add_parser(name, help=command.section.title.lower())
        for add_options in (*command.options, add_common):
            add_options(one)
        one.set_defaults(run=run, tables=partial(alone, name), report=None)
    every = commands.add_parser("all", help="all of these, then BENCHMARKS.md is written")
    for add_options in (add_photos, add_service, add_seconds, add_dtypes, add_common):
        add_options(every)
    add_requests(every, searches=1_000, indexings=60)
    every.add_argument(
        "--report", type=Path, default=ROOT / "BENCHMARKS.md", help="file to write (BENCHMARKS.md)"
    )
    every.set_defaults(run=run, tables=everything, batches=bench_models.BATCHES)
    gpu = commands.add_parser("gpu", help="the networks, and bytes to vectors, on a GPU")
    bench_gpu.add_arguments(gpu)
    gpu.set_defaults(run=bench_gpu.run)
    chunks = commands.add_parser("chunks", help="engines for the chunk index, side by side")
    add_chunks(chunks)
    chunks.set_defaults(run=bench_chunks.chunks)
    return parser


def alone(name: str, arguments: argparse.Namespace, encoder: Path) -> Iterator[tuple[str, Rows]]:
    """Run one command; yields its table by its name."""
    yield name, COMMANDS[name].measure(arguments, encoder)


def run(arguments: argparse.Namespace) -> None:
    """Measure, print each table as soon as it is there, and write what is asked for."""
    tables: dict[str, Rows] = defaultdict(list)
    paces = []
    with encoder_folders(arguments.encoder) as folders:
        for encoder, folder in folders.items():
            paces.append(({"encoder": encoder, "moment": "at first"}, bench_pace.pace()))
            for name, rows in arguments.tables(arguments, folder):
                of_encoder = [{"encoder": encoder} | row for row in rows]
                tables[name] += of_encoder
                show(name, of_encoder)
                moment = {"encoder": encoder, "moment": f"after: {SECTIONS[name].title}"}
                paces.append((moment, bench_pace.pace()))
    tables["pace"] = bench_pace.rows(paces)
    show("pace", tables["pace"])
    results = {
        "command": f"scripts/{shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": describe_machine(),
        "tables": tables,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    if arguments.report:
        arguments.report.write_text(report(results, SECTIONS))


def show(name: str, rows: Rows) -> None:
    section = SECTIONS[name]
    print(f"\n{section.title}\n\n{section.table(rows)}\n", flush=True)


@contextmanager
def encoder_folders(names: Iterable[str]) -> Iterator[dict[str, Path]]:
    """Find encoders, or make one up; yields their folders by their names.

    Raises:
        ModelUnavailable: one can't be had.
    """
    with tempfile.TemporaryDirectory() as made:
        folders = {}
        for name in names:
            if name == VIT_B_32:
                folders[name] = Path(made) / name
                bench_models.make_vit_b_32(folders[name])
            else:
                path = ROOT / name  # as the service finds it
                folders[name] = find_encoder(str(path) if path.is_dir() else name).folder
        yield folders


def main() -> int:
    parser = make_parser()
    arguments = parser.parse_args()
    if arguments.run is run and "photos" in arguments:
        arguments.photos = find_images(arguments.photos)
        if not arguments.photos:
            parser.error("no images in there (files are told by their suffix)")
        arguments.count = arguments.count or len(arguments.photos)
    # A service heeds SIGINT only if this process does, which the background of a shell doesn't.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        arguments.run(arguments)
    except (EvaluationFailed, ModelUnavailable, ServiceFailed, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except subprocess.CalledProcessError:
        return 1  # and has said why
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
