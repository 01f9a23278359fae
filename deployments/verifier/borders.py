"""Find the borders of a query: the bars of a screenshot, or a caption on a plain band."""

from __future__ import annotations

import numpy as np

from deployments.records import Box

# Share of a line that must have the border's colour: of the outermost line, of any other line, and
# of any other line where there may be text on the border.
OUTERMOST, PLAIN, BESIDE_TEXT = 0.9, 0.6, 0.3
TOLERANCE = 12  # grey levels
LEAST_BORDER = 0.03  # of the side
LEAST_CONTENT = 0.05  # of the side
EDGE = 1  # pixels of the content that were blended with the border when the query was scaled


def find_contents(pixels: np.ndarray) -> list[Box]:
    """Return what may lie inside of borders: the box without plain ones, and without text on them.

    Args:
        pixels: uint8 `[height, width]`, grey.

    Returns:
        At most two different boxes; none if there are no borders.
    """
    whole = (0, 0, *pixels.shape[::-1])
    found = [_inside(pixels, share) for share in (PLAIN, BESIDE_TEXT)]
    return [box for box in dict.fromkeys(found) if box != whole]


def _inside(pixels: np.ndarray, share: float) -> Box:
    top, bottom = _without_borders(pixels, share)
    left, right = _without_borders(pixels[top:bottom].T, share)
    return left, top, right, bottom


def _without_borders(lines: np.ndarray, share: float) -> tuple[int, int]:
    """Return the first line inside of the borders, and the one after the last."""
    count = len(lines)
    first, last = _border(lines, share), count - _border(lines[::-1], share)
    return (first, last) if last - first >= max(1, LEAST_CONTENT * count) else (0, count)


def _border(lines: np.ndarray, share: float) -> int:
    """Return how many of the first lines are a border."""
    shares = (np.abs(lines - np.median(lines[0])) <= TOLERANCE).mean(1)
    inside = np.flatnonzero(shares < share)
    border = int(inside[0]) if len(inside) and shares[0] >= OUTERMOST else 0
    return border + EDGE if border >= LEAST_BORDER * len(lines) else 0
