"""The options of scripts/bench.py: each function adds those of one subject to a parser."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.client import IN_FLIGHT
from common.options import parse_segmenter, positive
from common.paths import ROOT
from common.tables import table_place

from benchmarks.chunk_engines import ENGINES
from benchmarks.networks import BATCHES, default_dtypes
from benchmarks.store import GROUPS
from deployments.compute.device import DTYPES
from deployments.errors import StartupError
from deployments.settings import Settings

COMPACT, VIT_B_32 = "models/compact", "vit-b-32"
CLIENTS = (1, 8, 32)
MEGAPIXELS = (12,)  # what most cameras make


def add_photos(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--photos",
        nargs="+",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="or single files",
    )
    parser.add_argument(
        "--count",
        type=positive,
        metavar="N",
        help="photos to index (as many as there are)",
    )


def add_seconds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seconds",
        type=float,
        default=20,
        help="at least, for each measurement (%(default)s)",
    )


def add_service(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--args",
        type=parse_args,
        default={},
        metavar="JSON",
        help='`args` that differ from serve_config.yaml: \'{"segmenter": {"tiles": []}}\'',
    )
    parser.add_argument(
        "--in-flight",
        type=positive,
        default=IN_FLIGHT,
        metavar="N",
        help="requests at a time, of those that index (%(default)s)",
    )


def add_clients(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--clients",
        nargs="+",
        type=positive,
        default=CLIENTS,
        metavar="N",
        help=f"at a time, each measured alone ({written(CLIENTS)})",
    )


def add_megapixels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--megapixels",
        nargs="*",
        type=positive,
        default=MEGAPIXELS,
        metavar="N",
        help=f"sizes to which photos are enlarged ({written(MEGAPIXELS)}); without N: none",
    )


def add_requests(parser: argparse.ArgumentParser, searches: int, indexings: int) -> None:
    parser.add_argument(
        "--searches",
        type=positive,
        default=searches,
        metavar="N",
        help="while the memory is measured (%(default)s)",
    )
    parser.add_argument(
        "--indexings",
        type=positive,
        default=indexings,
        metavar="N",
        help="the same (%(default)s)",
    )


def add_times(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--times",
        type=float,
        default=10,
        metavar="N",
        help="how many times as many photos a second as it can store (%(default)s)",
    )


def add_dtypes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=DTYPES,
        default=default_dtypes(),
        help=f"number formats of the networks ({written(default_dtypes())})",
    )


def add_batches(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batches",
        nargs="+",
        type=positive,
        default=BATCHES,
        metavar="N",
        help=f"pictures in one pass through the networks ({written(BATCHES)})",
    )


def add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--groups",
        nargs="+",
        type=positive,
        default=GROUPS,
        metavar="N",
        help=f"photos with one sync to disk, each number measured alone ({written(GROUPS)})",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        help="on the disk that is measured (where temporary files are)",
    )


def add_segmenter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--segmenter",
        type=parse_segmenter,
        default={},
        metavar="JSON",
        help="options that serve_config.yaml has under `segmenter`: '{\"tiles\": []}'",
    )


def add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--encoder",
        nargs="+",
        default=[COMPACT],
        metavar="NAME",
        help=f"CLIPs, by folder or hub name; {VIT_B_32}: of its shape, with random weights "
        f"({COMPACT})",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")


def add_chunks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--photos", nargs="+", type=Path, default=[], metavar="FOLDER")
    parser.add_argument("--chunks", type=int, default=1_000_000, help="(%(default)s)")
    parser.add_argument("--dimension", type=int, default=512, help="(%(default)s)")
    parser.add_argument(
        "--engines",
        nargs="+",
        choices=ENGINES,
        default=list(ENGINES),
        metavar="ENGINE",
        help=f"({written(ENGINES)}); usearch and hnswlib: pip install -e '.[bench]'",
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("bench"),
        help="folder for vectors (%(default)s)",
    )
    parser.add_argument(
        "--write",
        type=table_place,
        metavar="FILE#NAME",
        help="write the table into a document, e.g. docs/models.md#engines-1m",
    )


def written(values: Iterable[object]) -> str:
    """Return values as one would type them."""
    return " ".join(map(str, values))


def parse_args(text: str) -> dict[str, dict[str, Any]]:
    """Parse `--args`; a mistake in it ends the run before anything is measured."""
    try:
        args = json.loads(text)
        Settings.parse(args, root=ROOT)
    except (ValueError, StartupError) as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
    return args
