"""Index folders of photos: several at a time, a progress bar, resumable.

    scripts/index.py FOLDER... [--metadata '{"year": 2024}']

A photo whose bytes are stored already is not sent again, and keeps its metadata. So an interrupted
run continues when the same command is given again. Files of a folder that have no suffix of a photo
are left out, and counted. Exit status 1 if any photo failed.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from common.client import IN_FLIGHT, URL, RequestFailed, call
from common.indexing import index_files
from common.options import positive
from common.photos import describe_others, sort_files

from deployments.errors import BadParameter
from deployments.metadata import parse_metadata
from deployments.records import Metadata


def read_metadata(text: str) -> Metadata:
    """Parse `--metadata`; a mistake in it ends the run before the first photo."""
    try:
        return parse_metadata(text)
    except BadParameter as error:
        raise argparse.ArgumentTypeError(error.detail) from None


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="or single files")
    parser.add_argument("--url", default=URL, help="the service (%(default)s)")
    parser.add_argument(
        "--in-flight", type=positive, default=IN_FLIGHT, help="photos at a time (%(default)s)"
    )
    parser.add_argument(
        "--metadata",
        type=read_metadata,
        metavar="JSON",
        help="given to each photo of this run, to filter searches by, as '{\"year\": 2024}'",
    )
    return parser


def main() -> int:
    parser = make_parser()
    arguments = parser.parse_args()
    missing = [str(folder) for folder in arguments.folders if not folder.exists()]
    if missing:
        parser.error(f"no such folder: {', '.join(missing)}")
    files, others = sort_files(arguments.folders)
    if not files:
        left_out = f"; left out {describe_others(others)}" if others else ""
        parser.error(f"no images in there (files are recognised by their suffix){left_out}")
    try:
        call(arguments.url, "GET", "/healthz")
        if others:
            print(f"Left out {describe_others(others)}.")
        summary = asyncio.run(
            index_files(arguments.url, files, arguments.in_flight, arguments.metadata)
        )
    except RequestFailed as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. The photos counted are stored; the same command continues from here.")
        return 130
    counts = summary.counts
    print(
        f"{len(files)} photos: {counts['created']} indexed, {counts['exists']} were already "
        f"stored, {counts['failed']} failed."
    )
    for file, reason in summary.failures:
        print(f"  {file}: {reason}", file=sys.stderr)
    return 1 if summary.failures else 0


if __name__ == "__main__":
    sys.exit(main())
