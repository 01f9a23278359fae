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
from deployments.decoding.formats import AVIF, HEIC, JPEG, JXL, RAW, Format, recognise
from deployments.decoding.pixels import Allocate, new_array, upright_rgb
from deployments.errors import BrokenImage, InsetError, TooLarge
from deployments.limits import ImageLimits

# Sizes are checked here, by the limits that are set, before and after a plugin has seen the file.
Image.MAX_IMAGE_PIXELS = None

# Bytes that a decoder takes for pixels, if it lacks any. Two kinds: one may be what comes anyway.
MADE_UP = (bytes(range(1, 101)), bytes(range(250, 100, -3)))


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """Attributes:
    pixels: uint8 `[height, width, 3]`, sRGB, upright.
    media_type: what the bytes are, e.g. `image/png`.
    animated: it is the first frame of an animation.
    skipped: how many other pictures the file holds: frames, pages, previews.
    facts: what the camera wrote down about the photo.
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
        media_type, animated, skipped: as of `DecodedImage`.
        pixels_declared: width times height.
        cost: the most bytes that `read` allocates, the result included.
    """

    format: Format
    found: Found
    image: ImageFile.ImageFile
    media_type: str
    animated: bool
    skipped: int
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
        try:
            with self.image as image:
                if self.format in (JPEG, RAW) and not self.found.ended:
                    image = _without_end(self.found.data)
                image.load()
                profile = self.found.profile or _bytes(image.info.get("icc_profile"))
                pixels = upright_rgb(image, profile, self._orientation(), allocate)
        except InsetError:
            raise
        except Exception as error:  # with hostile bytes, a decoder may raise anything
            raise _reading_failed(error, "can't be decoded", self.image.size) from None
        # The facts belong here: `self.exif` is read once, when the pixels are there.
        return DecodedImage(pixels, self.media_type, self.animated, self.skipped)

    @property
    def exif(self) -> Image.Exif:
        """The EXIF block: empty if there is none, or it can't be read."""
        block = self.found.exif or _bytes(self.image.info.get("exif"))
        exif = Image.Exif()
        try:
            exif.load(block)
        except Exception:  # no metadata is a reason to refuse pixels
            return Image.Exif()
        return exif

    def _orientation(self) -> int:
        if self.format in (HEIC, JXL):
            return 1  # their decoders turn them
        if self.format is AVIF:
            block = _bytes(self.image.info.get("exif")).removeprefix(b"Exif\0\0")
            return directories.orientation(block) or 1
        if self.found.orientation is not None and self.format is RAW:
            return self.found.orientation
        if self.format.name == "TIFF":
            return self.found.orientation or 1
        return directories.orientation(self.found.exif) or self.found.orientation or 1


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
    if not data:
        raise BrokenImage("The image has no bytes: send the contents of an image file.")
    if len(data) > limits.max_bytes:
        raise TooLarge(
            f"The image has {len(data):,} bytes; at most {limits.max_bytes:,} are accepted. Scale "
            "it down."
        )
    kind = recognise(data)
    decoder = kind.decoder()
    try:
        found = kind.find(data)
    except InsetError:
        raise
    except Exception as error:  # no walk may fail in a way of its own
        raise _reading_failed(error, "can't be read") from None
    _check(found.width, found.height, found.allocated, limits)
    try:
        image = _opened(decoder, found.data, kind)
    except Exception as error:  # with hostile bytes, a decoder may raise anything
        raise _reading_failed(error, "can't be read") from None
    if kind in (AVIF, HEIC, JXL):
        found.width, found.height = image.size
        found.skipped = getattr(image, "n_frames", 1) - 1
        found.animated = kind is not HEIC and bool(getattr(image, "is_animated", False))
        _check(*image.size, found.allocated, limits)
    elif image.size != (found.width, found.height):
        raise BrokenImage(
            f"The image can't be read: it says {found.width:,} x {found.height:,} pixels in one "
            f"place and {image.width:,} x {image.height:,} in another."
        )
    return Opened(
        kind,
        found,
        image,
        found.media_type or kind.media_type,
        found.animated,
        found.skipped,
        found.width * found.height,
        cost(image, found),
    )


def _opened(decoder: type[ImageFile.ImageFile], data: bytes, kind: Format) -> ImageFile.ImageFile:
    try:
        return decoder(io.BytesIO(data))
    except Exception:
        if kind not in (AVIF, HEIC):
            raise
        # These decoders read metadata as they open a file, and may stumble over it.
        return decoder(io.BytesIO(heif.without_metadata(data)))


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
