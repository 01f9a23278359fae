"""JPEG, and the files of several of them."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from fuzz.writers.tiff import LONG, Field, exif


def segment(marker: int, body: bytes) -> bytes:
    """Return a segment of a JPEG file."""
    return struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body


def jpeg_tables(alternating: int) -> bytes:
    """Return a quantization table, and Huffman tables with one code of one bit each.

    Args:
        alternating: what the code of the alternating coefficients stands for.
    """
    one_code = bytes([1]) + bytes(15)
    return (
        segment(0xDB, bytes([0]) + bytes([1]) * 64)
        + segment(0xC4, bytes([0x00]) + one_code + bytes([0]))
        + segment(0xC4, bytes([0x10]) + one_code + bytes([alternating]))
    )


def jpeg_frame(width: int, height: int, marker: int = 0xC0, components: int = 1) -> bytes:
    """Return the segment that tells the size of a JPEG file."""
    body = struct.pack(">BHHB", 8, height, width, components)
    return segment(marker, body + b"".join(bytes([n + 1, 0x11, 0]) for n in range(components)))


def jpeg_scan(first: int, last: int, data: bytes, components: int = 1) -> bytes:
    """Return a scan of a JPEG file: coefficients `first` to `last` of all components."""
    names = b"".join(bytes([n + 1, 0]) for n in range(components))
    return segment(0xDA, bytes([components]) + names + bytes([first, last, 0])) + data


def jpeg(width: int, height: int, *, segments: bytes = b"", components: int = 1) -> bytes:
    """Return a grey (or coloured) baseline JPEG file, two bits for each block."""
    blocks = -(-width // 8) * -(-height // 8) * components
    data = bytes(-(-2 * blocks // 8))
    frame = jpeg_frame(width, height, 0xC0, components)
    scan = jpeg_scan(0, 63, data, components)
    return b"\xff\xd8" + segments + jpeg_tables(0) + frame + scan + b"\xff\xd9"


def progressive_jpeg(width: int, height: int, scans: int) -> bytes:
    """Return a grey progressive JPEG file with so many scans of alternating coefficients.

    Each scan says of 16,384 blocks at a time, in 15 bits, that they have none.
    """
    blocks = -(-width // 8) * -(-height // 8)
    runs = bytes(-(-15 * -(-blocks // 2**14) // 8))
    direct = jpeg_scan(0, 0, bytes(-(-blocks // 8)))
    frame = jpeg_frame(width, height, 0xC2)
    return (
        b"\xff\xd8"
        + jpeg_tables(0xE0)
        + frame
        + direct
        + jpeg_scan(1, 63, runs) * scans
        + b"\xff\xd9"
    )


def mpo(pictures: Sequence[bytes], *, count: int | None = None, offset: int | None = None) -> bytes:
    """Return JPEG files as one of several pictures (MPO).

    Args:
        count: how many pictures it says that it has.
        offset: where it says that each picture after the first begins.
    """
    count = len(pictures) if count is None else count
    entries = len(pictures) * 16
    # Offsets count from the index's own head, which comes 2 + 4 + 4 bytes into the file.
    index = 2 + 4 + 4
    size = index + 8 + 2 + 3 * 12 + 4 + entries
    table, place = b"", size + len(pictures[0]) - 2
    for number, picture in enumerate(pictures):
        where = 0 if number == 0 else place - index if offset is None else offset
        table += struct.pack("<IIIHH", 0x030000 if number == 0 else 0, len(picture), where, 0, 0)
        place += len(picture) if number else 0
    fields: dict[int, Field] = {
        0xB000: (7, b"0100"),
        0xB001: (LONG, [count]),
        0xB002: (7, table),
    }
    head = segment(0xE2, b"MPF\0" + exif(fields))
    return b"\xff\xd8" + head + pictures[0][2:] + b"".join(pictures[1:])
