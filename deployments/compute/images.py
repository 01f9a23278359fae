"""Decode images, and scale crops. Only this module decodes untrusted images."""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch.nn import functional

from deployments.boxes import outer_box
from deployments.compute.resample import scale_windows
from deployments.errors import BrokenImage, NotAnImage, TooLarge
from deployments.limits import ImageLimits

# All formats that Pillow decodes itself. EPS would run Ghostscript on the bytes, WMF needs Windows,
# and the others are stubs that need a handler from elsewhere.
Image.init()
FORMATS = sorted(set(Image.OPEN) - {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})

# Types of devices on which many crops are scaled together, as matrix products. On a CPU that takes
# 16 times as long as one crop at a time, because most numbers of the matrices are 0.
MATRICES_ON = frozenset({"cuda"})
# The CPU scales crops that shrink by more than this, one at a time: their matrices would be large.
MAX_REDUCTION = 64
MAX_ASPECT = 8

# The colour behind transparent pixels, as on a page in a browser.
BACKGROUND = (255, 255, 255)


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """Attributes:
    pixels: uint8 `[height, width, 3]`, RGB, upright.
    media_type: what the bytes are, e.g. `image/png`.
    animated: whether there are more frames than the decoded one.
    """

    pixels: np.ndarray
    media_type: str
    animated: bool


def decode(data: bytes, limits: ImageLimits) -> DecodedImage:
    """Decode the first frame of an image, in any format that Pillow reads, to upright RGB.

    Transparency is laid over white; 16-bit and floating-point images are scaled to 8 bits.

    Raises:
        TooLarge: it exceeds the limits; this is checked before any pixel is decoded.
        NotAnImage: the format is unknown.
        BrokenImage: the format is known, but the bytes are incomplete or invalid.
    """
    if not data:
        raise BrokenImage("The image has no bytes: send the contents of an image file.")
    if len(data) > limits.max_bytes:
        raise TooLarge(
            f"The image has {len(data):,} bytes; at most {limits.max_bytes:,} are accepted. Scale "
            "it down."
        )
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise TooLarge(f"The image has too many pixels ({error}). Scale it down.") from None
    except Image.UnidentifiedImageError:
        raise NotAnImage(
            "These bytes are not in an image format we read: send JPEG, PNG, WebP, AVIF, GIF, "
            "TIFF, BMP, or another format that Pillow decodes."
        ) from None
    except Exception as error:  # with hostile bytes, a decoder may raise anything
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
        media_type = image.get_format_mimetype() or f"image/x-{str(image.format).lower()}"
        animated = bool(getattr(image, "is_animated", False))
        try:
            pixels = np.array(_to_rgb(_upright(image)))
        except Exception as error:
            raise BrokenImage(f"The image can't be decoded: {_reason(error)}.") from None
    return DecodedImage(pixels, media_type, animated)


def _reason(error: Exception) -> str:
    return str(error).strip().rstrip(".") or type(error).__name__


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # in a PNG, the orientation may follow the pixels
    # Without this check, Pillow would copy images that are upright already.
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    return ImageOps.exif_transpose(image) if turned else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        opaque = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        return Image.alpha_composite(opaque, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Scale grey values of more than 8 bits to uint8, which Pillow's own conversion would clip."""
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
    """Cut one box out of an image and scale it; see `scale_crops`.

    Args:
        pixels: uint8 `[height, width, 3]`, on any device.
        box: x1, y1, x2, y2 in pixels; rounded outwards, clipped to the image, at least 1 x 1.

    Returns:
        uint8 `[size, size, 3]` on the same device.
    """
    x1, y1, x2, y2 = outer_box(box, pixels.shape[1], pixels.shape[0])
    if x2 - x1 == y2 - y1 == size:
        return pixels[y1:y2, x1:x2]
    return scale_crops([pixels], [np.array([[x1, y1, x2, y2]])], size, squash)[0][0]


def scale_crops(
    images: Sequence[torch.Tensor],
    boxes: Sequence[np.ndarray],
    size: int,
    squash: bool = False,
    *,
    together_on: Collection[str] = MATRICES_ON,
) -> list[torch.Tensor]:
    """Cut boxes out of images and scale them to the encoder's input, in one step.

    The interpolation is antialiased bicubic. Photos and queries are scaled in the same way, as in
    the training of the encoder. In CLIP's geometry the shortest side becomes `size`, and the centre
    square is cut out, so an oblong box loses its ends.

    A CPU scales one box at a time, a GPU all of them as matrix products. Between the two, 5 of 100
    values differ by 1 grey level, and 1 of 10,000 by 2.

    Args:
        images: uint8 `[height, width, 3]`, on any devices.
        boxes: for each image, integers `[n, 4]`: x1, y1, x2, y2, inside it; see `outer_box`.
        size: side of the square, pixels.
        squash: scale the whole box to the square instead, whatever its shape.
        together_on: types of devices on which crops are scaled together.

    Returns:
        For each image uint8 `[n, size, size, 3]`, on its device.
    """
    windows = [_windows(of_image, size, squash) for of_image in boxes]
    together = [
        i
        for i, image in enumerate(images)
        if image.device.type in together_on
        and (windows[i][:, 1] <= MAX_REDUCTION * windows[i][:, 2]).all()
    ]
    crops: dict[int, torch.Tensor] = {}
    if together:
        scaled = scale_windows([images[i] for i in together], [windows[i] for i in together], size)
        crops.update(zip(together, scaled, strict=True))
    for i in set(range(len(images))) - set(together):
        pixels = images[i].cpu()
        scaled = [_scale_window(pixels, window, size) for window in windows[i].tolist()]
        crops[i] = torch.stack(scaled).to(images[i].device)
    return [crops[i] for i in range(len(images))]


def _windows(boxes: np.ndarray, size: int, squash: bool) -> np.ndarray:
    """Return the window of each box that is scaled: int64 `[n, 3, 2]`, pixels.

    For x and y it has the start, the length, and the scaled length, whose middle `size` pixels are
    the crop.
    """
    start, length = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    scaled = np.full_like(length, size)
    if not squash:
        # CLIP's geometry shows only the middle of a very long strip. Without this limit, a box of
        # 20000 x 1 pixels would be scaled to 20000 * size pixels before its centre is cut out.
        shortest = length.min(1, keepdims=True)
        shown = np.minimum(length, MAX_ASPECT * shortest)
        start, length = start + (length - shown) // 2, shown
        scaled = size * length // shortest
    return np.stack((start, length, scaled), 1)


def _scale_window(pixels: torch.Tensor, window: list[list[int]], size: int) -> torch.Tensor:
    (x, y), (width, height), (scaled_width, scaled_height) = window
    crop = pixels[y : y + height, x : x + width]
    resized = resize(crop, (scaled_height, scaled_width), "bicubic")
    top, left = (scaled_height - size) // 2, (scaled_width - size) // 2
    return resized[top : top + size, left : left + size]


def resize(pixels: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    """Scale uint8 `[h, w, 3]` to `[*size, 3]`, antialiased, as Pillow does.

    If an image shrinks by more than `MAX_REDUCTION`, only every n-th row or column is used. With
    all pixels, a strip of 64 million takes 1.6 s and 0.9 GB instead of 6 ms, and torch's kernel for
    GPUs refuses it.

    Args:
        mode: `bilinear` or `bicubic`.
    """
    steps = [
        max(1, math.ceil(side / (MAX_REDUCTION * new)))
        for side, new in zip(pixels.shape, size, strict=False)
    ]
    pixels = pixels[:: steps[0], :: steps[1]]
    planes = pixels.permute(2, 0, 1).unsqueeze(0)
    if pixels.is_cuda:  # there is no uint8 kernel for GPUs
        planes = functional.interpolate(planes.float(), size, mode=mode, antialias=True)
        planes = planes.round_().clamp_(0, 255).to(torch.uint8)
    else:
        planes = functional.interpolate(planes, size, mode=mode, antialias=True)
    return planes[0].permute(1, 2, 0)
