"""How many bytes it takes to decode an image, at most."""

from __future__ import annotations

from typing import Final

from deployments.decoding.containers.found import Found
from deployments.decoding.formats import (
    AVIF,
    BMP,
    HEIC,
    JPEG,
    JPEG2000,
    JXL,
    RAW,
    TIFF,
    WEBP,
    Format,
)

# Bytes a pixel that Pillow keeps, by mode; any other mode takes four.
KEPT: Final = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
RESULT: Final = 3  # bytes a pixel of the result, which is made when the decoder has ended

# Bytes a pixel that a decoder takes besides, while it decodes. What was measured, as bytes a pixel
# of all (peak of the address space of a process, 24 megapixels, without the file):
#   JPEG     grey 4.1, RGB 7.1, CMYK 7.2; progressive: RGB 10.1, CMYK 12.1
#   PNG      1 bit and palette 4.2, grey 4.1, 16 bits 5.1, RGB 7.1, RGBA 7.2
#   WebP     16.1 with and without alpha, still or animated: two canvases, a frame, and the picture
#   AVIF     4:2:0 9.5, with alpha 11.8; 4:4:4 11.0; ten bits would take 6 more
#   GIF, BMP palette 4.2; RGB 7.1
#   TIFF     grey 4.1, 16 bits 5.2, RGB, CMYK and float 7.1 to 7.3
#   JPEG2000 grey 6.4, 16 bits 9.2, RGB 20.0, RGBA 25.7; in tiles less
#   HEIC     8.6 resident, JPEG XL 9.5; 28 and 23 of address space at 6 megapixels, as their
#            threads take arenas of 64 MiB each
TAKEN: Final = {WEBP: 13.0, AVIF: 17.0, BMP: 3.0, HEIC: 16.0, JXL: 28.0}
# What a decoder keeps of each sample: coefficients of JPEG, whole numbers of JPEG 2000, the tile or
# strip of TIFF.
BY_SAMPLES: Final = {JPEG, RAW, JPEG2000, TIFF}
# A decoder may hold the file twice: as it came, and without what is not pixels.
COPIES: Final = {WEBP: 3}
FIXED: Final = 24 * 2**20  # strips that are converted, profiles, samples of values


def cost(format: Format, mode: str, deep: bool, found: Found) -> int:
    """Return the most bytes that decoding takes, the result included, by format and mode.

    Args:
        mode: Pillow's, of the picture that it keeps.
        deep: it has colours of 16 bits, which may be kept twice.
    """
    taken = found.samples if format in BY_SAMPLES else TAKEN.get(format, 0.0)
    pixels = found.width * found.height
    kept = KEPT.get(mode, 4) * pixels * (2 if deep else 1)
    work = max(taken * max(pixels, found.allocated), RESULT * pixels)
    return int(kept + work + FIXED + COPIES.get(format, 1) * len(found.data))
