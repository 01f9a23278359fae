"""Files of few bytes and many pixels."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from fuzz.good_files import (
    ABSURD,
    BROKEN,
    COSTLY,
    DOUBTFUL,
    GIGABYTE,
    GOOD,
    HIGH,
    LARGE,
    OTHER,
    REFUSED,
    SIDE,
    WIDE,
    Case,
    rle_rows,
)
from fuzz.writers.gif import gif, gif_frame, gif_head
from fuzz.writers.iso_media import avif, codestream, jpeg_2000
from fuzz.writers.jpeg import jpeg, progressive_jpeg
from fuzz.writers.others import bmp
from fuzz.writers.png import (
    GREY,
    GREY_ALPHA,
    PALETTE,
    PNG_END,
    PNG_MAGIC,
    RGBA,
    deflated_zeros,
    png,
    png_chunk,
    png_head,
)
from fuzz.writers.tiff import (
    LONG,
    ROWS_PER_STRIP,
    SHORT,
    STRIP_SIZES,
    STRIPS,
    packbits_zeros,
    tiff,
    tiff_fields,
    tiff_lzw_zeros,
)
from fuzz.writers.webp import webp, webp_animation


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
