"""ISO base media: AVIF and JPEG 2000."""

from __future__ import annotations

import io
import struct
from functools import cache

from PIL import Image

from fuzz.writers.jpeg import segment


def box(kind: bytes, *parts: bytes) -> bytes:
    """Return a box of an ISO file."""
    body = b"".join(parts)
    return struct.pack(">I", 8 + len(body)) + kind + body


def full_box(kind: bytes, version: int, flags: int, *parts: bytes) -> bytes:
    """Return a box of an ISO file that has a version."""
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


@cache
def avif_tile(side: int) -> tuple[bytes, bytes]:
    """Return a black square as AV1: its configuration, and its data."""
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, "AVIF", speed=10, max_threads=1)
    data = file.getvalue()
    start = data.index(b"av1C")
    size = struct.unpack(">I", data[start - 4 : start])[0]
    return data[start + 4 : start - 4 + size], data[data.index(b"mdat") + 4 :]


def avif(
    columns: int,
    rows: int,
    side: int,
    size: tuple[int, int] | None = None,
    declared: tuple[int, int] | None = None,
) -> bytes:
    """Return an AVIF file: a grid whose tiles are all the same bytes.

    Args:
        side: of a tile, at least 64 pixels.
        size: of the grid's picture; None for all of the tiles.
        declared: what the picture's property says instead.
    """
    configuration, tile = avif_tile(side)
    width, height = size or (columns * side, rows * side)
    count = columns * rows
    grid = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, width, height)
    ids = range(2, 2 + count)
    entries = [full_box(b"infe", 2, 0, struct.pack(">HH4sB", 1, 0, b"grid", 0))]
    entries += [full_box(b"infe", 2, 1, struct.pack(">HH4sB", id, 0, b"av01", 0)) for id in ids]
    properties = box(
        b"ipco",
        full_box(b"ispe", 0, 0, struct.pack(">II", *(declared or (width, height)))),
        full_box(b"ispe", 0, 0, struct.pack(">II", side, side)),
        full_box(b"pixi", 0, 0, b"\x03\x08\x08\x08"),
        box(b"av1C", configuration),
    )
    of_grid = struct.pack(">HBBB", 1, 2, 1, 3)
    of_tiles = b"".join(struct.pack(">HBBBB", id, 3, 2, 3, 0x84) for id in ids)

    def meta(place: int) -> bytes:
        where = struct.pack(">BBH", 0x44, 0, 1 + count)
        where += struct.pack(">HHHII", 1, 0, 1, place, len(grid))
        for id in ids:
            where += struct.pack(">HHHII", id, 0, 1, place + len(grid), len(tile))
        return full_box(
            b"meta",
            0,
            0,
            full_box(b"hdlr", 0, 0, bytes(4), b"pict", bytes(13)),
            full_box(b"pitm", 0, 0, struct.pack(">H", 1)),
            full_box(b"iloc", 0, 0, where),
            full_box(b"iinf", 0, 0, struct.pack(">H", 1 + count), *entries),
            full_box(b"iref", 0, 0, box(b"dimg", struct.pack(f">HH{count}H", 1, count, *ids))),
            box(
                b"iprp",
                properties,
                full_box(b"ipma", 0, 0, struct.pack(">I", 1 + count), of_grid, of_tiles),
            ),
        )

    head = box(b"ftyp", b"avif", bytes(4), b"avifmif1miafMA1A")
    place = len(head) + len(meta(0)) + 8
    return head + meta(place) + box(b"mdat", grid, tile)


def codestream(
    width: int, height: int, components: int = 1, tile: tuple[int, int] | None = None
) -> bytes:
    """Return a JPEG 2000 codestream of empty packets.

    Args:
        tile: width and height of a tile; None for one that has all. Only the first is there.
    """
    tile_width, tile_height = tile or (width, height)
    size = struct.pack(
        ">HIIIIIIIIH", 0, width, height, 0, 0, tile_width, tile_height, 0, 0, components
    )
    levels = 5
    style = struct.pack(">BBHBBBBBB", 0, 0, 1, 0, levels, 4, 4, 0, 1)
    quantization = bytes([2 << 5]) + bytes([8 << 3]) * (3 * levels + 1)
    packets = bytes((levels + 1) * components)
    part = struct.pack(">HIBB", 0, 12 + 2 + len(packets), 0, 1)
    return (
        b"\xff\x4f"
        + segment(0x51, size + bytes([7, 1, 1]) * components)
        + segment(0x52, style)
        + segment(0x5C, quantization)
        + segment(0x90, part)
        + b"\xff\x93"
        + packets
        + b"\xff\xd9"
    )


def jpeg_2000(
    width: int, height: int, components: int = 1, *, declared: tuple[int, int] | None = None
) -> bytes:
    """Return a JPEG 2000 file.

    Args:
        declared: the size that the container says instead of the codestream's.
    """
    says = declared or (width, height)
    head = box(b"ihdr", struct.pack(">IIHBBBB", says[1], says[0], components, 7, 7, 0, 0))
    colour = box(b"colr", struct.pack(">BBBI", 1, 0, 0, 17 if components == 1 else 16))
    return (
        box(b"jP  ", b"\r\n\x87\n")
        + box(b"ftyp", b"jp2 ", bytes(4), b"jp2 ")
        + box(b"jp2h", head, colour)
        + box(b"jp2c", codestream(width, height, components))
    )
