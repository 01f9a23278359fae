"""Search by a picture: prints a table of the photos that contain it, and draws them.

scripts/search.py PICTURE [--limit 10] [--filter 'year>=2020'] [--picture OUT.png]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common.client import URL, RequestFailed, search
from common.drawing import draw_answer, list_matches


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("image", type=Path, metavar="PICTURE")
    parser.add_argument("--limit", type=int, default=10, help="how many photos (%(default)s)")
    parser.add_argument("--max-distance", type=float, default=2.0, help="0 to 2 (%(default)s)")
    parser.add_argument(
        "--filter",
        action="append",
        default=[],
        metavar="COND",
        help="only photos with such metadata, as 'year>=2020' or 'camera=Canon EOS'; of several "
        "--filter all must hold",
    )
    parser.add_argument("--picture", type=Path, metavar="OUT.png", help="draw the answer there")
    parser.add_argument("--url", default=URL, help="the service (%(default)s)")
    return parser


def main() -> int:
    arguments = make_parser().parse_args()
    try:
        data = arguments.image.read_bytes()
        matches = search(
            arguments.url, data, arguments.limit, arguments.max_distance, arguments.filter
        )
    except (OSError, RequestFailed) as error:
        print(error, file=sys.stderr)
        return 1
    print(list_matches(matches) if matches else "No photo matches.")
    if arguments.picture:
        draw_answer(arguments.url, arguments.image, matches, arguments.picture)
        print(f"drawn in {arguments.picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
