"""Search by a picture: prints a table of the photos that contain it, and draws them.

scripts/search.py PICTURE [--limit 10] [--filter 'year>=2020'] [--picture OUT.png]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from common.drawing import describe, draw_answer
from PIL import Image, ImageOps


class SearchFailed(Exception):
    """The service refused the picture or can't be reached; the message says why."""


def search(
    url: str, data: bytes, limit: int, max_distance: float = 2.0, filter: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Return the matches of a picture, nearest first.

    Args:
        filter: conditions on the photos' metadata, all of which must hold.

    Raises:
        SearchFailed
    """
    try:
        response = httpx.post(
            f"{url}/search",
            params={"limit": limit, "max_distance": max_distance, "filter": filter},
            content=data,
            headers={"Content-Type": "image/*"},
            timeout=130,
        )
    except httpx.TransportError as error:
        raise SearchFailed(
            f"No service answers at {url} ({error}). Start it with: serve run serve_config.yaml"
        ) from None
    if response.status_code != 200:
        raise SearchFailed(f"{response.status_code}: {response.json()['detail']}")
    return response.json()["matches"]


def table(matches: list[dict[str, Any]]) -> str:
    """Lay matches out as text."""
    lines = [f"{'':>3} {'distance':>8}  {'box':<24} {'what':<16} photo"]
    for rank, match in enumerate(matches, 1):
        box = ",".join(map(str, match["box"]))
        photo = match["filename"] or match["id"]
        lines.append(
            f"{rank:>3} {match['distance']:>8.3f}  {box:<24} {describe(match):<16} {photo}"
        )
    return "\n".join(lines)


def draw(url: str, query: Path, matches: list[dict[str, Any]], target: Path) -> None:
    """Write the picture of an answer."""
    with Image.open(query) as image:
        picture = ImageOps.exif_transpose(image).convert("RGB")
    draw_answer(picture, matches, lambda path: httpx.get(url + path).content).save(target)


def main() -> int:
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
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the service (%(default)s)")
    arguments = parser.parse_args()
    try:
        data = arguments.image.read_bytes()
        matches = search(
            arguments.url, data, arguments.limit, arguments.max_distance, arguments.filter
        )
    except (OSError, SearchFailed) as error:
        print(error, file=sys.stderr)
        return 1
    print(table(matches) if matches else "No photo matches.")
    if arguments.picture:
        draw(arguments.url, arguments.image, matches, arguments.picture)
        print(f"drawn in {arguments.picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
