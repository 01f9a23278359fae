"""Queries that are cut out of photos, each with the map from its points to the photo's.

Points are those of `deployments.verifier.views`. The pixels come from scikit-image, which has an
implementation of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from skimage.transform import ProjectiveTransform, warp

from deployments.compute.previews import make_preview
from deployments.compute.sketches import make_sketch
from deployments.records import Box, Preview
from deployments.verification import Candidate, Look, Sketch

SHA256 = "0" * 64


def cut(photo: np.ndarray, to_photo: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return the picture of this size whose points a map takes to those of a photo.

    Args:
        photo: uint8, of any number of channels. What lies beyond it is black.
        to_photo: a map that makes the photo not much smaller.
    """
    centres = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # of pixels, to points
    inverse_map = ProjectiveTransform(np.linalg.inv(centres) @ to_photo @ centres)
    values = warp(photo, inverse_map, output_shape=(height, width), order=3, preserve_range=True)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def placed(
    x: float, y: float, width: float, height: float, *, scale: float = 1, degrees: float = 0
) -> np.ndarray:
    """Return the map of a query, to a photo in which its centre is at x, y.

    Args:
        width, height: of the query, pixels.
        scale: pixels of the photo for a pixel of the query.
        degrees: by which the query is turned against the photo, clockwise.
    """
    cos, sin = (scale * f(math.radians(-degrees)) for f in (math.cos, math.sin))
    turned = np.array([[cos, -sin, x], [sin, cos, y], [0, 0, 1]])
    return turned @ np.array([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1.0]])


def apply(matrix: np.ndarray, points: Sequence[Sequence[float]]) -> np.ndarray:
    """Take points through a map."""
    return ProjectiveTransform(matrix)(np.asarray(points, float))


def corners_of(box: Sequence[float]) -> list[tuple[float, float]]:
    """Return the corners of a box: top left, top right, bottom right, bottom left."""
    x1, y1, x2, y2 = box
    return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]


def sketch_of(query: np.ndarray, box: Box | None = None) -> Sketch:
    """Return the sketch of a query, or of a part of it."""
    return make_sketch(query, box or (0, 0, query.shape[1], query.shape[0]))


def preview_of(photo: np.ndarray) -> Preview:
    return Preview(SHA256, photo.shape[1], photo.shape[0], make_preview(photo))


def candidate(
    id: str, box: Sequence[float], look: Look | None = None, distance: float = 0.1
) -> Candidate:
    x1, y1, x2, y2 = (round(side) for side in box)
    return Candidate(id, SHA256, distance, (x1, y1, x2, y2), look or Look((0, 0, 1, 1)))
