"""Overlapping tiles of a photo, for everything that a detector has no name for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deployments.records import Box

LEAST_SIDE = 32  # pixels; a smaller tile shows next to nothing
MAX_ASPECT = 1.5  # of a tile, unless `max_tiles` makes it longer


def tile_boxes(width: int, height: int, scales: Sequence[int], max_tiles: int) -> list[Box]:
    """Cover a photo with tiles, once for each scale; neighbours overlap by half.

    At scale n, the sides of a tile are an n-th of the photo's sides. In an oblong photo the longer
    side is shorter, so that a tile is not longer than 3:2. A photo of 4:3 has 9 tiles at scale 2
    and 25 at scale 3.

    The coarsest scale comes first. If a very oblong photo would have more than `max_tiles`, the
    tiles become longer, so that each scale still covers the whole photo. A scale whose tiles would
    be smaller than 32 pixels is left out, as are all finer ones.

    Args:
        width, height: size of the photo, pixels.
        scales: different numbers of at least 2, in any order.
        max_tiles: most tiles of all scales together; at least `fewest_tiles(scales)`.

    Returns:
        Boxes inside the photo, all different; those of a scale row by row.
    """
    return list(_tile_boxes(width, height, tuple(scales), max_tiles))


@lru_cache(1024)  # most photos have one of a few sizes
def _tile_boxes(width: int, height: int, scales: tuple[int, ...], max_tiles: int) -> list[Box]:
    short, long = sorted((width, height))
    boxes: list[Box] = []
    reserved = fewest_tiles(scales)
    for scale in sorted(scales):
        if short < scale * LEAST_SIDE:
            break
        reserved -= fewest_tiles([scale])
        room = (max_tiles - reserved - len(boxes)) // (2 * scale - 1)  # along the longer side
        parts = max(scale, round(scale * long / short / MAX_ASPECT))
        parts = min(parts, (room + 1) // 2)
        columns, rows = (parts, scale) if width >= height else (scale, parts)
        boxes += [
            (left, top, right, bottom)
            for top, bottom in _spans(height, rows)
            for left, right in _spans(width, columns)
        ]
    return boxes


def fewest_tiles(scales: Sequence[int]) -> int:
    """Return how many tiles a photo has if it is not oblong."""
    return sum((2 * scale - 1) ** 2 for scale in scales)


def _spans(length: int, parts: int) -> list[tuple[int, int]]:
    """Divide a length into parts, and add one across the border of each two neighbours."""
    lines = [i * length // (2 * parts) for i in range(2 * parts + 1)]
    return list(zip(lines, lines[2:], strict=False))
