"""The part of a photo in which a query is looked for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from deployments.records import Box
from deployments.verifier.views import resize, scaling, translation

CENTRES = translation(0.5, 0.5)
GROWTH = 0.5  # of a chunk's sides, on each side: a query may reach beyond the chunk


class Region:
    """The neighbourhood of a chunk, from a photo's preview.

    Args:
        preview: uint8 `[h, w]`, grey.
        width, height: of the original, pixels.
        chunk: in pixels of the original.

    Attributes:
        pixels: uint8 `[height, width]`, grey.
        to_photo: maps its points to points of the upright original, see `views`.
    """

    def __init__(self, preview: np.ndarray, width: int, height: int, chunk: Box) -> None:
        x, y = preview.shape[1] / width, preview.shape[0] / height
        x1, y1, x2, y2 = chunk
        grow_x, grow_y = GROWTH * (x2 - x1), GROWTH * (y2 - y1)
        left = min(max(0, math.floor((x1 - grow_x) * x)), preview.shape[1] - 1)
        top = min(max(0, math.floor((y1 - grow_y) * y)), preview.shape[0] - 1)
        right = max(left + 1, min(preview.shape[1], math.ceil((x2 + grow_x) * x)))
        bottom = max(top + 1, min(preview.shape[0], math.ceil((y2 + grow_y) * y)))
        self.pixels = preview[top:bottom, left:right]
        self.to_photo = scaling(1 / x, 1 / y) @ translation(left, top)
        # A chunk of less than a pixel must not make the pyramid huge.
        self._chunk_side = max(1.0, math.sqrt((x2 - x1) * x * (y2 - y1) * y))
        self._pyramids: dict[float, list[tuple[np.ndarray, np.ndarray]]] = {}

    def pyramid(
        self, degrees: float, chunk_sides: Sequence[float]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the region turned, at several sizes; it is made once for each angle.

        Args:
            degrees: by which it is turned, clockwise.
            chunk_sides: geometric mean of the chunk's sides at each size, pixels.

        Returns:
            For each size the pixels, and the map of their points to the region's.
        """
        if degrees not in self._pyramids:
            pixels, to_region = self._turned(degrees)
            height, width = pixels.shape
            levels = []
            for side in chunk_sides:
                factor = side / self._chunk_side
                level = resize(pixels, width * factor, height * factor)
                enlarging = scaling(width / level.shape[1], height / level.shape[0])
                levels.append((level, to_region @ enlarging))
            self._pyramids[degrees] = levels
        return self._pyramids[degrees]

    def _turned(self, degrees: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the pixels turned clockwise, all of them, and the map of their points back."""
        height, width = self.pixels.shape
        if not degrees:
            return self.pixels, np.eye(3)
        rows = cv2.getRotationMatrix2D((width / 2, height / 2), -degrees, 1)
        cos, sin = abs(rows[0, :2])
        size = int(width * cos + height * sin), int(width * sin + height * cos)
        turning = translation((size[0] - width) / 2, (size[1] - height) / 2) @ np.vstack(
            [rows, [0, 0, 1]]
        )
        # Beyond the edges the picture is reflected: a constant colour would correlate with borders.
        # OpenCV's origin is the centre of the first pixel.
        of_centres = np.linalg.inv(CENTRES) @ turning @ CENTRES
        turned = cv2.warpAffine(self.pixels, of_centres[:2], size, borderMode=cv2.BORDER_REFLECT)
        return turned, np.linalg.inv(turning)
