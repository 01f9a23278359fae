"""Propose where a view lies in a region: by normalised correlation, at several scales."""

from __future__ import annotations

import math

import cv2
import numpy as np

from deployments.verifier.regions import Region
from deployments.verifier.views import View, resize, scaling, translation

SIDE = 24  # geometric mean of the sides of the view that is slid over the region, pixels
# Sides of the view as multiples of the chunk's, 0.38 to 2: a chunk that is nearest to a query is
# about as large as the query's place. A tile is a third of the photo; a query may be a seventh.
SCALES = tuple(1.15**step for step in range(-7, 6))


def propose_by_correlation(view: View, region: Region, degrees: float = 0) -> np.ndarray | None:
    """Return the map from view to region under which their grey levels correlate best.

    Args:
        degrees: by which the view is turned against the region, clockwise.

    Returns:
        A map, see `views`; None if the view is larger than the region at every scale.
    """
    height, width = view.pixels.shape
    shrinking = SIDE / math.sqrt(width * height)
    template = resize(view.pixels, width * shrinking, height * shrinking)
    best, proposed = -1.0, None
    for searched, to_region in region.pyramid(degrees, [SIDE / scale for scale in SCALES]):
        if searched.shape[0] < template.shape[0] or searched.shape[1] < template.shape[1]:
            continue
        scores = cv2.matchTemplate(searched, template, cv2.TM_CCOEFF_NORMED)
        _, score, _, (x, y) = cv2.minMaxLoc(scores)
        if score > best:
            best = score
            small = scaling(template.shape[1] / width, template.shape[0] / height)
            proposed = to_region @ translation(x, y) @ small
    return proposed
