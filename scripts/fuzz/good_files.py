"""Small files that are as they should be, and what a file of the corpus may be answered with."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from fuzz.writers.iso_media import avif
from fuzz.writers.others import bmp
from fuzz.writers.png import deflated_zeros
from fuzz.writers.tiff import ORIENTATION, tiff

MOST_BYTES = 4 * 2**20  # of a file
GIGABYTE = 2**30
SIDE = 8000  # of the largest square that is read: 64,000,000 pixels
WIDE, HIGH = 64, 48  # of the good files

Expected = frozenset[int]

GOOD: Expected = frozenset({200})
LARGE: Expected = frozenset({413})
OTHER: Expected = frozenset({415})
BROKEN: Expected = frozenset({422})
# It begins as no format does, or as one that ends at once.
NO_HEAD = OTHER | BROKEN
# Decoders differ in what they forgive.
DOUBTFUL = GOOD | BROKEN
# It may be read where there is memory and time for it.
COSTLY = GOOD | LARGE | BROKEN
# What it declares is so absurd that the container itself may be refused.
ABSURD = LARGE | BROKEN
REFUSED = LARGE | OTHER | BROKEN


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """A file of the corpus.

    Attributes:
        name: what it is: its group, a slash, and the case.
        data: its bytes.
        expected: the statuses that a search by it may be answered with.
    """

    name: str
    data: bytes
    expected: Expected


Case = tuple[str, bytes, Expected]
Group = Callable[[], Iterator[Case]]


def picture(seed: int, mode: str = "RGB", width: int = WIDE, height: int = HIGH) -> Image.Image:
    """Return a coarse colourful pattern with a little noise."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    pattern = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noisy = pattern + rng.integers(-20, 21, pattern.shape, np.int16)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return an image as a file."""
    file = io.BytesIO()
    # Pillow leaves options of JPEG in the images that it saves: each file has copies of its own.
    if "append_images" in options:
        images = [other.copy() for other in options["append_images"]]
        options |= {"save_all": True, "append_images": images}
    image.copy().save(file, kind, **options)
    return file.getvalue()


@cache
def good_files() -> Mapping[str, bytes]:
    """Return a small valid file of every container, and of its usual variants, by name."""
    rgb, rgba, grey = picture(1), picture(2, "RGBA"), picture(3, "L")
    others = [picture(4), picture(5)]
    one_bit, palette = picture(6, "1"), picture(7).quantize(16)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    return {
        "jpeg": encoded(rgb, "JPEG", quality=85),
        "jpeg-grey": encoded(grey, "JPEG"),
        "jpeg-progressive": encoded(rgb, "JPEG", progressive=True),
        "jpeg-cmyk": encoded(rgb.convert("CMYK"), "JPEG"),
        "jpeg-exif": encoded(rgb, "JPEG", exif=turned),
        "jpeg-mpo": encoded(rgb, "MPO", append_images=others),
        "png": encoded(rgb, "PNG"),
        "png-rgba": encoded(rgba, "PNG"),
        "png-palette": encoded(palette, "PNG", transparency=0),
        "png-1-bit": encoded(one_bit, "PNG"),
        "png-16-bit": encoded(deep, "PNG"),
        "png-animated": encoded(rgb, "PNG", append_images=others),
        "webp": encoded(rgb, "WEBP", quality=80),
        "webp-lossless": encoded(rgba, "WEBP", lossless=True),
        "webp-animated": encoded(rgb, "WEBP", append_images=others),
        "avif": encoded(rgb, "AVIF", speed=10, max_threads=1),
        "avif-alpha": encoded(rgba, "AVIF", speed=10, max_threads=1),
        "avif-grid": avif(2, 2, 64),
        "gif": encoded(palette, "GIF"),
        "gif-animated": encoded(rgb, "GIF", append_images=others),
        "tiff": encoded(rgb, "TIFF"),
        "tiff-deflate": encoded(rgba, "TIFF", compression="tiff_deflate"),
        "tiff-lzw": encoded(grey, "TIFF", compression="tiff_lzw"),
        "tiff-packbits": encoded(rgb, "TIFF", compression="packbits"),
        "tiff-jpeg": encoded(rgb, "TIFF", compression="jpeg"),
        "tiff-g4": encoded(one_bit, "TIFF", compression="group4"),
        "tiff-16-bit": encoded(deep, "TIFF"),
        "tiff-float": encoded(grey.convert("F"), "TIFF"),
        "tiff-pages": encoded(rgb, "TIFF", append_images=others),
        "tiff-tiles": tiff(64, 48, deflated_zeros(32 * 16), 8, tile=(32, 16), strips=6),
        "bmp": encoded(rgb, "BMP"),
        "bmp-palette": encoded(palette, "BMP"),
        "bmp-1-bit": encoded(one_bit, "BMP"),
        "bmp-rle": bmp(WIDE, HIGH, rle_rows(WIDE, HIGH), compression=1),
        "jp2": encoded(rgb, "JPEG2000"),
        "jp2-codestream": encoded(rgb, "JPEG2000", no_jp2=True),
    }


def files_of_all_shapes() -> Iterator[CorpusFile]:
    """Yield photos for each canvas that the detector may see, for each of which it compiles."""
    for short in range(32, 641, 32):
        for width, height in ((640, short), (short, 640)):
            photo = picture(short, width=width, height=height)
            yield CorpusFile(f"shapes/{width} x {height}", encoded(photo, "JPEG"), GOOD)


def rle_rows(width: int, height: int) -> bytes:
    """Return black rows as the run lengths of a BMP file."""
    runs = bytes([255, 0]) * (width // 255) + (bytes([width % 255, 0]) if width % 255 else b"")
    return (runs + b"\0\0") * height + b"\0\1"
