"""Align a view with a region to a fraction of a pixel, and measure how well they agree.

The alignment is that of enhanced correlation coefficients (Evangelidis and Psarakis, PAMI 2008).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from deployments.verifier.regions import Region
from deployments.verifier.views import View, resize, scaling, translation

# Geometric mean of the sides of the view that is aligned, pixels. A view that has fewer pixels is
# not enlarged beyond them, because what lies between them would agree with nothing.
LEAST_SIDE, MOST_SIDE = 32, 64
MAX_ASPECT = 8
ITERATIONS, PRECISION = 30, 1e-3
MIN_SCALE, MAX_SCALE = 0.15, 8.0  # pixels of the region for a pixel of the view
LEAST_OVERLAP = 0.5  # of the view, with the region

# What is compared: structures smaller than `DETAIL`, divided by their contrast within `CONTRAST`
# (standard deviations of Gaussians, pixels). So one strong edge doesn't outweigh all weak ones,
# and light and colour count for nothing. `NOISE` (grey levels) keeps the noise of plain areas low.
DETAIL, CONTRAST, NOISE = 2.0, 5.0, 1.0

CELLS = 8  # places along a side of a square view
CELL_AGREES = 0.5
CELL_TEXTURE = 0.1  # least variance of a place's details, of about 1

CENTRES = translation(0.5, 0.5)  # OpenCV's origin is the centre of the first pixel


@dataclass(frozen=True, slots=True)
class Alignment:
    """How a view lies in a region.

    Attributes:
        to_region: map from view to region, see `views`.
        agreement: correlation of the slopes of their details, -1 to 1.
        places: places of the view that agree, of about 64.
        side: geometric mean of the sides of what was compared, pixels.
    """

    to_region: np.ndarray
    agreement: float
    places: int
    side: int


def align(
    view: View, region: Region, proposed: np.ndarray, *, perspective: bool = False
) -> Alignment | None:
    """Improve a map from view to region, and measure how well they agree under it.

    Args:
        proposed: a map, see `views`; it must be right to a few percent of the view's sides.
        perspective: fit a homography instead of an affine map.

    Returns:
        None if they can't be aligned.
    """
    small = _shrink(view.pixels)
    shrinking = scaling(
        small.shape[1] / view.pixels.shape[1], small.shape[0] / view.pixels.shape[0]
    )
    start = proposed @ np.linalg.inv(shrinking)
    # The region is scaled to the size of the shrunken view, so that both have the same details.
    reduction = _scale(start)
    height, width = region.pixels.shape
    if not MIN_SCALE < _scale(proposed) < MAX_SCALE:
        return None
    target = (
        resize(region.pixels, width / reduction, height / reduction)
        if reduction > 1
        else region.pixels
    )
    scale = scaling(target.shape[1] / width, target.shape[0] / height)
    start = np.linalg.inv(CENTRES) @ scale @ start @ CENTRES

    small, target = small.astype(np.float32), target.astype(np.float32)
    fitted = _fit(small, target, start, perspective)
    if fitted is None:
        return None
    found = cv2.warpPerspective(
        target,
        fitted,
        small.shape[::-1],
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderValue=-1,
    )
    inside = found >= 0
    if inside.mean() < LEAST_OVERLAP:
        return None
    to_region = np.linalg.inv(scale) @ CENTRES @ fitted @ np.linalg.inv(CENTRES) @ shrinking
    if not MIN_SCALE < _scale(to_region) < MAX_SCALE:
        return None
    agreement, places = _compare(small, found, inside)
    side = round(math.sqrt(small.size))
    return Alignment(to_region / to_region[2, 2], agreement, places, side)


def measure_texture(view: View) -> float:
    """Return the standard deviation of the details of a view, grey levels."""
    return float(_details(_shrink(view.pixels).astype(np.float32)).std())


def _shrink(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape
    side = min(max(math.sqrt(width * height), LEAST_SIDE), MOST_SIDE)
    aspect = min(max(width / height, 1 / MAX_ASPECT), MAX_ASPECT)
    return resize(pixels, side * math.sqrt(aspect), side / math.sqrt(aspect))


def _scale(matrix: np.ndarray) -> float:
    return math.sqrt(abs(np.linalg.det(matrix[:2, :2] / matrix[2, 2])))


def _fit(
    view: np.ndarray, region: np.ndarray, start: np.ndarray, perspective: bool
) -> np.ndarray | None:
    motion = cv2.MOTION_HOMOGRAPHY if perspective else cv2.MOTION_AFFINE
    rows = start if perspective else start[:2]
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, ITERATIONS, PRECISION)
    try:
        _, fitted = cv2.findTransformECC(view, region, rows.astype(np.float32), motion, stop)
    except cv2.error:  # they don't overlap, or are plain
        return None
    matrix = fitted if perspective else np.vstack([fitted, [0, 0, 1]])
    return matrix.astype(np.float64) if np.isfinite(matrix).all() else None


def _details(pixels: np.ndarray) -> np.ndarray:
    return pixels - cv2.GaussianBlur(pixels, (0, 0), DETAIL)


def _equalised(pixels: np.ndarray) -> np.ndarray:
    details = _details(pixels)
    return details / np.sqrt(cv2.GaussianBlur(details * details, (0, 0), CONTRAST) + NOISE**2)


def _compare(view: np.ndarray, found: np.ndarray, inside: np.ndarray) -> tuple[float, int]:
    """Return the agreement of a view and what was found in its place, and the agreeing places."""
    seen, there = view[inside], found[inside]
    gain = seen.std() / (there.std() + 1e-3)
    found = np.where(inside, (found - there.mean()) * gain + seen.mean(), view)
    one, other = _equalised(view), _equalised(found.astype(np.float32))
    agreement = _correlate_slopes(one, other, inside)
    one, other = (_cells(np.where(inside, values, 0)) for values in (one, other))
    textured = (one**2).mean(1) > CELL_TEXTURE
    return agreement, int(((_correlate(one, other) > CELL_AGREES) & textured).sum())


def _correlate_slopes(one: np.ndarray, other: np.ndarray, inside: np.ndarray) -> float:
    """Return the correlation of the slopes of two pictures, along the axis that has the lower.

    Any straight edge lies well on any other, and stripes on stripes: their values agree, and their
    slopes across the edge. Along the edge, only what is truly the same agrees. The axes are the
    principal ones of the first picture.
    """
    inner = cv2.erode(inside.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=0) > 0
    of_one, of_other = (
        np.stack([cv2.Scharr(picture, cv2.CV_32F, *axis)[inner] for axis in ((1, 0), (0, 1))])
        for picture in (one, other)
    )
    _, axes = np.linalg.eigh(of_one @ of_one.T)
    return float(_correlate(axes.T @ of_one, axes.T @ of_other).min())


def _cells(values: np.ndarray) -> np.ndarray:
    """Return the square places of an array, a row each."""
    cell = max(2, round(math.sqrt(values.size) / CELLS))
    rows, columns = (side // cell for side in values.shape)
    cut = values[: rows * cell, : columns * cell].reshape(rows, cell, columns, cell)
    return cut.transpose(0, 2, 1, 3).reshape(-1, cell * cell)


def _correlate(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the normalised correlation of each two rows, -1 to 1; 0 where one is constant."""
    one, other = (values - values.mean(1, keepdims=True) for values in (one, other))
    norm = np.sqrt((one**2).sum(1) * (other**2).sum(1))
    return np.where(norm > 1e-6, (one * other).sum(1) / np.maximum(norm, 1e-6), 0)
