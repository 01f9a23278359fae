"""Decode images. Only this module decodes untrusted images."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps

from deployments.decoding.facts import MAX_EXIF_BYTES, read_facts
from deployments.errors import BrokenImage, NotAnImage, TooLarge
from deployments.limits import ImageLimits

# All formats that Pillow decodes itself. EPS would run Ghostscript on the bytes, WMF needs Windows,
# and the others are stubs that need a handler from elsewhere.
Image.init()
FORMATS = sorted(set(Image.OPEN) - {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})

BYTES_PER_PIXEL = 24  # that decoding takes at most, with all copies

# The colour behind transparent pixels, as on a page in a browser.
BACKGROUND = (255, 255, 255)


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """Attributes:
    pixels: uint8 `[height, width, 3]`, RGB, upright.
    media_type: what the bytes are, e.g. `image/png`.
    animated: it is the first frame of an animation.
    skipped: how many other pictures the file holds: frames, pages, previews.
    facts: what the photo says of itself, see `facts.read_facts`.
    """

    pixels: np.ndarray
    media_type: str
    animated: bool
    skipped: int = 0
    facts: dict[str, str | float] = field(default_factory=dict)


def decode(data: bytes, limits: ImageLimits) -> DecodedImage:
    """Decode the first frame of an image, in any format that Pillow reads, to upright RGB.

    Transparency is laid over white; 16-bit and floating-point images are scaled to 8 bits.

    Raises:
        TooLarge: it exceeds the limits; this is checked before any pixel is decoded.
        NotAnImage: the format is unknown.
        BrokenImage: the format is known, but the bytes are incomplete or invalid.
        MemoryError: there is too little memory.
    """
    return open_image(data, limits).read()


@dataclass(frozen=True, slots=True)
class Opened:
    """An image of which only the header has been read.

    Attributes:
        declared: its pixels.
        cost: memory that decoding takes at most, bytes.
        seconds: CPU time that decoding may take.
    """

    image: ImageFile.ImageFile
    declared: int
    cost: int
    seconds: float

    def read(self) -> DecodedImage:
        """Decode the pixels; see `decode`."""
        image = self.image
        media_type = image.get_format_mimetype() or f"image/x-{str(image.format).lower()}"
        animated = bool(getattr(image, "is_animated", False))
        try:
            pixels = np.array(_to_rgb(_upright(image)))
        except MemoryError:
            raise
        except Exception as error:
            raise BrokenImage(f"The image can't be decoded: {_reason(error)}.") from None
        return DecodedImage(pixels, media_type, animated, facts=_facts(image))


def open_image(data: bytes, limits: ImageLimits) -> Opened:
    """Read the header of an image; see `decode`."""
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
    except MemoryError:
        raise
    except Exception as error:  # with hostile bytes, a decoder may raise anything
        raise BrokenImage(f"The image can't be read: {_reason(error)}.") from None

    declared = image.width * image.height
    if declared > limits.max_pixels:
        raise TooLarge(
            f"The image has {image.width:,} x {image.height:,} = {declared:,} pixels; at most "
            f"{limits.max_pixels:,} are accepted. Scale it down."
        )
    if declared == 0:
        raise BrokenImage(f"The image has a size of {image.width} x {image.height} pixels.")
    seconds = 1 + limits.seconds_per_megapixel * declared / 1e6
    return Opened(image, declared, BYTES_PER_PIXEL * declared, seconds)


def _reason(error: Exception) -> str:
    return str(error).strip().rstrip(".") or type(error).__name__


def _facts(image: Image.Image) -> dict[str, str | float]:
    """Return what the photo says of itself; nothing if that can't be read."""
    try:
        if len(image.info.get("exif", b"")) > MAX_EXIF_BYTES:
            return {}
        return read_facts(image.getexif())
    except Exception:  # nothing in metadata is a reason to refuse pixels
        return {}


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
