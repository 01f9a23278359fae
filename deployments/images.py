"""Image bytes to pixels, and pixels to crops: the only code that reads untrusted pictures."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn import functional

from deployments.errors import BrokenImage, NotAnImage, TooLarge
from deployments.records import ImageLimits

# Everything Pillow decodes by itself. EPS would run Ghostscript on the bytes, WMF needs Windows,
# and the others are stubs that need a foreign handler.
Image.init()
FORMATS = sorted(set(Image.OPEN) - {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})

# Shown for transparent pixels, as every browser's page does.
BACKGROUND = (255, 255, 255)


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """Attributes:
    pixels: uint8 `[height, width, 3]`, RGB, upright.
    media_type: what the bytes are, e.g. `image/png`.
    animated: there are more frames than the one decoded.
    """

    pixels: np.ndarray
    media_type: str
    animated: bool


def decode(data: bytes, limits: ImageLimits) -> DecodedImage:
    """Decode the first frame of any image Pillow reads to upright RGB.

    Transparency is laid over white; 16-bit and floating-point images are scaled to 8 bits.

    Raises:
        TooLarge: more bytes or pixels than the limits, known before any pixel is decoded.
        NotAnImage: no known image format.
        BrokenImage: a known format, but the bytes end early or make no sense.
    """
    if not data:
        raise BrokenImage("There are no bytes: send the contents of an image file.")
    if len(data) > limits.max_bytes:
        raise TooLarge(
            f"The image has {len(data):,} bytes; at most {limits.max_bytes:,} are accepted."
        )
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise TooLarge(f"The image has too many pixels ({error}).") from None
    except Image.UnidentifiedImageError:
        raise NotAnImage(
            "These bytes are no image format we read: send JPEG, PNG, WebP, AVIF, GIF, TIFF, BMP, "
            "or another that Pillow decodes."
        ) from None
    except Exception as error:  # a decoder fed with hostile bytes may raise anything
        raise BrokenImage(f"The image can't be read: {_reason(error)}.") from None

    with image:
        if image.width * image.height > limits.max_pixels:
            raise TooLarge(
                f"The image has {image.width:,} x {image.height:,} = "
                f"{image.width * image.height:,} pixels; at most {limits.max_pixels:,} are "
                "accepted. Scale it down."
            )
        if image.width == 0 or image.height == 0:
            raise BrokenImage(f"The image has a size of {image.width} x {image.height} pixels.")
        media_type = image.get_format_mimetype() or f"image/x-{image.format.lower()}"
        animated = bool(getattr(image, "is_animated", False))
        try:
            pixels = np.array(_to_rgb(ImageOps.exif_transpose(image)))
        except Exception as error:
            raise BrokenImage(f"The image can't be decoded: {_reason(error)}.") from None
    return DecodedImage(pixels, media_type, animated)


def _reason(error: Exception) -> str:
    return str(error).strip().rstrip(".") or type(error).__name__


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        opaque = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        return Image.alpha_composite(opaque, image).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Scale grey values of more than 8 bits to uint8; Pillow's own conversion would clip them."""
    if values.dtype.kind in "iu" and values.min() >= 0 and values.max() <= 65535:
        return (values // 257).astype(np.uint8)
    values = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
    low, high = values.min(), values.max()
    return ((values - low) * (255 / (high - low if high > low else 1))).astype(np.uint8)


def scale_crop(
    pixels: torch.Tensor,
    box: tuple[float, float, float, float],
    size: int,
    squash: bool = False,
) -> torch.Tensor:
    """Cut a box out of an image and scale it to the encoder's input, in one step.

    The interpolation is antialiased bicubic. Photos and queries are seen the same way, the way
    that the encoder was trained with: by CLIP's own geometry the shortest side is scaled to
    `size` and the centre square is taken, so an oblong box loses its ends.

    Args:
        pixels: uint8 `[height, width, 3]`, on any device.
        box: x1, y1, x2, y2 in pixels; rounded outwards, clipped to the image, at least 1 x 1.
        size: side of the square, pixels.
        squash: scale all of the box to the square instead, whatever its shape.

    Returns:
        uint8 `[size, size, 3]` on the same device.
    """
    x1, y1, x2, y2 = outer_box(box, pixels.shape[1], pixels.shape[0])
    # CLIP's geometry shows only the middle of a very long strip: without this cut a 20000 x 1
    # pixel box would be scaled to 20000 * size pixels before the centre is taken.
    width, height = x2 - x1, y2 - y1
    longest = max(width, height) if squash else MAX_ASPECT * min(width, height)
    if width > longest:
        x1 += (width - longest) // 2
        x2 = x1 + longest
    if height > longest:
        y1 += (height - longest) // 2
        y2 = y1 + longest
    crop = pixels[y1:y2, x1:x2]
    height, width = crop.shape[:2]
    if (height, width) == (size, size):
        return crop
    if squash:
        scaled = (size, size)
    elif width <= height:
        scaled = (max(size, size * height // width), size)
    else:
        scaled = (size, max(size, size * width // height))
    resized = resize(crop, scaled, "bicubic")
    top, left = (scaled[0] - size) // 2, (scaled[1] - size) // 2
    return resized[top : top + size, left : left + size]


MAX_ASPECT = 8


# How bright red, green and blue are to the eye (ITU-R BT.601), as in Pillow's grey.
GREY = np.array([0.299, 0.587, 0.114], np.float32)


def contrast(pixels: np.ndarray) -> float:
    """Return the standard deviation of the grey values of uint8 `[h, w, 3]`: 0 to 127.5."""
    return float((pixels.astype(np.float32) @ GREY).std())


def resize(pixels: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    """Scale uint8 `[h, w, 3]` to `[*size, 3]`, antialiased, as Pillow does.

    Args:
        mode: `bilinear` or `bicubic`.
    """
    planes = pixels.permute(2, 0, 1).unsqueeze(0)
    if planes.is_cuda:  # no uint8 kernel there
        planes = functional.interpolate(planes.float(), size, mode=mode, antialias=True)
        planes = planes.round_().clamp_(0, 255).to(torch.uint8)
    else:
        planes = functional.interpolate(planes, size, mode=mode, antialias=True)
    return planes[0].permute(1, 2, 0)


def outer_box(
    box: tuple[float, float, float, float], width: int, height: int
) -> tuple[int, int, int, int]:
    """Round a box outwards to whole pixels inside an image, at least 1 pixel wide and high."""
    x1 = min(max(math.floor(box[0]), 0), width - 1)
    y1 = min(max(math.floor(box[1]), 0), height - 1)
    x2 = max(min(math.ceil(box[2]), width), x1 + 1)
    y2 = max(min(math.ceil(box[3]), height), y1 + 1)
    return x1, y1, x2, y2
