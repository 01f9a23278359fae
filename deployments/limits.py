"""What is refused before it is decoded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Attributes:
    max_bytes: size of the encoded image.
    max_pixels: width times height. A decoded image takes three bytes a pixel.
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 64_000_000
