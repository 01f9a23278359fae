"""Points, quads and homographies.

Points are x, y in pixels. The pixel in the corner is the square around (0.5, 0.5), so the corners
of a picture are (0, 0) and (width, height).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from deployments.boxes import outer_box
from deployments.records import Box, Point, Quad


def corners(width: float, height: float, x: float = 0, y: float = 0) -> Quad:
    """Return the corners of a rectangle whose top left one is at x, y."""
    return ((x, y), (x + width, y), (x + width, y + height), (x, y + height))


def shift(x: float, y: float) -> np.ndarray:
    """Return the matrix that moves points by x and y."""
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], float)


def stretch(x: float, y: float) -> np.ndarray:
    """Return the matrix that multiplies the coordinates of points."""
    return np.diag([x, y, 1.0])


def apply(matrix: np.ndarray, quad: Sequence[Point]) -> Quad:
    """Take the corners of a quad through a homography, 3 x 3."""
    x, y, w = matrix @ np.column_stack([np.asarray(quad, float), np.ones(len(quad))]).T
    return tuple((float(a), float(b)) for a, b in zip(x / w, y / w, strict=True))  # type: ignore[return-value]


def homography(source: Quad, target: Quad) -> np.ndarray:
    """Return the 3 x 3 matrix that takes the corners of one quad to those of another."""
    equations, values = [], []
    for (x, y), (u, v) in zip(source, target, strict=True):
        equations += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.append(np.linalg.solve(equations, values), 1).reshape(3, 3)


def bounds(quad: Quad, width: int, height: int) -> Box:
    """Return the box around a quad, inside a photo of so many pixels."""
    xs, ys = zip(*quad, strict=True)
    # An edge that lies on a pixel's edge stays there, whatever the rounding of the last digits.
    left, top, right, bottom = (round(side, 3) for side in (min(xs), min(ys), max(xs), max(ys)))
    return outer_box((left, top, right, bottom), width, height)


def diagonal(quad: Quad) -> float:
    """Return the mean length of a quad's two diagonals."""
    return (math.dist(quad[0], quad[2]) + math.dist(quad[1], quad[3])) / 2


def distance(one: Quad, other: Quad) -> float:
    """Return the mean distance of the corners of two quads."""
    return sum(map(math.dist, one, other)) / 4


def pose(quad: Quad) -> tuple[bool, float]:
    """Return how a picture that lies at a quad in a photo is turned against the photo.

    Returns:
        Whether it is mirrored; and degrees, clockwise, -180 to 180: those by which the photo is
        turned, and then mirrored left to right, so that it looks like the picture.
    """
    points = np.array(quad)
    across = points[1] + points[2] - points[0] - points[3]
    down = points[2] + points[3] - points[0] - points[1]
    mirrored = bool(across[0] * down[1] < across[1] * down[0])
    if mirrored:
        across = -across
    degrees = -math.degrees(math.atan2(across[1], across[0]))
    return mirrored, degrees + 0.0  # not -0.0
