"""Find the borders of a query: the bars of a screenshot, or a caption on a plain band."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from deployments.records import Box


class Border(NamedTuple):
    """What a line of a border looks like.

    Attributes:
        share: of its pixels that must have the border's colour.
        tolerance: of that colour, grey levels.
        gap: lines between two such lines that need not be so, as a share of all: those of text.
    """

    share: float
    tolerance: int
    gap: float


BAR, CAPTION = Border(0.9, 10, 0), Border(0.9, 24, 0.1)
LEAST_BORDER = 0.03  # of the side
LEAST_CONTENT = 0.05  # of the side
# Pixels. A narrower strip shows little more than an edge between two plain areas, and edges look
# alike: by such strips three of 2,000 queries were seen that were in no photo.
LEAST_SIDE = 20
EDGE = 1  # pixels of the content that were blended with the border when the query was scaled


def find_contents(pixels: np.ndarray) -> list[Box]:
    """Return what may lie inside of borders: inside of plain bars, and of captions.

    Args:
        pixels: uint8 `[height, width]`, grey.

    Returns:
        At most two different boxes; none if there are no borders.
    """
    boxes = []
    for border in (BAR, CAPTION):
        top, bottom = _inside(pixels, border)
        left, right = _inside(pixels[top:bottom].T, BAR)
        boxes.append((left, top, right, bottom))
    whole = (0, 0, *pixels.shape[::-1])
    return [
        box
        for box in dict.fromkeys(boxes)
        if box != whole and min(box[2] - box[0], box[3] - box[1]) >= LEAST_SIDE
    ]


def _inside(lines: np.ndarray, border: Border) -> tuple[int, int]:
    """Return the first line inside of the borders, and the one after the last."""
    count = len(lines)
    first, last = _count(lines, border), count - _count(lines[::-1], border)
    return (first, last) if last - first >= max(1, LEAST_CONTENT * count) else (0, count)


def _count(lines: np.ndarray, border: Border) -> int:
    """Return how many of the first lines are a border."""
    off = np.abs(lines - np.median(lines[0]))
    plain = np.flatnonzero((off <= border.tolerance).mean(1) >= border.share)
    count = 0
    for line in plain.tolist():
        if line - count > border.gap * len(lines):
            break
        count = line + 1
    return count + EDGE if LEAST_BORDER * len(lines) <= count < len(lines) else 0
