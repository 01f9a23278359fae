"""Search by a picture: prints which photos contain it, and which look alike, and draws them.

scripts/search.py PICTURE [--limit 10] [--filter 'year>=2020'] [--picture OUT.png]
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import get_args

from common.answers import Size, count, list_answer
from common.client import URL, RequestFailed, fetch_stats, search
from common.drawing import draw_answer
from PIL import Image, ImageOps

from deployments.query import MAX_DISTANCE, Group, Verify


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("image", type=Path, metavar="PICTURE")
    parser.add_argument("--limit", type=int, default=10, help="how many photos (%(default)s)")
    parser.add_argument(
        "--max-distance", type=float, default=MAX_DISTANCE, help="0 to 2 (%(default)s)"
    )
    parser.add_argument(
        "--filter",
        action="append",
        default=[],
        metavar="COND",
        help="only photos with such metadata, as 'year>=2020' or 'camera=Canon EOS'; of several "
        "--filter all must hold",
    )
    parser.add_argument(
        "--verify",
        choices=get_args(Verify),
        default="auto",
        help="which photos to look at, to see whether they contain the picture: the nearest until "
        "one does and those about as near (auto), every photo of the answer (all), or none",
    )
    parser.add_argument(
        "--verified", action="store_true", help="only the photos that contain the picture"
    )
    parser.add_argument(
        "--group",
        choices=get_args(Group),
        help="of photos that are copies of each other, list the others under the first",
    )
    parser.add_argument("--picture", type=Path, metavar="OUT.png", help="draw the answer there")
    parser.add_argument("--url", default=URL, help="the service (%(default)s)")
    return parser


def picture_size(data: bytes) -> Size | None:
    """Return the size of the upright picture; None if it can't be read here."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return ImageOps.exif_transpose(picture).size
    except OSError:
        return None


def main() -> int:
    arguments = make_parser().parse_args()
    try:
        data = arguments.image.read_bytes()
        answer = search(
            arguments.url,
            data,
            arguments.limit,
            arguments.max_distance,
            arguments.filter,
            verify=arguments.verify,
            verified=arguments.verified,
            group=arguments.group,
        )
        stored = count(fetch_stats(arguments.url)["store"]["photos"], "photo")
        conditions = [
            *(["match the filter"] if arguments.filter else []),
            *(["are so near"] if arguments.max_distance < MAX_DISTANCE else []),
        ]
        among = f"the photos that {' and '.join(conditions)}" if conditions else stored
        print(list_answer(answer, among, picture_size(data)))
        if arguments.picture:
            draw_answer(arguments.url, arguments.image, answer, arguments.picture)
            print(f"drawn in {arguments.picture}")
    except (OSError, RequestFailed) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
