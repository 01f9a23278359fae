"""TIFF and EXIF."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

# Tags of TIFF and EXIF.
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIPS, SAMPLES, ROWS_PER_STRIP, STRIP_SIZES, PLANAR = 273, 277, 278, 279, 284
TILE_WIDTH, TILE_HEIGHT, TILES, TILE_SIZES = 322, 323, 324, 325
SUB_IFDS, ORIENTATION, EXIF_IFD, GPS_IFD = 330, 274, 0x8769, 0x8825
SHORT, LONG = 3, 4

# A tag's type and values; of bytes, each is a value.
Field = tuple[int, Sequence[int] | bytes]


def directory(fields: Mapping[int, Field], place: int, following: int = 0) -> bytes:
    """Return a directory of TIFF or EXIF (little-endian) and, after it, its longer values.

    Args:
        place: where it begins in the file.
        following: where the next one begins; 0 for none.
    """
    entries, values = b"", b""
    behind = place + 2 + 12 * len(fields) + 4
    for tag, (kind, value) in sorted(fields.items()):
        if isinstance(value, bytes):
            packed = value
        else:
            packed = struct.pack(f"<{len(value)}{'H' if kind == SHORT else 'I'}", *value)
        entries += struct.pack("<HHI", tag, kind, len(value))
        if len(packed) <= 4:
            entries += packed.ljust(4, b"\0")
        else:
            entries += struct.pack("<I", behind + len(values))
            values += packed + b"\0" * (len(packed) % 2)
    return struct.pack("<H", len(fields)) + entries + struct.pack("<I", following) + values


def exif(fields: Mapping[int, Field], following: int = 0, rest: bytes = b"") -> bytes:
    """Return EXIF whose first directory begins at 8; `rest` is what comes after it."""
    return b"II*\0\x08\0\0\0" + directory(fields, 8, following) + rest


def tiff(
    width: int,
    height: int,
    data: bytes,
    compression: int = 1,
    *,
    bits: Sequence[int] = (8,),
    photometric: int | None = None,
    strips: int = 1,
    tile: tuple[int, int] | None = None,
    fields: Mapping[int, Field] | None = None,
    following: int = 0,
) -> bytes:
    """Return a TIFF file of one page (little-endian): its pixels first, then its directory.

    Args:
        data: of a strip or a tile; all have the same.
        compression: the number that TIFF has for it.
        bits: of each sample of a pixel.
        photometric: what samples mean; None for grey or RGB.
        strips: number of strips or tiles.
        tile: width and height of a tile; None for strips.
        fields: more fields, or others.
        following: where the next directory begins.
    """
    if photometric is None:
        photometric = 2 if len(bits) > 2 else 1
    offsets, sizes = [8] * strips, [len(data)] * strips
    place: dict[int, Field]
    if tile:
        place = {
            TILE_WIDTH: (LONG, [tile[0]]),
            TILE_HEIGHT: (LONG, [tile[1]]),
            TILES: (LONG, offsets),
            TILE_SIZES: (LONG, sizes),
        }
    else:
        place = {
            STRIPS: (LONG, offsets),
            ROWS_PER_STRIP: (LONG, [-(-height // strips)]),
            STRIP_SIZES: (LONG, sizes),
        }
    page: dict[int, Field] = {
        WIDTH: (LONG, [width]),
        HEIGHT: (LONG, [height]),
        BITS: (SHORT, bits),
        COMPRESSION: (SHORT, [compression]),
        PHOTOMETRIC: (SHORT, [photometric]),
        SAMPLES: (SHORT, [len(bits)]),
        PLANAR: (SHORT, [1]),
        **place,
        **(fields or {}),
    }
    padded = data + b"\0" * (len(data) % 2)
    start = 8 + len(padded)
    return b"II*\0" + struct.pack("<I", start) + padded + directory(page, start, following)


def packbits_zeros(count: int) -> bytes:
    """Return so many zeros as PackBits: two bytes for 128."""
    rest = count % 128
    return b"\x81\0" * (count // 128) + (bytes([257 - rest, 0]) if rest > 1 else bytes(2 * rest))


def tiff_lzw_zeros(count: int) -> bytes:
    """Return so many zeros as the LZW of TIFF: highest bits first, and wider codes one earlier."""
    codes, left, following, width = [(256, 9)], count, 258, 9
    first = True
    while left:
        length = min(1 if first else following - 256, left)
        codes.append((0 if length == 1 else length + 256, width))
        left -= length
        if not first:
            following += 1
        width = max(width, (following + 1).bit_length()) if not first else 9
        first = False
        if following == 4094:  # the table is nearly full: begin anew
            codes.append((256, 12))
            following, width, first = 258, 9, True
    packed, buffer, held = bytearray(), 0, 0
    for code, size in [*codes, (257, width)]:
        buffer, held = buffer << size | code, held + size
        while held >= 8:
            held -= 8
            packed.append(buffer >> held)
            buffer &= (1 << held) - 1
    return bytes(packed) + (bytes([buffer << (8 - held)]) if held else b"")


def tiff_fields(data: bytes) -> dict[int, int]:
    """Return where the entries of the first directory of a TIFF have their types, by tag."""
    start = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, start)[0]
    places = range(start + 2, start + 2 + 12 * count, 12)
    return {struct.unpack_from("<H", data, place)[0]: place + 2 for place in places}
