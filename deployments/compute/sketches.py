"""Sketches of queries, which a verifier looks for in photos."""

from __future__ import annotations

import numpy as np
from PIL import Image

from deployments.compute.jpegs import scale_down
from deployments.limits import SKETCH_SIDE
from deployments.records import Box
from deployments.verification import Sketch


def make_sketch(pixels: np.ndarray, box: Box) -> Sketch:
    """Make the sketch of a part of a query.

    Args:
        pixels: uint8 `[height, width, 3]`, RGB, upright: the query.
        box: the part.
    """
    x1, y1, x2, y2 = box
    small = scale_down(np.ascontiguousarray(pixels[y1:y2, x1:x2]), SKETCH_SIDE)
    return Sketch(np.array(Image.fromarray(small).convert("L")), box)
