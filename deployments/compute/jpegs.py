"""Small JPEGs of photos: of a limited side, and of a limited size on disk."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image

from deployments.compute.crops import resize


def small_jpeg(
    pixels: np.ndarray,
    side: int,
    max_bytes: int,
    qualities: Sequence[int],
    mode: Literal["RGB", "L"] = "RGB",
) -> bytes:
    """Make a small JPEG of a photo.

    The first quality that fits is used. If none fits, the JPEG becomes smaller.

    Args:
        pixels: uint8 `[height, width, 3]`, RGB, upright.
        side: its longest side at most, pixels; a smaller photo isn't enlarged.
        max_bytes: its size at most, bytes.
        qualities: as Pillow counts them, best first.
        mode: `L` for grey.

    Returns:
        A JPEG, upright, at least 1 pixel wide and high, without EXIF data.
    """
    side = min(side, max(pixels.shape[:2]))
    while True:
        picture = Image.fromarray(scale_down(pixels, side))
        if picture.mode != mode:
            picture = picture.convert(mode)
        for quality in qualities:
            encoded = io.BytesIO()
            picture.save(encoded, "JPEG", quality=quality)
            if encoded.tell() <= max_bytes:
                return encoded.getvalue()
        side = side * 3 // 4


def scale_down(pixels: np.ndarray, side: int) -> np.ndarray:
    """Scale a photo so that its longest side has so many pixels; return a smaller one as it is.

    The interpolation is antialiased bicubic.
    """
    height, width = pixels.shape[:2]
    longest = max(height, width)
    if longest <= side:
        return pixels
    size = max(1, round(height * side / longest)), max(1, round(width * side / longest))
    return resize(torch.from_numpy(pixels), size, "bicubic").numpy()
