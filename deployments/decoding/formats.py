"""The formats that are read, told apart by a file's first bytes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from PIL import ImageFile

from deployments.decoding.containers import (
    bmp,
    directories,
    gif,
    heif,
    jpeg,
    jpeg2000,
    jxl,
    png,
    raw,
    tiff,
    webp,
)
from deployments.decoding.containers.found import Found
from deployments.errors import NotAnImage


@dataclass(frozen=True, slots=True)
class Format:
    """Attributes:
    name: what people call it.
    media_type: what HTTP calls it.
    find: what walks its container.
    plugin: the module of its decoder, and the class in it. A plugin is loaded when the first such
        file comes: each takes memory in every worker.
    extra: the package that decodes it, if Pillow does not.
    settings: what to set in a module before it decodes.
    slowness: how much longer than others it may take for a pixel.
    """

    name: str
    media_type: str
    find: Callable[[bytes], Found]
    plugin: tuple[str, str]
    extra: str = ""
    settings: tuple[tuple[str, str, object], ...] = ()
    slowness: float = 1

    def decoder(self) -> type[ImageFile.ImageFile]:
        """Return the class that opens the file.

        Raises:
            NotAnImage: its package is not installed here.
        """
        try:
            module = importlib.import_module(self.plugin[0])
        except ImportError:
            raise NotAnImage(
                f"This is {self.name}, which this service does not read without {self.extra}: "
                "convert the photo to JPEG, or install it on the server with "
                "`pip install '.[formats]'`."
            ) from None
        for place, name, value in self.settings:
            setattr(importlib.import_module(place), name, value)
        decoder: type[ImageFile.ImageFile] = getattr(module, self.plugin[1])
        return decoder


def _of_pillow(name: str, media_type: str, find: Callable[[bytes], Found], plugin: str) -> Format:
    return Format(name, media_type, find, (f"PIL.{plugin}ImagePlugin", f"{plugin}ImageFile"))


JPEG: Final = _of_pillow("JPEG", "image/jpeg", jpeg.find, "Jpeg")
PNG: Final = _of_pillow("PNG", "image/png", png.find, "Png")
WEBP: Final = Format("WebP", "image/webp", webp.find, ("PIL.WebPImagePlugin", "WebPImageFile"))
# Each worker has one core: more threads would only take memory.
AVIF: Final = Format(
    "AVIF",
    "image/avif",
    heif.find,
    ("PIL.AvifImagePlugin", "AvifImageFile"),
    settings=(("PIL.AvifImagePlugin", "DEFAULT_MAX_THREADS", 1),),
)
GIF: Final = _of_pillow("GIF", "image/gif", gif.find, "Gif")
TIFF: Final = _of_pillow("TIFF", "image/tiff", tiff.find, "Tiff")
BMP: Final = _of_pillow("BMP", "image/bmp", bmp.find, "Bmp")
JPEG2000: Final = Format(
    "JPEG 2000",
    "image/jp2",
    jpeg2000.find,
    ("PIL.Jpeg2KImagePlugin", "Jpeg2KImageFile"),
    slowness=5,
)
# The JPEG inside is decoded, and nothing else.
RAW: Final = Format("camera RAW", "image/x-dcraw", raw.find, JPEG.plugin)
HEIC: Final = Format(
    "HEIC",
    "image/heic",
    heif.find,
    ("pi_heif.as_plugin", "HeifImageFile"),
    "pi-heif",
    (
        ("pi_heif.options", "DECODE_THREADS", 1),
        ("pi_heif.options", "THUMBNAILS", False),
        ("pi_heif.options", "DEPTH_IMAGES", False),
        ("pi_heif.options", "AUX_IMAGES", False),
    ),
)
JXL: Final = Format(
    "JPEG XL",
    "image/jxl",
    jxl.find,
    ("deployments.decoding.jpeg_xl", "JpegXlImageFile"),
    "pylibjxl",
)
FORMATS: Final = (JPEG, PNG, WEBP, AVIF, GIF, TIFF, BMP, JPEG2000, RAW, HEIC, JXL)


def recognise(data: bytes) -> Format:
    """Return the format of a file by its first bytes: one, so one decoder sees them.

    Raises:
        NotAnImage: it is in none of them.
    """
    if data.startswith(jpeg.START):
        return JPEG
    if data.startswith(png.SIGNATURE):
        return PNG
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WEBP
    if data.startswith((b"GIF87a", b"GIF89a")):
        return GIF
    if data.startswith((jpeg2000.CODESTREAM, jpeg2000.SIGNATURE)):
        return JPEG2000
    if data.startswith(jxl.SIGNATURES):
        return JXL
    if data.startswith(b"BM"):
        return BMP
    if raw.is_raw(data):
        return RAW
    if data[:4] in directories.MAGICS:
        return TIFF
    for brand in heif.brands(data):
        if brand in heif.AVIF:
            return AVIF
        if brand in heif.HEIC:
            return HEIC
    if data[4:8] == b"ftyp" and data[8:12] in heif.EITHER:
        return HEIC
    raise NotAnImage(
        "These bytes are not in an image format we read: send JPEG, PNG, WebP, AVIF, GIF, TIFF, "
        "BMP, JPEG 2000, HEIC, JPEG XL or a camera's RAW."
    )
