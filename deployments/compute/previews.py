"""Previews of photos, which a verifier compares with the query instead of the originals."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from deployments.compute.jpegs import scale_down, small_jpeg
from deployments.limits import PREVIEW_BYTES, PREVIEW_SIDE

# Local features hardly suffer from a low quality, but they do from fewer pixels.
QUALITIES = (60, 45, 30, 20)


def make_preview(pixels: np.ndarray) -> bytes:
    """Make the preview of a photo.

    Args:
        pixels: uint8 `[height, width, 3]`, RGB, upright; the photo, or what
            `scale_down(photo, PREVIEW_SIDE)` makes of it, which gives the same preview.

    Returns:
        A grey JPEG of at most `PREVIEW_BYTES`, upright, at least 1 pixel wide and high. Its longest
        side is at most `PREVIEW_SIDE`; a smaller photo isn't enlarged.
    """
    pixels = scale_down(pixels, PREVIEW_SIDE)
    return small_jpeg(pixels, PREVIEW_SIDE, PREVIEW_BYTES, QUALITIES, "L")


def open_preview(data: bytes) -> np.ndarray:
    """Decode a preview: uint8 `[height, width]`, grey."""
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        return np.asarray(image)
