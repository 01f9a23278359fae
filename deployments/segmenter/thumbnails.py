"""Thumbnails of photos, for pages that show many of them."""

from __future__ import annotations

import numpy as np

from deployments.compute.jpegs import scale_down, small_jpeg
from deployments.limits import PREVIEW_SIDE, THUMBNAIL_BYTES, THUMBNAIL_SIDE

# If none fits, the thumbnail becomes smaller: by the SSIM of detailed photos, that does no more
# harm than a lower quality.
QUALITIES = (75, 60, 45, 35)


def make_thumbnail(pixels: np.ndarray) -> bytes:
    """Make the thumbnail of a photo.

    A large photo is scaled in two steps. The first is also that of its preview, and takes most of
    the time.

    Args:
        pixels: uint8 `[height, width, 3]`, RGB, upright; the photo, or what
            `scale_down(photo, PREVIEW_SIDE)` makes of it, which gives the same thumbnail.

    Returns:
        A JPEG of at most `THUMBNAIL_BYTES`, upright, at least 1 pixel wide and high. Its longest
        side is at most `THUMBNAIL_SIDE`; a smaller photo isn't enlarged. It has no EXIF data.
    """
    pixels = scale_down(pixels, PREVIEW_SIDE)
    return small_jpeg(pixels, THUMBNAIL_SIDE, THUMBNAIL_BYTES, QUALITIES)
