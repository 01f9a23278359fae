"""Views of a query: all of it or a part, turned and mirrored, in grey.

Points are x, y in pixels, where (0, 0) is the top left corner of the top left pixel, whose centre
is (0.5, 0.5). A map is a float64 `[3, 3]` matrix of homogeneous coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from deployments.records import Box
from deployments.verification import Look, Sketch


@dataclass(frozen=True, slots=True)
class View:
    """Pixels to look for in a photo.

    Attributes:
        pixels: uint8 `[height, width]`, grey.
        to_query: maps its points to points of the upright query.
        part: the part of the upright query that it shows.
    """

    pixels: np.ndarray
    to_query: np.ndarray
    part: Box

    @property
    def corners(self) -> np.ndarray:
        """Its corners in the order of the query's corners: float64 `[4, 2]`, in its own pixels."""
        x1, y1, x2, y2 = self.part
        corners = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], np.float64)
        return transform(np.linalg.inv(self.to_query), corners)

    def mirrored(self) -> View:
        """Return the view with left and right exchanged."""
        width = self.pixels.shape[1]
        back = np.array([[-1.0, 0, width], [0, 1, 0], [0, 0, 1]])
        return View(np.ascontiguousarray(self.pixels[:, ::-1]), self.to_query @ back, self.part)

    def turned(self, quarters: int) -> View:
        """Return the view turned clockwise by so many quarter turns."""
        view = self
        for _ in range(quarters % 4):
            height = view.pixels.shape[0]
            back = np.array([[0.0, 1, 0], [-1, 0, height], [0, 0, 1]])
            pixels = np.ascontiguousarray(np.rot90(view.pixels, -1))
            view = View(pixels, view.to_query @ back, view.part)
        return view

    def scaled(self, factor: float) -> View:
        """Return the view at another size."""
        height, width = self.pixels.shape
        pixels = resize(self.pixels, width * factor, height * factor)
        back = scaling(width / pixels.shape[1], height / pixels.shape[0])
        return View(pixels, self.to_query @ back, self.part)


def make_view(sketch: Sketch, look: Look) -> View:
    """Return the view of a query that a look asks for."""
    x1, y1, x2, y2 = sketch.box
    height, width = sketch.pixels.shape
    to_query = translation(x1, y1) @ scaling((x2 - x1) / width, (y2 - y1) / height)
    to_sketch = np.linalg.inv(to_query)
    corners = transform(to_sketch, np.array([look.part[:2], look.part[2:]], np.float64))
    left, top = np.clip(np.rint(corners[0]).astype(int), 0, (width - 1, height - 1))
    right, bottom = np.clip(np.rint(corners[1]).astype(int), (left + 1, top + 1), (width, height))
    pixels = sketch.pixels[top:bottom, left:right]
    view = View(pixels, to_query @ translation(left, top), look.part)
    view = view.mirrored() if look.mirrored else view
    return view.turned(look.turned)


def resize(pixels: np.ndarray, width: float, height: float) -> np.ndarray:
    """Scale a picture to about this size, at least 1 x 1, by areas if it becomes smaller."""
    size = max(1, round(width)), max(1, round(height))
    if size == pixels.shape[::-1]:
        return pixels
    smaller = size[0] < pixels.shape[1]
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)


def transform(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Map points: float64 `[n, 2]`."""
    mapped = np.c_[points, np.ones(len(points))] @ matrix.T
    return mapped[:, :2] / mapped[:, 2:]


def translation(x: float, y: float) -> np.ndarray:
    return np.array([[1.0, 0, x], [0, 1, y], [0, 0, 1]])


def scaling(x: float, y: float) -> np.ndarray:
    return np.diag([x, y, 1.0])
