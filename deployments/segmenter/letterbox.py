"""The canvases that YOLOv5 sees: each has a scaled image in the centre of a grey area."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from deployments.compute.crops import resize

PADDING_GREY = 114  # the networks were trained with it


@dataclass(frozen=True, slots=True)
class Letterbox:
    """The place of a scaled image in the centre of a grey canvas.

    Attributes:
        image: height and width of the image, pixels.
        scaled: height and width of the scaled image.
        canvas: height and width of the canvas.
    """

    image: tuple[int, int]
    scaled: tuple[int, int]
    canvas: tuple[int, int]

    @property
    def top(self) -> int:
        return (self.canvas[0] - self.scaled[0]) // 2

    @property
    def left(self) -> int:
        return (self.canvas[1] - self.scaled[1]) // 2

    def boxes_on_image(self, boxes: np.ndarray) -> np.ndarray:
        """Map boxes from the canvas to the image, and clip them to it.

        Args:
            boxes: float32 `[n, 4]`, x1, y1, x2, y2 in pixels of the canvas.

        Returns:
            float32 `[n, 4]` in pixels of the image.
        """
        height, width = self.image
        # The two scales differ a little, because the scaled size is rounded to whole pixels.
        scale = np.array([width / self.scaled[1], height / self.scaled[0]] * 2, np.float32)
        offset = np.array([self.left, self.top] * 2, np.float32)
        return ((boxes - offset) * scale).clip(0, np.array([width, height] * 2, np.float32))


def letterbox(height: int, width: int, image_size: int, stride: int) -> Letterbox:
    """Scale the longer side to `image_size`; pad both sides to the next multiple of `stride`.

    The canvas depends on this image alone, so its detections don't depend on other images.
    """
    scale = image_size / max(height, width)
    scaled = (max(1, round(height * scale)), max(1, round(width * scale)))
    canvas_height, canvas_width = (math.ceil(side / stride) * stride for side in scaled)
    return Letterbox((height, width), scaled, (canvas_height, canvas_width))


def square_letterbox(height: int, width: int, image_size: int, stride: int = 1) -> Letterbox:
    """Scale the longer side to `image_size`; pad to the square that is the same for all images."""
    fitted = letterbox(height, width, image_size, stride)
    side = max(fitted.canvas)
    return Letterbox(fitted.image, fitted.scaled, (side, side))


def lay_on_canvases(
    images: Sequence[torch.Tensor], places: Sequence[Letterbox], device: torch.device
) -> torch.Tensor:
    """Scale images and lay each on its canvas.

    Args:
        images: uint8 `[height, width, 3]`, of any sizes, on any devices.
        places: the place of each image; all canvases have the same size.

    Returns:
        uint8 `[n, *canvas, 3]` on the device.
    """
    size = (len(images), *places[0].canvas, 3)
    canvases = torch.full(size, PADDING_GREY, dtype=torch.uint8, device=device)
    for canvas, image, place in zip(canvases, images, places, strict=True):
        height, width = place.scaled
        scaled = image if place.scaled == place.image else resize(image, place.scaled, "bilinear")
        canvas[place.top : place.top + height, place.left : place.left + width] = scaled
    return canvases
