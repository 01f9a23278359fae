"""How large images may be that are decoded, and how large thumbnails and previews are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What is refused, before an image is decoded or while it is.

    Attributes:
        max_bytes: largest size of an encoded image, bytes.
        max_pixels: largest width times height. A decoded image takes three bytes a pixel.
        decoding_bytes: memory that all images that are decoded at the same time may take, bytes. An
            image that takes more is decoded alone.
        seconds_per_megapixel: CPU time that decoding may take, beside one second.
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 64_000_000
    decoding_bytes: int = 2**30
    seconds_per_megapixel: float = 0.1


THUMBNAIL_SIDE = 320  # longest side, pixels
THUMBNAIL_BYTES = 20_000
# A photo of COCO128 takes 0.3 ms and 15 kB. WebP of the same quality (SSIM 0.92) is 30 % smaller,
# but takes 12 times as long to encode.
THUMBNAIL_TYPE = "image/jpeg"

PREVIEW_SIDE = 640  # longest side, pixels
PREVIEW_BYTES = 60_000
SKETCH_SIDE = 384  # longest side of a query as the verifier sees it, pixels
