"""PNG, and zlib streams of nothing but zeros."""

from __future__ import annotations

import struct
import zlib
from functools import cache


@cache
def deflated_zeros(count: int) -> bytes:
    """Return a zlib stream of so many zero bytes, about a thousandth of that.

    A block that ends in a full flush depends on nothing before it, so it can be repeated.
    """
    piece = 2**20
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(piece)) + packer.flush(zlib.Z_FULL_FLUSH)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    rest = packer.compress(bytes(count % piece)) + packer.flush()
    # Adler-32 of zeros: the first sum stays 1, and the second counts them.
    return b"\x78\xda" + block * (count // piece) + rest + struct.pack(">HH", count % 65521, 1)


PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


def png_chunk(kind: bytes, body: bytes, *, right: bool = True) -> bytes:
    """Return a chunk of a PNG file; its checksum is wrong unless `right`."""
    checksum = zlib.crc32(kind + body) ^ (not right)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def png_head(
    width: int, height: int, depth: int = 8, colour: int = RGB, interlaced: bool = False
) -> bytes:
    """Return the first chunk of a PNG file."""
    return png_chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    )


def png(
    width: int,
    height: int,
    depth: int = 8,
    colour: int = RGB,
    *,
    before: bytes = b"",
    after: bytes = b"",
    pixels: bytes | None = None,
) -> bytes:
    """Return a PNG file.

    Args:
        before: chunks before the pixels.
        after: chunks after the pixels.
        pixels: a zlib stream; None for black.
    """
    if pixels is None:
        pixels = deflated_zeros(height * (1 + (width * depth * CHANNELS[colour] + 7) // 8))
    palette = png_chunk(b"PLTE", bytes(3 * 2 ** min(depth, 8))) if colour == PALETTE else b""
    head = png_head(width, height, depth, colour) + palette
    return PNG_MAGIC + head + before + png_chunk(b"IDAT", pixels) + after + PNG_END
