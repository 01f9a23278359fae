"""Overlapping tiles of a photo: chunks of what no detector has a name for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deployments.records import Box

LEAST_SIDE = 32  # pixels; what is smaller shows next to nothing
MAX_ASPECT = 1.5  # of a tile, where the photo would make it more oblong


def tile_boxes(width: int, height: int, scales: Sequence[int], max_tiles: int) -> list[Box]:
    """Cover a photo with tiles, once for each scale; neighbours overlap by half.

    At scale n a tile is an n-th of the photo's shorter side, and an n-th of the longer one too, or
    less where it would be longer than 3:2. A photo of 4:3 has 9 tiles at scale 2, 25 at scale 3.

    The coarsest scale comes first. Where an oblong photo would have more than `max_tiles`, they are
    longer, so that each scale covers the whole photo all the same. If the tiles would be smaller
    than 32 pixels, this scale and all finer ones are left out.

    Args:
        width, height: size of the photo, pixels.
        scales: different numbers from 2, in any order.
        max_tiles: most tiles of all scales together, at least `fewest_tiles` of these.

    Returns:
        Boxes inside the photo, all different; those of a scale row by row.
    """
    return list(_tile_boxes(width, height, tuple(scales), max_tiles))


@lru_cache(1024)  # most photos have one of few sizes
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
    """Return how many tiles a photo has that is not oblong."""
    return sum((2 * scale - 1) ** 2 for scale in scales)


def _spans(length: int, parts: int) -> list[tuple[int, int]]:
    """Divide a length into parts, and put one more across each line between two of them."""
    lines = [i * length // (2 * parts) for i in range(2 * parts + 1)]
    return list(zip(lines, lines[2:], strict=False))
