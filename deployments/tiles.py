"""Overlapping tiles of a photo, for everything that a detector has no name for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deployments.records import Box

LEAST_SIDE = 32  # pixels; a smaller tile shows next to nothing
MAX_ASPECT = 1.5  # of a tile, unless `max_tiles` makes it longer


def tile_boxes(
    width: int, height: int, scales: Sequence[int], max_tiles: int, overlap: float
) -> list[Box]:
    """Cover a photo with tiles, once for each scale.

    At scale n, the sides of a tile are an n-th of the photo's sides. In an oblong photo the longer
    side is shorter, so that a tile is not longer than 3:2. If neighbours overlap by a third, a
    photo of 4:3 has 9 tiles at scale 2 and 16 at scale 3; if by half, 9 and 25.

    The coarsest scale comes first. If a very oblong photo would have more than `max_tiles`, the
    tiles become longer, so that each scale still covers the whole photo. A scale whose tiles would
    be smaller than 32 pixels is left out, as are all finer ones.

    Args:
        width, height: size of the photo, pixels.
        scales: different numbers of at least 2, in any order.
        max_tiles: most tiles of all scales together; at least `fewest_tiles(scales, overlap)`.
        overlap: neighbours share at least so much of their side, 0 to 0.75. They are equally far
            apart, with a tile at each edge of the photo.

    Returns:
        Boxes inside the photo, all different; those of a scale row by row.
    """
    return list(_tile_boxes(width, height, tuple(scales), max_tiles, overlap))


@lru_cache(1024)  # most photos have one of a few sizes
def _tile_boxes(
    width: int, height: int, scales: tuple[int, ...], max_tiles: int, overlap: float
) -> list[Box]:
    short, long = sorted((width, height))
    boxes: list[Box] = []
    reserved = fewest_tiles(scales, overlap)
    for scale in sorted(scales):
        if short < scale * LEAST_SIDE:
            break
        reserved -= fewest_tiles([scale], overlap)
        room = (max_tiles - reserved - len(boxes)) // _count(scale, overlap)  # on the longer side
        parts = max(scale, round(scale * long / short / MAX_ASPECT))
        while _count(parts, overlap) > room:
            parts -= 1
        columns, rows = (parts, scale) if width >= height else (scale, parts)
        boxes += [
            (left, top, right, bottom)
            for top, bottom in _spans(height, rows, overlap)
            for left, right in _spans(width, columns, overlap)
        ]
    return boxes


def fewest_tiles(scales: Sequence[int], overlap: float) -> int:
    """Return how many tiles a photo has if it is not oblong."""
    return sum(_count(scale, overlap) ** 2 for scale in scales)


def _count(parts: int, overlap: float) -> int:
    """Return how many tiles of a length's `parts`-th cover it."""
    return 1 + math.ceil(
        round((parts - 1) / (1 - overlap), 6)
    )  # 1 / (1 - 0.8) is 5.000000000000001


def _spans(length: int, parts: int, overlap: float) -> list[tuple[int, int]]:
    """Return equal parts of a length, equally far apart, from its begin to its end."""
    count = _count(parts, overlap)
    # In whole numbers: a part begins at step * (length - length / parts) / (count - 1).
    unit = parts * (count - 1)
    begins = [step * length * (parts - 1) for step in range(count)]
    return [(begin // unit, (begin + length * (count - 1)) // unit) for begin in begins]
