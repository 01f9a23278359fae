"""Propose where a view lies in a region: by local features, whatever its size and angle.

ORB (Rublee and others, ICCV 2011) finds and describes corners; RANSAC fits a map to pairs of
corners that look alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from deployments.verifier.regions import Region
from deployments.verifier.views import View, resize, scaling

VIEW_POINTS, REGION_POINTS = 600, 1500
VIEW_SIDE = 256  # a smaller view is enlarged until its shortest side has so many pixels
MAX_ENLARGEMENT = 4
LONGEST_VIEW = 512  # pixels
REGION_SIDE = 128  # a region with a shorter side is enlarged to twice its size
RATIO = 0.8  # of the distances to the nearest and the next descriptor (Lowe, IJCV 2004)
TOLERANCE = 4.0  # pixels
MIN_SCALE, MAX_SCALE = 0.05, 8.0
MAX_SHEAR = 2.0  # ratio of the singular values of an affine map
EDGE = 15  # pixels: nearer to an edge there are no corners
GRID = 3  # pixels: inliers that are nearer to each other are one


@dataclass(frozen=True, slots=True)
class Features:
    """Corners of a picture.

    Attributes:
        points: float32 `[n, 2]`, in pixels of the picture that was described, see `views`.
        descriptors: uint8 `[n, 32]`.
        scale: maps points of the picture at its own size to `points`.
    """

    points: np.ndarray
    descriptors: np.ndarray
    scale: np.ndarray


def describe_view(view: View) -> Features:
    """Find the corners of a view."""
    height, width = view.pixels.shape
    factor = min(VIEW_SIDE / min(width, height), MAX_ENLARGEMENT, LONGEST_VIEW / max(width, height))
    return _describe(view.pixels, factor, VIEW_POINTS)


def describe_region(region: Region) -> Features:
    """Find the corners of a region."""
    return _describe(
        region.pixels, 2 if min(region.pixels.shape) < REGION_SIDE else 1, REGION_POINTS
    )


def propose_by_features(view: Features, region: Features) -> tuple[np.ndarray, int] | None:
    """Return a map from view to region that takes corners to corners that look alike.

    Returns:
        A map, see `views`, and the number of corners that agree with it; None if there is no map.
    """
    pairs = _pair(view.descriptors, region.descriptors)
    if len(pairs) < 4:
        return None
    source, target = view.points[pairs[:, 0]], region.points[pairs[:, 1]]
    best: tuple[np.ndarray, int] | None = None
    # A similarity needs two pairs, so few wrong ones do no harm; an affine map fits better if the
    # picture was also stretched.
    for fit in (cv2.estimateAffinePartial2D, cv2.estimateAffine2D):
        matrix, used = fit(
            source,
            target,
            method=cv2.RANSAC,
            ransacReprojThreshold=TOLERANCE,
            maxIters=1000,
            confidence=0.995,
        )
        if matrix is None or not _is_plausible(matrix):
            continue
        inliers = used.ravel().astype(bool)
        agreeing = min(_count_places(source[inliers]), _count_places(target[inliers]))
        if best is None or agreeing > best[1]:
            to_region = np.linalg.inv(region.scale) @ np.vstack([matrix, [0, 0, 1]]) @ view.scale
            best = to_region, agreeing
    return best


@cache
def _detector(points: int) -> cv2.ORB:
    return cv2.ORB.create(
        nfeatures=points, scaleFactor=1.2, nlevels=10, edgeThreshold=EDGE, fastThreshold=5
    )


def _describe(pixels: np.ndarray, factor: float, points: int) -> Features:
    height, width = pixels.shape
    scaled = resize(pixels, width * factor, height * factor)
    scale = scaling(scaled.shape[1] / width, scaled.shape[0] / height)
    none = Features(np.zeros((0, 2), np.float32), np.zeros((0, 32), np.uint8), scale)
    if min(scaled.shape) <= 2 * EDGE:  # OpenCV fails if a level of its pyramid has no pixels
        return none
    corners, descriptors = _detector(points).detectAndCompute(scaled, None)
    if descriptors is None:
        return none
    # OpenCV's origin is the centre of the first pixel.
    found = np.asarray(cv2.KeyPoint.convert(corners), np.float32)
    return Features(found + 0.5, descriptors, scale)


def _pair(view: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Return pairs of rows whose descriptors are clearly nearer than the next: int `[n, 2]`."""
    if len(view) == 0 or len(region) < 2:
        return np.zeros((0, 2), int)
    matches = cv2.BFMatcher(cv2.NORM_HAMMING).knnMatch(view, region, 2)
    return np.array(
        [
            (one.queryIdx, one.trainIdx)
            for one, other in matches
            if one.distance < RATIO * other.distance
        ],
        int,
    ).reshape(-1, 2)


def _is_plausible(matrix: np.ndarray) -> bool:
    if np.linalg.det(matrix[:, :2]) <= 0:  # mirrored views are looked for by themselves
        return False
    largest, smallest = np.linalg.svd(matrix[:, :2], compute_uv=False)
    return bool(smallest > MIN_SCALE and largest < MAX_SCALE and largest < MAX_SHEAR * smallest)


def _count_places(points: np.ndarray) -> int:
    return len(np.unique((points // GRID).astype(int), axis=0))
