"""Measure Inset, its parts, and what it is compared with.

    scripts/bench.py WHAT --photos FOLDER... [--encoder models/compact] [--json FILE]
    scripts/bench.py all --photos FOLDER...    # everything but `chunks`, and writes BENCHMARKS.md

Each command prints a Markdown table. The modules of `benchmarks` say how they measure.
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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import bench_gpu
from benchmarks import chunks, gpu_service, networks, soak
from benchmarks.commands import COMMANDS, SECTIONS, Rows, everything
from benchmarks.machine import describe_machine, pace, pace_rows
from benchmarks.options import (
    VIT_B_32,
    add_chunks,
    add_common,
    add_dtypes,
    add_megapixels,
    add_photos,
    add_requests,
    add_seconds,
    add_service,
    add_store,
    add_times,
)
from benchmarks.report import report
from common.paths import ROOT
from common.photos import find_images
from common.serve_run import ServiceFailed
from evaluation.queries import EvaluationFailed

from deployments.encoder.files import find_encoder
from deployments.errors import ModelUnavailable
from deployments.settings import EncoderSettings


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="WHAT")
    for name, command in COMMANDS.items():
        one = commands.add_parser(name, help=command.section.title.lower())
        for add_options in (*command.options, add_common):
            add_options(one)
        one.set_defaults(run=run, tables=partial(alone, name), report=None)
    every = commands.add_parser("all", help="all of these, then BENCHMARKS.md is written")
    of_all = (
        add_photos,
        add_service,
        add_seconds,
        add_times,
        add_dtypes,
        add_megapixels,
        add_store,
        add_common,
    )
    for add_options in of_all:
        add_options(every)
    add_requests(every, searches=1_000, indexings=60)
    every.add_argument(
        "--report", type=Path, default=ROOT / "BENCHMARKS.md", help="file to write (BENCHMARKS.md)"
    )
    every.set_defaults(run=run, tables=everything, batches=networks.BATCHES)
    gpu = commands.add_parser("gpu", help="the networks, bytes to vectors, and searches on a GPU")
    bench_gpu.add_arguments(gpu)
    gpu.set_defaults(run=bench_gpu.run)
    whole = commands.add_parser("gpu-service", help="the whole service on a machine with a GPU")
    gpu_service.add_arguments(whole)
    whole.set_defaults(run=gpu_service.run)
    engines = commands.add_parser("chunks", help="engines for the chunk index, side by side")
    add_chunks(engines)
    engines.set_defaults(run=chunks.run)
    long = commands.add_parser("soak", help="an hour of mixed load, with kills and full disks")
    soak.add_arguments(long)
    long.set_defaults(run=soak.run)
    return parser


def alone(name: str, arguments: argparse.Namespace, encoder: Path) -> Iterator[tuple[str, Rows]]:
    """Run one command; yield its table by its name."""
    yield name, COMMANDS[name].measure(arguments, encoder)


def run(arguments: argparse.Namespace) -> None:
    """Measure, print each table as soon as it is there, and write the files asked for."""
    tables: dict[str, Rows] = defaultdict(list)
    paces = []
    with encoder_folders(arguments.encoder) as folders:
        for encoder, folder in folders.items():
            paces.append(({"encoder": encoder, "moment": "at first"}, pace()))
            for name, rows in arguments.tables(arguments, folder):
                of_encoder = [{"encoder": encoder} | row for row in rows]
                tables[name] += of_encoder
                show(name, of_encoder)
                moment = {"encoder": encoder, "moment": f"after: {SECTIONS[name].title}"}
                paces.append((moment, pace()))
    tables["pace"] = pace_rows(paces)
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
    """Print a table."""
    section = SECTIONS[name]
    print(f"\n{section.title}\n\n{section.table(rows)}\n", flush=True)


@contextmanager
def encoder_folders(names: Iterable[str]) -> Iterator[dict[str, Path]]:
    """Find encoders, or make one with random weights; yield their folders by their names.

    Raises:
        ModelUnavailable: one can't be found or downloaded.
    """
    with tempfile.TemporaryDirectory() as made:
        folders = {}
        for name in names:
            if name == VIT_B_32:
                folders[name] = Path(made) / name
                networks.make_vit_b_32(folders[name])
            else:
                path = ROOT / name  # as the service finds it
                folders[name] = find_encoder(
                    EncoderSettings(
                        pretrained_model_name_or_path=str(path) if path.is_dir() else name
                    )
                ).folder
        yield folders


def main() -> int:
    parser = make_parser()
    arguments = parser.parse_args()
    if arguments.run is run and "photos" in arguments:
        arguments.photos = find_images(arguments.photos)
        if not arguments.photos:
            parser.error("no images in there (files are recognised by their suffix)")
        arguments.count = arguments.count or len(arguments.photos)
    # A service reacts to SIGINT only if this process does, and background jobs of a shell don't.
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
