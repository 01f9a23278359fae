"""Files that are hostile, odd, or only large: built from code, always the same bytes.

Every file stands with the answers that it may get, by what HTTP calls them:

- 200: it is read;
- 413: it is larger than what is read, or costs more;
- 415: it is no format that is read;
- 422: it is broken.

Where several are allowed, decoders differ, and none of the answers harms anybody.
"""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from fuzz.writers import (
    BITS,
    EXIF_IFD,
    GPS_IFD,
    GREY,
    GREY_ALPHA,
    HEIGHT,
    LONG,
    ORIENTATION,
    PALETTE,
    PNG_END,
    PNG_MAGIC,
    RGB,
    RGBA,
    ROWS_PER_STRIP,
    SAMPLES,
    SHORT,
    STRIP_SIZES,
    STRIPS,
    SUB_IFDS,
    WIDTH,
    Field,
    avif,
    bmp,
    box,
    codestream,
    deflated_zeros,
    directory,
    exif,
    gif,
    gif_frame,
    gif_head,
    icns,
    ico,
    iptc,
    jpeg,
    jpeg_2000,
    jpeg_frame,
    mpo,
    packbits_zeros,
    png,
    png_chunk,
    png_head,
    progressive_jpeg,
    psd,
    riff,
    riff_chunk,
    segment,
    tiff,
    tiff_lzw_zeros,
    webp,
    webp_animation,
    webp_canvas,
    webp_pixels,
)

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


def build_corpus() -> list[CorpusFile]:
    """Return all files of the corpus, always the same."""
    return [file for group in GROUPS for file in group_files(group)]


def group_files(group: Group) -> list[CorpusFile]:
    """Return the files of a group of the corpus."""
    return [
        CorpusFile(f"{group.__name__}/{name}", data, expected) for name, data, expected in group()
    ]


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


def rle_rows(width: int, height: int) -> bytes:
    """Return black rows as the run lengths of a BMP file."""
    runs = bytes([255, 0]) * (width // 255) + (bytes([width % 255, 0]) if width % 255 else b"")
    return (runs + b"\0\0") * height + b"\0\1"


# What is read


def good() -> Iterator[Case]:
    """Files that are as they should be."""
    for name, data in good_files().items():
        yield name, data, GOOD
    yield "one-pixel", png(1, 1), GOOD
    for name, (width, height) in {"wide": (20_000, 2), "high": (2, 20_000)}.items():
        yield name, png(width, height), GOOD


# What is incomplete


def cut() -> Iterator[Case]:
    """Files that end too early."""
    for name, data in good_files().items():
        lenient = name.startswith("jp2")  # what is there of it is a coarser picture
        yield f"{name}-to-1", data[:1], OTHER | BROKEN
        yield f"{name}-to-12", data[:12], OTHER | BROKEN
        for percent in (20, 50, 90):
            expected = DOUBTFUL if lenient else BROKEN
            if name in HAVE_MORE_BEHIND:
                expected = DOUBTFUL
            yield f"{name}-to-{percent}-percent", data[: len(data) * percent // 100], expected
        yield f"{name}-by-1", data[:-1], DOUBTFUL
    # An interrupted copy that has all its pixels.
    yield "jpeg-without-its-end", good_files()["jpeg"][:-2], GOOD
    yield "jpeg-progressive-without-its-end", good_files()["jpeg-progressive"][:-2], GOOD
    start, frame = gif_head(WIDE, HIGH) + gif_frame(WIDE, HIGH), gif_frame(WIDE, HIGH)
    control = b"!\xf9\4\0\0\0\0\0"
    for place in (1, 5, 9, 18, 20, 30):
        second = (control + frame)[:place]
        yield f"gif-in-its-second-frame-{place}", start + second, DOUBTFUL
    first = good_files()["webp-animated"]
    yield "webp-in-its-second-frame", first[: first.index(b"ANMF", 60) + 100], DOUBTFUL


# Pictures or directories that the main one can do without.
HAVE_MORE_BEHIND = {
    "jpeg-mpo",
    "png-animated",
    "webp-animated",
    "gif-animated",
    "tiff-pages",
    "avif-alpha",
    "avif-grid",
    "tiff-tiles",
    "bmp-rle",
}


# What lies about its size


def patched(data: bytes, *places: tuple[int, str, int]) -> bytes:
    """Return a file with numbers written over: where, as what, and which."""
    changed = bytearray(data)
    for place, form, number in places:
        struct.pack_into(form, changed, place, number)
    return bytes(changed)


def resized() -> Mapping[str, Callable[[int, int], bytes]]:
    """Return, by container, how its good file is made to say another width and height."""
    files = good_files()
    frame = files["jpeg"].index(b"\xff\xc0")
    vp8 = files["webp"].index(b"\x9d\x01\x2a")
    ispe = files["avif"].index(b"ispe")
    ihdr = files["jp2"].index(b"ihdr")
    siz = files["jp2"].index(b"\xff\x4f\xff\x51")
    image = files["gif"].index(b",", 13 + 3 * 16)
    fields = tiff_fields(files["tiff"])

    def png_says(width: int, height: int) -> bytes:
        return PNG_MAGIC + png_head(width, height) + files["png"][33:]

    def jpeg_says(width: int, height: int) -> bytes:
        return patched(files["jpeg"], (frame + 5, ">H", height), (frame + 7, ">H", width))

    def gif_says(width: int, height: int) -> bytes:
        return patched(
            files["gif"],
            (6, "<H", width),
            (8, "<H", height),
            (image + 5, "<H", width),
            (image + 7, "<H", height),
        )

    def tiff_says(width: int, height: int) -> bytes:
        return patched(
            files["tiff"],
            (fields[WIDTH], "<H", LONG),
            (fields[WIDTH] + 6, "<I", width),
            (fields[HEIGHT], "<H", LONG),
            (fields[HEIGHT] + 6, "<I", height),
        )

    def bmp_says(width: int, height: int) -> bytes:
        return patched(files["bmp"], (18, "<I", width), (22, "<I", height))

    def webp_says(width: int, height: int) -> bytes:
        return patched(
            files["webp"], (vp8 + 3, "<H", width & 0x3FFF), (vp8 + 5, "<H", height & 0x3FFF)
        )

    def avif_says(width: int, height: int) -> bytes:
        return patched(files["avif"], (ispe + 8, ">I", width), (ispe + 12, ">I", height))

    def container_says(width: int, height: int) -> bytes:
        return patched(files["jp2"], (ihdr + 4, ">I", height), (ihdr + 8, ">I", width))

    def codestream_says(width: int, height: int) -> bytes:
        return patched(
            container_says(width, height), (siz + 8, ">I", width), (siz + 12, ">I", height)
        )

    return {
        "jpeg": jpeg_says,
        "png": png_says,
        "gif": gif_says,
        "tiff": tiff_says,
        "bmp": bmp_says,
        "webp": webp_says,
        "avif": avif_says,
        "jp2-container": container_says,
        "jp2": codestream_says,
    }


def tiff_fields(data: bytes) -> dict[int, int]:
    """Return where the entries of the first directory of a TIFF have their types, by tag."""
    start = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, start)[0]
    places = range(start + 2, start + 2 + 12 * count, 12)
    return {struct.unpack_from("<H", data, place)[0]: place + 2 for place in places}


def wrong_size() -> Iterator[Case]:
    """Heads that say another size than the pixels have."""
    whole = {"bmp"}  # it has no other end than its last pixel
    for name, says in resized().items():
        if name == "jp2-container":  # its codestream has the size, whatever the box says
            for side in (0, 60_000, 2**31 - 1):
                yield f"{name}-{side}", says(side, side), REFUSED | GOOD
            continue
        yield f"{name}-smaller", says(WIDE // 2, HIGH // 2), DOUBTFUL
        yield f"{name}-narrower", says(WIDE // 2, HIGH), DOUBTFUL
        larger = BROKEN if name in whole else DOUBTFUL
        yield f"{name}-larger", says(2 * WIDE, 2 * HIGH), larger
        yield f"{name}-higher", says(WIDE, 8 * HIGH), larger
        yield f"{name}-zero-wide", says(0, HIGH), REFUSED
        yield f"{name}-zero-high", says(WIDE, 0), REFUSED
        yield f"{name}-zero", says(0, 0), REFUSED
        if name == "webp":  # the largest that its 14 bits can say
            yield f"{name}-absurd", says(16_383, 16_383), ABSURD
            continue
        # What fits a small picture's numbers, and is yet too much.
        yield f"{name}-60000", says(60_000, 60_000), ABSURD
        if name in ("jpeg", "gif"):
            yield f"{name}-absurd", says(65_535, 65_535), ABSURD
            continue
        yield f"{name}-absurd", says(2**31 - 1, 2**31 - 1), ABSURD
        yield f"{name}-absurdly-wide", says(2**31 - 1, 1), ABSURD
        yield f"{name}-negative", says(2**32 - 1, 2**32 - 1), ABSURD | GOOD
    plain = good_files()["bmp"]
    yield "bmp-upside-down", patched(plain, (22, "<i", -HIGH)), GOOD
    yield "bmp-most-negative", patched(plain, (22, "<i", -(2**31))), ABSURD
    yield "gif-tiny-canvas", gif_head(1, 1) + gif_frame(WIDE, HIGH) + b";", DOUBTFUL
    yield "gif-vast-canvas", gif_head(65_535, 65_535) + gif_frame(1, 1) + b";", LARGE
    outside = gif_head(10, 10) + gif_frame(WIDE, HIGH, 60_000, 60_000) + b";"
    yield "gif-frame-far-outside", outside, COSTLY
    vast = riff(webp_canvas(2**24, 255), (b"VP8L", webp_pixels(1, 1)))
    yield "webp-vast-canvas", vast, ABSURD | GOOD  # a still picture has its own size
    small = riff(webp_canvas(10, 10), (b"VP8L", webp_pixels(SIDE, SIDE)))
    yield "webp-small-canvas", small, COSTLY
    frame = bytes(6) + bytes([9, 0, 0, 9, 0, 0, 1, 0, 0, 0])
    pixels = riff_chunk(b"VP8L", webp_pixels(SIDE, SIDE))
    liar = riff(webp_canvas(10, 10, 0b10), (b"ANIM", bytes(6)), (b"ANMF", frame + pixels))
    yield "webp-small-frame", liar, COSTLY
    yield "avif-says-10x10", avif(8, 8, 1000, declared=(10, 10)), COSTLY
    yield "jp2-says-10x10", jpeg_2000(SIDE, SIDE, declared=(10, 10)), COSTLY
    yield "jp2-says-10x10-beyond", jpeg_2000(60_000, 60_000, declared=(10, 10)), ABSURD
    yield "jpeg-of-two-frames", two_frames(), COSTLY
    yield "png-of-two-heads", png(10, 10, before=png_head(SIDE, SIDE)), COSTLY


def two_frames() -> bytes:
    """Return a JPEG that says its size twice, the second time with more."""
    small, large = jpeg(16, 16), jpeg_frame(60_000, 60_000)
    place = small.index(b"\xff\xda")
    return small[:place] + large + small[place:]


def at_the_limit() -> Iterator[Case]:
    """Files of 64,000,000 pixels, of a little fewer, and of more."""
    writers: dict[str, tuple[Callable[[int, int], bytes], Expected]] = {
        "png": (lambda w, h: png(w, h, 8, GREY), GOOD),
        "jpeg": (jpeg, GOOD),
        "gif": (gif, GOOD),
        "tiff": (lambda w, h: tiff(w, h, deflated_zeros(w * h), 8), GOOD),
        "bmp": (lambda w, h: bmp(w, h, rle_rows(w, h), compression=1), COSTLY),
        "webp": (lambda w, h: webp(w, h, alpha=False), GOOD),
        # Its tiles are the same bytes, which may be refused for that alone.
        "avif": (lambda w, h: avif(8, 8 if h <= SIDE else 9, 1000, (w, h)), DOUBTFUL),
        "jp2": (jpeg_2000, COSTLY),
    }
    for name, (write, expected) in writers.items():
        yield f"{name}-below", write(SIDE, SIDE - 2), expected
        yield f"{name}-at", write(SIDE, SIDE), expected
        yield f"{name}-above", write(SIDE, SIDE + 2), ABSURD if name == "avif" else LARGE
    # 64,000,001 = 23 x 2,782,609 is one pixel more.
    yield "png-one-pixel-above", png(23, 2_782_609, 8, GREY), LARGE
    yield "tiff-one-pixel-above", tiff(23, 2_782_609, deflated_zeros(64_000_001), 8), LARGE


# Few bytes, many pixels


def bombs() -> Iterator[Case]:
    """Files that are small, and large when they are decoded."""
    yield from png_bombs()
    yield from tiff_bombs()
    side = 13_000  # 169 megapixels
    yield "jpeg-169-megapixels", jpeg(side, side), LARGE
    yield "jpeg-of-three-colours", jpeg(SIDE, SIDE, components=3), COSTLY
    yield "jpeg-of-four-colours", jpeg(SIDE, SIDE, components=4), COSTLY
    yield "jpeg-65500", jpeg(65_500, 65_500)[:100_000], LARGE
    yield "jpeg-thousand-scans", progressive_jpeg(SIDE, SIDE, 1000), COSTLY
    yield "jpeg-ten-thousand-scans", progressive_jpeg(4000, 4000, 10_000), COSTLY
    yield "gif-169-megapixels", gif(side, side), LARGE
    frames = gif_head(SIDE, SIDE) + 20 * gif_frame(SIDE, SIDE) + b";"
    yield "gif-twenty-large-frames", frames, COSTLY
    yield "webp-34-bytes", webp(SIDE, SIDE), COSTLY
    yield "webp-largest", webp(16_384, 16_384), LARGE
    yield "webp-twenty-large-frames", webp_animation(SIDE, SIDE, 20), COSTLY
    yield "avif-256-megapixels", avif(16, 16, 1000), ABSURD
    yield "avif-largest-tiles", avif(4, 4, 2000), COSTLY
    yield "jp2-256-megapixels", jpeg_2000(16_000, 16_000), LARGE
    yield "jp2-of-three-colours", jpeg_2000(SIDE, SIDE, 3), COSTLY
    yield "jp2-codestream", codestream(SIDE, SIDE), COSTLY
    yield "jp2-of-a-thousand-components", codestream(1000, 1000, 1000), COSTLY | OTHER
    yield "jp2-of-tiny-tiles", codestream(SIDE, SIDE, tile=(40, 40)), COSTLY
    yield "jp2-of-too-many-tiles", codestream(SIDE, SIDE, tile=(1, 1)), COSTLY
    yield "bmp-rle-169-megapixels", bmp(side, side, rle_rows(side, side), compression=1), LARGE
    yield "bmp-without-pixels", bmp(SIDE, SIDE, b""), BROKEN
    jumps = b"\0\2\xff\xff" * 200_000 + b"\0\1"
    yield "bmp-rle-of-jumps", bmp(SIDE, SIDE, jumps, compression=1), COSTLY


def png_bombs() -> Iterator[Case]:
    for name, depth, colour in (
        ("1-bit", 1, GREY),
        ("palette", 8, PALETTE),
        ("rgba", 8, RGBA),
        ("16-bit-grey", 16, GREY),
        ("16-bit-grey-alpha", 16, GREY_ALPHA),
        ("16-bit-rgba", 16, RGBA),
    ):
        yield f"png-{name}", png(SIDE, SIDE, depth, colour), COSTLY
    yield "png-169-megapixels-rgba", png(13_000, 13_000, 8, RGBA), LARGE
    yield "png-1-bit-2-gigapixels", png(46_000, 46_000, 1, GREY), LARGE
    yield "png-gigabyte-behind-its-pixels", png(10, 10, pixels=deflated_zeros(GIGABYTE)), DOUBTFUL
    whole = deflated_zeros(SIDE * (SIDE + 1))
    pieces = b"".join(png_chunk(b"IDAT", whole[n : n + 1]) for n in range(len(whole)))
    large = PNG_MAGIC + png_head(SIDE, SIDE, 8, GREY) + pieces + PNG_END
    yield "png-pixels-byte-by-byte", large, COSTLY
    empty = 100_000 * png_chunk(b"IDAT", b"")
    yield "png-empty-chunks", png(WIDE, HIGH, before=empty), DOUBTFUL
    interlaced = png_head(SIDE, SIDE, 8, GREY, interlaced=True)
    chunk = png_chunk(b"IDAT", deflated_zeros(SIDE * SIDE + 2 * SIDE))
    yield "png-interlaced", PNG_MAGIC + interlaced + chunk + PNG_END, COSTLY


def tiff_bombs() -> Iterator[Case]:
    vast = 46_000
    for side in (16, 64):
        tile = deflated_zeros(vast * vast) if side == 16 else deflated_zeros(20_000 * 20_000)
        edge = vast if side == 16 else 20_000
        expected = REFUSED if side == 16 else REFUSED | GOOD
        name = f"tiff-{side}x{side}-in-a-tile-of-{edge}"
        yield name, tiff(side, side, tile, 8, tile=(edge, edge)), expected
    yield (
        "tiff-tile-of-2-gigabytes-of-rgb",
        tiff(16, 16, deflated_zeros(GIGABYTE), 8, bits=(8, 8, 8), tile=(32_752, 32_752)),
        REFUSED,
    )
    codecs: dict[str, tuple[int, bytes]] = {
        "deflate": (8, deflated_zeros(SIDE * SIDE)),
        "old-deflate": (32_946, deflated_zeros(SIDE * SIDE)),
        "packbits": (32_773, packbits_zeros(SIDE * SIDE)),
        "lzw": (5, tiff_lzw_zeros(SIDE * SIDE)),
        "jpeg": (7, jpeg(SIDE, SIDE)),
    }
    for name, (number, data) in codecs.items():
        expected = COSTLY if number != 7 else COSTLY | OTHER
        yield f"tiff-strip-{name}", tiff(SIDE, SIDE, data, number), expected
        yield f"tiff-tile-{name}", tiff(SIDE, SIDE, data, number, tile=(SIDE, SIDE)), expected
    white = b"\xff" * (SIDE // 8 + 8)
    yield "tiff-g4", tiff(SIDE, SIDE, white, 4, bits=(1,), photometric=0), COSTLY
    yield (
        "tiff-g4-2-gigapixels",
        tiff(vast, vast, b"\xff" * (vast // 8 + 8), 4, bits=(1,), photometric=0),
        LARGE,
    )
    for number in (34_925, 50_000, 50_001, 34_887, 34_661, 34_712, 6, 3, 2, 65_535):
        yield f"tiff-compression-{number}", tiff(WIDE, HIGH, bytes(100), number), DOUBTFUL | OTHER
    # One strip that all rows share, and one of a row each.
    rows = deflated_zeros(SIDE)
    yield "tiff-strip-of-each-row", tiff(SIDE, SIDE, rows, 8, strips=SIDE), COSTLY
    yield (
        "tiff-deep-pixels",
        tiff(4000, 4000, deflated_zeros(4000 * 4000 * 16), 8, bits=(16,) * 8, photometric=2),
        COSTLY | OTHER,
    )
    yield (
        "tiff-float64",
        tiff(
            4000, 4000, deflated_zeros(4000 * 4000 * 8), 8, bits=(64,), fields={339: (SHORT, [3])}
        ),
        COSTLY | OTHER,
    )
    yield (
        "tiff-1000-samples",
        tiff(100, 100, deflated_zeros(10_000_000), 8, bits=(8,) * 1000),
        COSTLY | OTHER,
    )
    yield "tiff-tile-of-zero", tiff(16, 16, deflated_zeros(256), 8, tile=(0, 0)), REFUSED
    yield (
        "tiff-strip-of-four-gigabytes",
        tiff(WIDE, HIGH, bytes(WIDE * HIGH), fields={STRIP_SIZES: (LONG, [2**32 - 1])}),
        COSTLY,
    )
    yield (
        "tiff-strips-behind-its-end",
        tiff(WIDE, HIGH, b"", fields={STRIPS: (LONG, [2**31]), STRIP_SIZES: (LONG, [WIDE * HIGH])}),
        BROKEN,
    )
    yield (
        "tiff-rows-per-strip-of-zero",
        tiff(WIDE, HIGH, bytes(WIDE * HIGH), fields={ROWS_PER_STRIP: (LONG, [0])}),
        COSTLY,
    )
    yield "tiff-million-strips", million_strips(), REFUSED | GOOD


def million_strips() -> bytes:
    """Return a TIFF that says it has more strips than it has bytes."""
    file = bytearray(tiff(WIDE, HIGH, bytes(WIDE * HIGH)))
    for tag in (STRIPS, STRIP_SIZES):
        struct.pack_into("<I", file, tiff_fields(bytes(file))[tag] + 2, 2**28)
    return bytes(file)


# What isn't pixels


def metadata() -> Iterator[Case]:
    """Good pixels with hostile metadata: that is never a reason to refuse them."""
    yield from png_metadata()
    yield from profiles()
    yield from exif_blocks()
    plain = good_files()["jpeg"]

    def with_segments(segments: bytes) -> bytes:
        return plain[:2] + segments + plain[2:]

    yield "jpeg-10000-segments", with_segments(10_000 * segment(0xE5, b"")), GOOD
    yield "jpeg-10000-exif-blocks", with_segments(10_000 * segment(0xE1, b"Exif\0\0")), GOOD
    yield "jpeg-50-full-comments", with_segments(50 * segment(0xFE, b"x" * 65_000)), GOOD
    yield "jpeg-filled-with-ff", plain[:2] + b"\xff" * 100_000 + plain[2:], GOOD
    nested = b"<x:xmpmeta>" + b"<a>" * 20_000
    xmp = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + nested)
    yield "jpeg-xmp-deep", with_segments(xmp), GOOD
    photoshop = b"Photoshop 3.0\08BIM\x04\x04\0\0\xff\xff\xff\xff"
    yield "jpeg-photoshop-lies", with_segments(segment(0xED, photoshop)), GOOD
    yield "jpeg-adobe-cut", with_segments(segment(0xEE, b"Adobe")), GOOD
    yield "jpeg-jfif-cut", with_segments(segment(0xE0, b"JFIF")), GOOD
    density = b"JFIF\0\1\1\1" + bytes(6)
    yield "jpeg-density-of-zero", with_segments(segment(0xE0, density)), GOOD
    megabytes = b"<x:xmpmeta>" + b"<a>" * 1_000_000
    alpha = good_files()["webp-lossless"][12:]
    extended = webp_canvas(WIDE, HIGH, 0b0001_1100)
    body = b"WEBP" + riff_chunk(*extended) + alpha + riff_chunk(b"XMP ", megabytes)
    yield "webp-xmp-of-megabytes", b"RIFF" + struct.pack("<I", len(body)) + body, GOOD
    first, second = good_files()["jpeg"], good_files()["jpeg-grey"]
    yield "mpo-65535-pictures", mpo([first, second], count=65_535), GOOD
    yield "mpo-no-pictures", mpo([first, second], count=0), GOOD
    yield "mpo-picture-behind-its-end", mpo([first, second], offset=2**32 - 1), GOOD
    yield "mpo-picture-is-itself", mpo([first, second], offset=0), GOOD
    gif_comment = b"!\xfe" + 15_000 * (b"\xff" + b"x" * 255) + b"\0"
    frame = gif_frame(WIDE, HIGH) + b";"
    yield "gif-comment-of-megabytes", gif_head(WIDE, HIGH) + gif_comment + frame, GOOD
    xmp = b"!\xff\x0bXMP DataXMP" + b"<a>" * 300_000 + b"\1" + bytes(range(255, -1, -1)) + b"\0"
    yield "gif-xmp-of-a-megabyte", gif_head(WIDE, HIGH) + xmp + frame, DOUBTFUL
    padded = good_files()["avif"] + box(b"free", bytes(3_000_000))
    yield "avif-megabytes-behind-it", padded, GOOD
    uuid = box(b"uuid", bytes(16), megabytes)
    jp2 = good_files()["jp2"]
    place = jp2.index(b"jp2c") - 4
    yield "jp2-xmp-of-megabytes", jp2[:place] + uuid + jp2[place:], GOOD
    yield "jp2-10000-boxes", jp2[:place] + 10_000 * box(b"free") + jp2[place:], GOOD
    deep = b""
    for _ in range(1000):
        deep = box(b"jp2h", deep)
    yield "jp2-boxes-in-boxes", jp2[:place] + deep + jp2[place:], DOUBTFUL
    yield (
        "tiff-xmp-of-megabytes",
        tiff(WIDE, HIGH, bytes(WIDE * HIGH), fields={700: (1, megabytes)}),
        GOOD,
    )


def png_metadata() -> Iterator[Case]:
    """PNG chunks: texts that inflate to a gigabyte, and checksums that are wrong."""
    gigabyte = deflated_zeros(GIGABYTE)
    chunks: dict[str, tuple[bytes, bytes]] = {
        "ztxt-of-a-gigabyte": (b"zTXt", b"Comment\0\0" + gigabyte),
        "itxt-of-a-gigabyte": (b"iTXt", b"Comment\0\1\0\0\0" + gigabyte),
        "xmp-of-a-gigabyte": (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + gigabyte),
        "profile-of-a-gigabyte": (b"iCCP", b"profile\0\0" + gigabyte),
        "ztxt-cut": (b"zTXt", b"Comment\0\0" + gigabyte[:1000]),
        "ztxt-of-noise": (b"zTXt", b"Comment\0\0" + random.Random(1).randbytes(5000)),
        "itxt-without-a-name": (b"iTXt", b""),
        "text-of-megabytes": (b"tEXt", b"Comment\0" + bytes([65]) * 3_500_000),
        "xmp-of-megabytes": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"<a>" * 1_000_000),
        "profile-name-alone": (b"iCCP", b"profile"),
        "profile-packed-otherwise": (b"iCCP", b"profile\0\x09" + gigabyte[:100]),
        "density-cut": (b"pHYs", b"\0\0"),
        "gamma-of-zero": (b"gAMA", bytes(4)),
        "white-point-cut": (b"cHRM", bytes(5)),
        "exif-without-a-head": (b"eXIf", random.Random(2).randbytes(5000)),
        "transparency-cut": (b"tRNS", b"\0"),
        "unknown": (b"abCd", b"?" * 3_000_000),
    }
    for name, (kind, body) in chunks.items():
        yield f"png-{name}", png(WIDE, HIGH, before=png_chunk(kind, body)), GOOD
        if len(body) < 10_000:
            wrong = png_chunk(kind, body, right=False)
            yield f"png-{name}-wrong-sum", png(WIDE, HIGH, before=wrong), GOOD
            yield (
                f"png-{name}-behind-its-pixels",
                png(WIDE, HIGH, after=png_chunk(kind, body)),
                GOOD,
            )
    texts = 50_000 * png_chunk(b"tEXt", b"a\0b")
    yield "png-50000-texts", png(WIDE, HIGH, before=texts), GOOD
    frames = png_chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))
    yield "png-two-thousand-million-frames", png(WIDE, HIGH, before=frames), GOOD
    none = png_chunk(b"acTL", bytes(8))
    yield "png-animation-without-frames", png(WIDE, HIGH, before=none), GOOD
    control = struct.pack(">IIIIIHHBB", 0, 2**31 - 1, 2**31 - 1, 9, 9, 1, 1, 0, 0)
    vast = frames + png_chunk(b"fcTL", control)
    yield "png-frame-beyond-the-picture", png(WIDE, HIGH, before=vast), DOUBTFUL
    # Critical chunks: what they hold isn't sure any more.
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", WIDE, HIGH, 8, RGB, 0, 0, 0), right=False)
    good_png = good_files()["png"]
    yield "png-head-with-a-wrong-sum", PNG_MAGIC + head + good_png[33:], DOUBTFUL | OTHER
    data = png_chunk(b"IDAT", deflated_zeros(HIGH * (1 + 3 * WIDE)), right=False)
    wrong = PNG_MAGIC + png_head(WIDE, HIGH) + data + PNG_END
    yield "png-pixels-with-a-wrong-sum", wrong, DOUBTFUL
    stream = deflated_zeros(HIGH * (1 + 3 * WIDE))
    yield "png-stream-with-a-wrong-sum", png(WIDE, HIGH, pixels=stream[:-1] + b"?"), DOUBTFUL
    yield "png-without-a-palette", png(WIDE, HIGH, 8, RGB)[:33] + PNG_END, BROKEN
    yield (
        "png-chunk-of-four-gigabytes",
        png(WIDE, HIGH, before=b"\xff\xff\xff\xfftEXt" + bytes(100)),
        BROKEN,
    )


@cache
def srgb() -> bytes:
    """Return the usual profile, without the day on which it was made."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = bytes(12)
    return bytes(profile)


def profiles() -> Iterator[Case]:
    """Colour profiles that are huge, broken, or of another kind of picture."""
    right = srgb()
    many = right[:128] + struct.pack(">I", 2**32 - 1) + right[132:]
    tags = struct.unpack_from(">I", right, 128)[0]
    everywhere = bytearray(right)
    for number in range(tags):
        struct.pack_into(">II", everywhere, 132 + 12 * number + 4, 2**32 - 100, 2**32 - 1)
    table = b"mft2" + bytes(4) + bytes([15, 15, 255, 0]) + bytes(200)
    lookup = (
        struct.pack(">I4sI4s4s4s", 500, bytes(4), 0x04000000, b"prtr", b"RGB ", b"Lab ")
        + bytes(12)
        + b"acsp"
        + bytes(88)
        + struct.pack(">I4sII", 1, b"A2B0", 144, len(table))
        + table
    )
    contents = {
        "right": right,
        "empty": b"",
        "noise": random.Random(3).randbytes(5000),
        "cut": right[:200],
        "says-less": struct.pack(">I", 10) + right[4:],
        "says-more": struct.pack(">I", 2**32 - 1) + right[4:],
        "many-tags": many,
        "tags-outside": bytes(everywhere),
        "table-of-255-to-the-15th": lookup,
        "of-cmyk": right[:16] + b"CMYK" + right[20:],
        "of-grey": right[:16] + b"GRAY" + right[20:],
        "of-megabytes": right + random.Random(4).randbytes(2_000_000),
    }
    image = picture(8)
    for name, profile in contents.items():
        packed = b"profile\0\0" + zlib.compress(profile)
        yield f"png-profile-{name}", png(WIDE, HIGH, before=png_chunk(b"iCCP", packed)), GOOD
        if profile:
            yield f"jpeg-profile-{name}", encoded(image, "JPEG", icc_profile=profile), GOOD
            yield f"tiff-profile-{name}", encoded(image, "TIFF", icc_profile=profile), GOOD
    yield "webp-profile-noise", encoded(image, "WEBP", icc_profile=contents["noise"]), GOOD
    pieces = b"".join(
        segment(0xE2, b"ICC_PROFILE\0" + bytes([number, 255]) + b"?" * 60_000)
        for number in (9, 9, 0)
    )
    jpeg_file = good_files()["jpeg"]
    yield "jpeg-profile-in-wrong-pieces", jpeg_file[:2] + pieces + jpeg_file[2:], GOOD


def exif_blocks() -> Iterator[Case]:
    """EXIF that loops, is endless, or points outside."""
    turn: dict[int, Field] = {ORIENTATION: (SHORT, [6])}
    many = {tag: (SHORT, [1]) for tag in range(4000)}
    text = exif({271: (2, b"camera\0")})
    contents = {
        "next-is-itself": exif(turn, following=8),
        "exif-is-itself": exif(turn | {EXIF_IFD: (LONG, [8])}),
        "gps-is-itself": exif(turn | {GPS_IFD: (LONG, [8])}),
        "directories-in-a-ring": exif(
            turn | {EXIF_IFD: (LONG, [38])}, following=38, rest=directory({}, 38, 8)
        ),
        "outside": exif(turn | {EXIF_IFD: (LONG, [2**32 - 1]), GPS_IFD: (LONG, [2**31])}),
        "4000-tags": exif(many),
        "65535-tags-said": b"II*\0\x08\0\0\0\xff\xff" + bytes(100),
        "value-of-four-gigabytes": patched(text, (14, "<I", 2**32 - 1)),
        "value-outside": patched(text, (18, "<I", 2**32 - 1)),
        "type-unknown": patched(text, (12, "<H", 65_535)),
        "fraction-of-zero": exif({282: (5, bytes(8)), 283: (5, bytes(8))}),
        "orientation-9": exif({ORIENTATION: (SHORT, [9])}),
        "orientation-is-text": exif({ORIENTATION: (2, b"six\0")}),
        "orientation-of-many": exif({ORIENTATION: (SHORT, [6] * 1000)}),
        "position-of-zeros": exif(
            {GPS_IFD: (LONG, [26])}, rest=directory({2: (5, bytes(24)), 4: (5, bytes(24))}, 26)
        ),
        "head-cut": b"II*\0",
        "head-wrong": b"??*\0\x08\0\0\0",
        "noise": b"II*\0\x08\0\0\0" + random.Random(5).randbytes(2000),
        "empty": b"",
    }
    jpeg_file = good_files()["jpeg"]
    lossless = good_files()["webp-lossless"][12:]
    for name, block in contents.items():
        head = segment(0xE1, b"Exif\0\0" + block)
        yield f"jpeg-exif-{name}", jpeg_file[:2] + head + jpeg_file[2:], GOOD
        yield f"png-exif-{name}", png(WIDE, HIGH, before=png_chunk(b"eXIf", block)), GOOD
        extended = webp_canvas(WIDE, HIGH, 0b0001_1000)
        body = b"WEBP" + riff_chunk(*extended) + lossless + riff_chunk(b"EXIF", block)
        yield f"webp-exif-{name}", b"RIFF" + struct.pack("<I", len(body)) + body, GOOD


def sequences() -> Iterator[Case]:
    """Files of very many pictures, or of pictures that never end."""
    pixels = bytes(WIDE * HIGH)
    start = 8 + len(pixels)
    yield "tiff-next-is-itself", tiff(WIDE, HIGH, pixels, following=start), GOOD
    size = len(tiff(WIDE, HIGH, pixels)) - start
    second = directory(page_fields(), start + size, start)
    ring = tiff(WIDE, HIGH, pixels, following=start + size) + second
    yield "tiff-pages-in-a-ring", ring, GOOD
    yield (
        "tiff-sub-page-is-itself",
        tiff(WIDE, HIGH, pixels, fields={SUB_IFDS: (LONG, [start])}),
        GOOD,
    )
    yield "tiff-next-outside", tiff(WIDE, HIGH, pixels, following=2**32 - 2), GOOD
    yield "tiff-65535-pages", chain(65_535, {}), GOOD
    yield "tiff-20000-pages", chain(20_000, page_fields()), GOOD
    yield "tiff-65535-tags-said", b"II*\0\x08\0\0\0\xff\xff" + bytes(200), BROKEN | OTHER
    yield "tiff-directory-outside", b"II*\0\xff\xff\xff\x7f" + bytes(200), BROKEN | OTHER
    yield "tiff-without-a-directory", b"II*\0" + bytes(200), BROKEN | OTHER
    yield "tiff-big-outside", b"II+\0\x08\0\0\0" + b"\xff" * 7 + b"\x7f" + bytes(99), BROKEN | OTHER
    one = gif_frame(1, 1)
    yield "gif-100000-frames", gif_head(WIDE, HIGH) + 100_000 * one + b";", GOOD
    control = b"!\xf9\4\x0c\0\0\0\0"  # each frame is taken away again
    large = gif_head(4000, 4000) + 10_000 * (control + one) + b";"
    yield "gif-10000-frames-on-a-large-canvas", large, GOOD
    yield "gif-extensions-without-end", gif_head(9, 9) + 500_000 * b"!\xfe\0", BROKEN
    yield "gif-without-a-frame", gif_head(9, 9) + b";", BROKEN
    yield "webp-10000-frames", webp_animation(WIDE, HIGH, 10_000), GOOD
    yield "mpo-200-pictures", mpo([good_files()["jpeg"]] * 200), GOOD
    # Each frame of an APNG, in full, a great many times.
    frames = b""
    for number in range(10_000):
        control = struct.pack(">IIIIIHHBB", 2 * number + 1, 1, 1, 0, 0, 1, 1, 0, 0)
        body = struct.pack(">I", 2 * number + 2) + deflated_zeros(4)
        frames += png_chunk(b"fcTL", control) + png_chunk(b"fdAT", body)
    count = png_chunk(b"acTL", struct.pack(">II", 10_000, 0))
    yield "png-10000-frames", png(WIDE, HIGH, before=count, after=frames), GOOD


def page_fields() -> dict[int, Field]:
    """Return the fields of a grey page whose pixels are the first bytes of the file."""
    return {
        WIDTH: (LONG, [WIDE]),
        HEIGHT: (LONG, [HIGH]),
        BITS: (SHORT, [8]),
        259: (SHORT, [1]),
        262: (SHORT, [1]),
        STRIPS: (LONG, [8]),
        SAMPLES: (SHORT, [1]),
        ROWS_PER_STRIP: (LONG, [HIGH]),
        STRIP_SIZES: (LONG, [WIDE * HIGH]),
    }


def chain(pages: int, fields: Mapping[int, Field]) -> bytes:
    """Return a TIFF of one good page and so many more, one behind the other."""
    pixels = bytes(WIDE * HIGH)
    end = len(tiff(WIDE, HIGH, pixels))
    size = len(directory(fields, 0))
    following = [end + size * (number + 1) for number in range(pages - 1)] + [0]
    # Only the last four bytes differ: short values stand in the entries themselves.
    entries = directory(fields, 0)[:-4]
    rest = b"".join(entries + struct.pack("<I", place) for place in following)
    return tiff(WIDE, HIGH, pixels, following=end) + rest


# What is not read at all


def other_formats() -> Iterator[Case]:
    """Pictures in formats that aren't read, some with a bomb inside."""
    bomb = png(13_000, 13_000, 8, GREY)
    small = good_files()["png"]
    yield "ico", ico(small), OTHER
    yield "ico-with-a-bomb", ico(png(13_000, 13_000, 8, RGBA)), OTHER
    yield "ico-255-pictures", struct.pack("<HHH", 0, 1, 65_535) + bytes(3000), OTHER
    yield "cur-with-a-bomb", ico(bomb, kind=2), OTHER
    yield "icns-with-a-bomb", icns(bomb), OTHER
    yield "icns-with-a-codestream", icns(codestream(60_000, 60_000)), OTHER
    yield "iptc-with-a-bomb", iptc(bomb, 10, 10), OTHER
    yield "iptc-with-postscript", iptc(postscript(), WIDE, HIGH), OTHER
    yield "iptc-with-iptc", iptc(iptc(small, 10, 10), 10, 10), OTHER
    yield "eps", postscript(), OTHER
    for name, count in {"none": 0, "odd": -32_768, "many": 32_767}.items():
        layers = struct.pack(">Ih", 1000, count) + random.Random(6).randbytes(1000)
        yield f"psd-layers-{name}", psd(WIDE, HIGH, layers), OTHER
    layer = struct.pack(">iiiiH", 0, 0, 2**31 - 1, 2**31 - 1, 65_535) + bytes(100)
    vast = struct.pack(">Ih", 2 + len(layer), 1) + layer
    yield "psd-layer-of-four-gigapixels", psd(WIDE, HIGH, vast), OTHER
    for name, text in {
        "im": b"Image type: RGB\r\nImage size (x*y): 8000*8000\r\nFile size (no of images): 9\r\n",
        "im-odd": b"Image type: L 32F image\r\nImage size (x*y): -5*8\r\nScale (x,y): a*b\r\n",
        "im-lut": b"Image type: P image\r\nImage size (x*y): 5*5\r\nLut: 1\r\n",
    }.items():
        yield name, text.ljust(511, b"\0") + b"\x1a" + bytes(3000), OTHER
    for kind in ("PPM", "TGA", "PCX", "SGI", "DDS", "QOI", "BLP"):
        image = picture(9, "P" if kind == "BLP" else "RGB")
        yield kind.lower(), encoded(image, kind), OTHER
    yield "ppm-bomb", b"P1 8000 8000 " + b"1" * 100, OTHER
    yield "pgm-of-gigapixels", b"P5 65000 65000 255 " + bytes(100), OTHER
    yield "xpm", b'/* XPM */\nstatic char *x[] = {\n"9999 9999 1 1",\n" c #000000",\n', OTHER
    yield "xbm", b"#define a_width 60000\n#define a_height 60000\n" + bytes(99), OTHER
    yield "fli", struct.pack("<IHHHHH", 200, 0xAF12, 9, 9999, 9999, 8) + bytes(200), OTHER
    yield "fits", b"SIMPLE  =                    T".ljust(2880), OTHER
    yield "spider", struct.pack(">27f", 1, 9999, 0, 0, 1, *[0] * 7, 9999, *[0] * 14) * 9, OTHER
    yield "wmf", b"\xd7\xcd\xc6\x9a" + bytes(200), OTHER
    yield "emf", b"\1\0\0\0" + bytes(36) + b" EMF" + bytes(99), OTHER
    yield "hdf5", b"\x89HDF\r\n\x1a\n" + bytes(99), OTHER
    yield "mpeg", b"\0\0\1\xb3" + bytes(99), OTHER
    yield "pcd", bytes(2048) + b"PCD_" + bytes(99), OTHER
    heic = box(b"ftyp", b"heic", bytes(4), b"mif1heic") + box(b"meta", bytes(200))
    yield "heic", heic + box(b"mdat", bytes(999)), NO_HEAD
    yield "jpeg-xl", b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99), NO_HEAD
    yield "jpeg-xl-codestream", b"\xff\x0a" + bytes(99), NO_HEAD
    yield "mp4", box(b"ftyp", b"isom", bytes(4)) + box(b"mdat", bytes(999)), NO_HEAD
    yield "svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', OTHER


def postscript() -> bytes:
    """Return a picture that is a program."""
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EndComments\n{} loop\n"


def no_pictures() -> Iterator[Case]:
    """What people send by mistake, and what a head alone makes of a file."""
    yield "empty", b"", BROKEN | frozenset({400})
    yield "byte", b"\0", NO_HEAD
    yield "zeros", bytes(100_000), OTHER
    yield "noise", random.Random(7).randbytes(100_000), NO_HEAD
    yield "text", b"This is not a picture.\n" * 100, OTHER
    yield "html", b"<!doctype html><script>alert(1)</script>", OTHER
    yield "json", b'{"a": ' * 10_000, OTHER
    laughs = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    yield "xml-that-grows", f"<!DOCTYPE x [{laughs}]><x>&a9;</x>".encode(), OTHER
    yield "pdf", b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n%%EOF", OTHER
    yield "elf", b"\x7fELF\2\1\1" + bytes(500), OTHER
    yield "exe", b"MZ" + bytes(500), OTHER
    yield "gzip", b"\x1f\x8b\x08" + bytes(500), OTHER
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("photo.jpg"), good_files()["jpeg"])
    yield "zip", file.getvalue(), OTHER
    heads = {
        "jpeg": b"\xff\xd8\xff",
        "png": PNG_MAGIC,
        "gif": b"GIF89a",
        "tiff": b"MM\0*",
        "bmp": b"BM",
        "webp": b"RIFF\xff\xff\xff\xffWEBPVP8 ",
        "avif": b"\0\0\0\x1cftypavif",
        "jp2": b"\0\0\0\x0cjP  \r\n\x87\n",
        "j2k": b"\xff\x4f\xff\x51",
    }
    rng = random.Random(8)
    for name, head in heads.items():
        yield f"{name}-head-alone", head, NO_HEAD
        yield f"{name}-head-and-zeros", head + bytes(5000), REFUSED
        yield f"{name}-head-and-ones", head + b"\xff" * 5000, REFUSED
        yield f"{name}-head-and-noise", head + rng.randbytes(5000), REFUSED
        yield f"{name}-head-twice", head + good_files()["png"], REFUSED


def bmp_oddities() -> Iterator[Case]:
    """BMP files with numbers that no encoder writes."""
    pixels = bytes(WIDE * HIGH)
    yield "palette-of-four-gigabytes", bmp(WIDE, HIGH, pixels, colours=2**32 - 1), DOUBTFUL
    yield "palette-of-none", bmp(WIDE, HIGH, pixels, palette=b"", offset=54), DOUBTFUL
    yield "no-bits", bmp(WIDE, HIGH, pixels, 0, palette=b""), BROKEN
    yield "77-bits", bmp(WIDE, HIGH, pixels, 77), BROKEN
    yield "head-of-four-gigabytes", bmp(WIDE, HIGH, pixels, head_size=2**32 - 1), NO_HEAD
    yield "head-of-nothing", bmp(WIDE, HIGH, pixels, head_size=0), NO_HEAD
    yield "pixels-in-the-head", bmp(WIDE, HIGH, pixels, offset=0), DOUBTFUL
    yield "pixels-behind-the-end", bmp(WIDE, HIGH, pixels, offset=2**32 - 1), BROKEN
    for number in (1, 2, 3, 4, 5, 11, 99):
        yield f"compression-{number}", bmp(WIDE, HIGH, pixels, compression=number), DOUBTFUL


GROUPS: tuple[Group, ...] = (
    good,
    cut,
    wrong_size,
    at_the_limit,
    bombs,
    metadata,
    sequences,
    bmp_oddities,
    other_formats,
    no_pictures,
)
