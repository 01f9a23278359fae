"""Thumbnails of photos, for pages that show many of them."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from deployments.compute.images import resize
from deployments.limits import THUMBNAIL_BYTES, THUMBNAIL_SIDE

# The first quality that fits is used. If none fits, the thumbnail becomes smaller: by the SSIM of
# detailed photos, that does no more harm than a lower quality.
QUALITIES = (75, 60, 45, 35)


def make_thumbnail(pixels: np.ndarray) -> bytes:
    """Make the thumbnail of a photo.

    Args:
        pixels: uint8 `[height, width, 3]`, RGB, upright.

    Returns:
        A JPEG of at most `THUMBNAIL_BYTES`, upright, at least 1 pixel wide and high. Its longest
        side is at most `THUMBNAIL_SIDE`; a smaller photo isn't enlarged. It has no EXIF data.
    """
    side = min(THUMBNAIL_SIDE, max(pixels.shape[:2]))
    while True:
        thumbnail = Image.fromarray(_scaled(pixels, side))
        for quality in QUALITIES:
            encoded = io.BytesIO()
            thumbnail.save(encoded, "JPEG", quality=quality)
            if encoded.tell() <= THUMBNAIL_BYTES:
                return encoded.getvalue()
        side = side * 3 // 4


def _scaled(pixels: np.ndarray, side: int) -> np.ndarray:
    """Scale an image down so that its longest side has this many pixels."""
    height, width = pixels.shape[:2]
    longest = max(height, width)
    if longest == side:
        return pixels
    size = max(1, round(height * side / longest)), max(1, round(width * side / longest))
    return resize(torch.from_numpy(pixels), size, "bicubic").numpy()
