"""Decode images. Only this room reads untrusted images."""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageFile

from deployments.decoding.containers import directories, heif, jpeg
from deployments.decoding.containers.found import Found
from deployments.decoding.costs import cost
from deployments.decoding.deep_colours import (
    combine,
    has_deep_colours,
    is_nearly_black,
    keep_lower_bytes,
)
from deployments.decoding.facts import MAX_EXIF_BYTES, read_facts
from deployments.decoding.formats import (
    AVIF,
    HEIC,
    JPEG,
    JXL,
    RAW,
    TIFF,
    WEBP,
    Format,
    recognise,
)
from deployments.decoding.pixels import Allocate, new_array, upright_rgb
from deployments.errors import BrokenImage, InsetError, TooLarge
from deployments.limits import ImageLimits

# Sizes are checked here, by the limits that are set, before and after a plugin has seen the file.
Image.MAX_IMAGE_PIXELS = None

# Formats of which the decoder says the size, as it takes several pictures together.
SIZED_BY_DECODER = (AVIF, HEIC, JXL)

# Bytes that a decoder takes for pixels, if it lacks any. Two kinds: one may be what comes anyway.
MADE_UP = (bytes(range(1, 101)), bytes(range(250, 100, -3)))


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """Attributes:
    pixels: uint8 `[height, width, 3]`, sRGB, upright.
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


@dataclass(slots=True)
class Opened:
    """An image of which the header is read, and no pixel.

    Attributes:
        found: what is in its container.
        image: as its decoder sees it; None as long as the decoder hasn't seen it.
        pixels_declared: width times height.
        cost: the most bytes that `read` allocates, the result included.
    """

    format: Format
    found: Found
    image: ImageFile.ImageFile | None
    pixels_declared: int
    cost: int

    def read(self, allocate: Allocate = new_array) -> DecodedImage:
        """Decode the pixels, once.

        Args:
            allocate: gives room for them, by their shape, e.g. in shared memory.

        Raises:
            TooLarge: they need more memory than there is.
            BrokenImage: the bytes are incomplete or invalid.
        """
        found, size = self.found, (self.found.width, self.found.height)
        try:
            with self.image or _show(self.format, found) as image:
                if self.format in (JPEG, RAW) and not found.ended:
                    image = _without_end(found.data)
                deep = has_deep_colours(image)
                image.load()
                if deep and is_nearly_black(image):
                    with _show(self.format, found) as lower:
                        keep_lower_bytes(lower)
                        lower.load()
                        combine(image, lower)
                exif = found.exif or _bytes(image.info.get("exif"))
                profile = found.profile or _bytes(image.info.get("icc_profile"))
                pixels = upright_rgb(image, profile, self._orientation(exif), allocate)
        except InsetError:
            raise
        except Exception as error:  # with hostile bytes, a decoder may raise anything
            raise _reading_failed(error, "can't be decoded", size) from None
        media_type = found.media_type or self.format.media_type
        return DecodedImage(pixels, media_type, found.animated, found.skipped, _facts(exif))

    def _orientation(self, exif: bytes) -> int:
        if self.format in (HEIC, JXL):
            return 1  # their decoders turn them
        if self.format is RAW or self.format is TIFF:
            return self.found.orientation or directories.orientation(self.found.exif) or 1
        exif = exif.removeprefix(b"Exif\0\0") if self.format is AVIF else self.found.exif
        return directories.orientation(exif) or self.found.orientation or 1


def decode(data: bytes, limits: ImageLimits) -> DecodedImage:
    """Decode the photo in a file, whatever lies around it, to upright sRGB.

    Of several pictures it is the largest, of an animation the first frame. Metadata is never a
    reason to refuse pixels. Transparent pictures are laid over white, or over a dark ground if they
    are bright themselves (see `pixels`). Values of more than 8 bits are scaled by what is there
    (see `depth`).

    Raises:
        TooLarge: it exceeds the limits, or memory; sizes are checked before any pixel is decoded.
        NotAnImage: the format is not one that is read.
        BrokenImage: the format is known, but the bytes are incomplete or invalid.
    """
    return open_image(data, limits).read()


def open_image(data: bytes, limits: ImageLimits) -> Opened:
    """Read the header of an image.

    Raises:
        as `decode`.
    """
    check_bytes(data, limits)
    format = recognise(data)
    format.decoder()  # or say at once that it is not installed
    try:
        found = format.find(data)
    except InsetError:
        raise
    except Exception as error:  # no walk may fail in a way of its own
        raise _reading_failed(error, "can't be read") from None
    _check(found.width, found.height, found.allocated, limits)
    # WebP's decoder allocates the canvas as soon as it sees the file: that belongs to reading.
    image = None if format is WEBP else _show(format, found)
    if format in SIZED_BY_DECODER:
        _check(found.width, found.height, found.allocated, limits)
    pixels = found.width * found.height
    mode, deep = ("RGBA", False) if image is None else (image.mode, has_deep_colours(image))
    return Opened(format, found, image, pixels, cost(format, mode, deep, found))


def check_bytes(data: bytes, limits: ImageLimits) -> None:
    """Check how many bytes there are, before anything looks at them.

    Raises:
        TooLarge, BrokenImage
    """
    if not data:
        raise BrokenImage("The image has no bytes: send the contents of an image file.")
    if len(data) > limits.max_bytes:
        raise TooLarge(
            f"The image has {len(data):,} bytes; at most {limits.max_bytes:,} are accepted. Scale "
            "it down."
        )


def _show(format: Format, found: Found) -> ImageFile.ImageFile:
    """Show a picture to its decoder, which reads the header.

    Raises:
        TooLarge, BrokenImage
    """
    decoder = format.decoder()
    try:
        try:
            image = decoder(io.BytesIO(found.data))
        except Exception:
            if format not in (AVIF, HEIC):
                raise
            # These decoders read metadata as they open a file, and may stumble over it.
            image = decoder(io.BytesIO(heif.without_metadata(found.data)))
    except Exception as error:  # with hostile bytes, a decoder may raise anything
        raise _reading_failed(error, "can't be read") from None
    if format in SIZED_BY_DECODER:
        found.width, found.height = image.size
        found.skipped = getattr(image, "n_frames", 1) - 1
        found.animated = format is not HEIC and bool(getattr(image, "is_animated", False))
    elif image.size != (found.width, found.height):
        raise BrokenImage(
            f"The image can't be read: it says {found.width:,} x {found.height:,} pixels in one "
            f"place and {image.width:,} x {image.height:,} in another."
        )
    return image


def _facts(block: bytes) -> dict[str, str | float]:
    """Return what an EXIF block says of the photo; nothing if it can't be read."""
    if len(block) > MAX_EXIF_BYTES:
        return {}
    exif = Image.Exif()
    try:
        exif.load(block)
        return read_facts(exif)
    except Exception:  # no metadata is a reason to refuse pixels
        return {}


def _check(width: int, height: int, allocated: int, limits: ImageLimits) -> None:
    """Check the sizes that a file declares."""
    if width * height > limits.max_pixels:
        raise TooLarge(
            f"The image has {width:,} x {height:,} = {width * height:,} pixels; at most "
            f"{limits.max_pixels:,} are accepted. Scale it down."
        )
    if width < 1 or height < 1:
        raise BrokenImage(f"The image has a size of {width} x {height} pixels.")
    # Blocks and tiles stick out over the edges. What is twice the picture is more than that.
    if allocated > max(2 * width * height, limits.max_pixels, 2**20):
        raise TooLarge(
            f"The image has {width:,} x {height:,} pixels, but takes {allocated:,} to decode; at "
            f"most {limits.max_pixels:,} are accepted. Save it anew, with smaller tiles or frames."
        )


def _without_end(data: bytes) -> ImageFile.ImageFile:
    """Load a JPEG that lacks its end marker, but has all of its pixels.

    If pixels are missing, the decoder makes them of whatever follows. So they are all there if they
    come out the same, whatever follows.

    Raises:
        BrokenImage: pixels are missing.
    """
    data = data.removesuffix(b"\xff")  # half of the marker
    decoder = JPEG.decoder()
    checksums = set()
    if jpeg.has_all_scans(data):
        for made_up in (*MADE_UP, b""):
            image = decoder(io.BytesIO(data + made_up + jpeg.END))
            image.load()
            checksums.add(_checksum(image))
    if len(checksums) != 1:
        raise BrokenImage(
            "The image can't be decoded: the JPEG is cut, and a part of its pixels is missing. "
            "Send the whole file again."
        )
    return image


def _checksum(image: Image.Image) -> int:
    """Return a checksum of the pixels, without a copy of them all."""
    checksum, rows = 0, max(1, 2**18 // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        checksum = zlib.crc32(strip.tobytes(), checksum)
    return checksum


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else b""


def _reading_failed(error: Exception, what: str, size: tuple[int, int] | None = None) -> InsetError:
    """Return our own error for one of a decoder."""
    if isinstance(error, MemoryError) or "memory" in str(error).lower():
        pixels = f" of {size[0]:,} x {size[1]:,} pixels" if size else ""
        return TooLarge(
            f"The image{pixels} takes more memory to decode than there is. Scale it down, or "
            "convert it to a JPEG."
        )
    reason = str(error).strip().rstrip(".") or type(error).__name__
    return BrokenImage(f"The image {what}: {reason}.")
