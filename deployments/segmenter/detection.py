"""The interface of detectors, and their results."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class Detections:
    """The objects found in one image.

    Attributes:
        boxes: float32 `[n, 4]`, x1, y1, x2, y2 in pixels, inside the image.
        confidences: float32 `[n]`, 0 to 1, in descending order.
        labels: the class name of each object.
    """

    boxes: np.ndarray
    confidences: np.ndarray
    labels: list[str]


class Detector(Protocol):
    """Any object detector."""

    def detect(
        self, images: Sequence[torch.Tensor], thresholds: Sequence[float]
    ) -> list[Detections]:
        """Find objects.

        Args:
            images: uint8 `[height, width, 3]`, RGB, upright, of any sizes, on any devices.
            thresholds: for each image, the confidence that a detection must exceed.

        Returns:
            One `Detections` for each image, in order. It doesn't depend on the other images.
        """


def visible_detections(
    boxes: np.ndarray, confidences: np.ndarray, classes: np.ndarray, names: Sequence[str]
) -> Detections:
    """Return the detections of an image, without boxes that have no area in it."""
    visible = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    labels = [names[c] if c < len(names) else str(c) for c in classes[visible].tolist()]
    return Detections(boxes[visible], confidences[visible], labels)


def equal_shapes(shapes: Sequence[Hashable], batch_size: int) -> Iterator[list[int]]:
    """Yield groups of at most `batch_size` indices whose shapes are equal."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, shape in enumerate(shapes):
        groups[shape].append(index)
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]
