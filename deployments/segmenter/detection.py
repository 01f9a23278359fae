"""What a detector is, and what it finds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class Detections:
    """What was found in one image.

    Attributes:
        boxes: float32 `[n, 4]`, x1, y1, x2, y2 in pixels of the image, inside it.
        confidences: float32 `[n]`, 0 to 1, most confident first.
        labels: the class name of each.
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
            images: uint8 `[height, width, 3]`, RGB, upright; of any sizes, on any devices.
            thresholds: for each image, what a detection's confidence must exceed.

        Returns:
            One `Detections` for each image, in order; none depends on the other images.
        """


def visible_detections(
    boxes: np.ndarray, confidences: np.ndarray, classes: np.ndarray, names: list[str]
) -> Detections:
    """Return the detections of an image, without the boxes that lie outside of it."""
    visible = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    labels = [names[c] if c < len(names) else str(c) for c in classes[visible].tolist()]
    return Detections(boxes[visible], confidences[visible], labels)


def equal_shapes(shapes: Sequence[Hashable], batch_size: int) -> Iterator[list[int]]:
    """Yield the indices of equal shapes together, at most `batch_size` at a time."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, shape in enumerate(shapes):
        groups[shape].append(index)
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]
