"""TIFF with any number of pages."""

from __future__ import annotations

import math
import struct
from typing import Final

from deployments.decoding.containers import directories
from deployments.decoding.containers.directories import Directory
from deployments.decoding.containers.found import MAX_METADATA, Found, cut
from deployments.errors import BrokenImage

WIDTH, HEIGHT, BITS, STRIPS, ROWS, STRIP_SIZES = 256, 257, 258, 273, 278, 279
SAMPLES, PLANES, TILE_WIDTH, TILE_HEIGHT, TILES, TILE_SIZES = 277, 284, 322, 323, 324, 325
PROFILE: Final = 34675
# What says how the pixels lie. All else is left behind.
STRUCTURE: Final = {
    WIDTH, HEIGHT, BITS, 259, 262, 266, STRIPS, SAMPLES, ROWS, STRIP_SIZES, PLANES, 292, 293, 317,
    320, TILE_WIDTH, TILE_HEIGHT, TILES, TILE_SIZES, 332, 338, 339, 347, *range(512, 522),
    529, 530, 531, 532, 50674,
}  # fmt: skip
MAX_PIECES: Final = 400_000  # strips or tiles: each takes 200 bytes in the decoder


def find(data: bytes) -> Found:
    """Find the largest page, the first of equals, and count the others."""
    pages = [
        page for page in directories.all_of(data) if page.number(WIDTH) and page.number(HEIGHT)
    ]
    if not pages:
        raise cut("the TIFF has no page, or is cut before its directory")
    page = max(pages, key=lambda page: page.number(WIDTH) * page.number(HEIGHT))
    width, height = page.number(WIDTH), page.number(HEIGHT)
    tile = page.number(TILE_WIDTH), page.number(TILE_HEIGHT)
    allocated, pieces = 0, 1
    if TILES in page.entries and STRIPS not in page.entries and all(tile):
        # The decoder allocates whole tiles, whatever part of them the picture fills.
        across, down = math.ceil(width / tile[0]), math.ceil(height / tile[1])
        allocated, pieces = across * tile[0] * down * tile[1], across * down
    elif STRIPS in page.entries:
        pieces = math.ceil(height / max(1, min(page.number(ROWS, height), height)))
    samples = page.number(SAMPLES, 1)
    pieces *= samples if page.number(PLANES, 1) == 2 else 1
    if pieces > MAX_PIECES:
        raise BrokenImage(
            f"The image can't be decoded: its TIFF is cut into {pieces:,} pieces. Save it anew, "
            "with fewer and larger strips or tiles."
        )
    profile = page.content(PROFILE)
    return Found(
        _alone(data, page, pieces),
        width,
        height,
        allocated=allocated,
        samples=max(4, samples * max(page.numbers(BITS, 16), default=8) / 8),
        exif=data,
        orientation=page.orientation,
        profile=profile if len(profile) <= MAX_METADATA else b"",
        skipped=len(pages) - 1,
    )


def _alone(data: bytes, page: Directory, pieces: int) -> bytes:
    """Return the file with a new directory: one page, and only what says how its pixels lie."""
    wide = directories.is_wide(data)
    entry_code, room, offset_code = ("HHQ", 8, "Q") if wide else ("HHI", 4, "I")
    entries = sorted((tag, entry) for tag, entry in page.entries.items() if tag in STRUCTURE)
    body = struct.pack(page.order + ("Q" if wide else "H"), len(entries))
    for tag, entry in entries:
        count = entry.length
        if tag in (STRIPS, STRIP_SIZES, TILES, TILE_SIZES):
            count = min(count, pieces)
        unit = entry.size // entry.length
        size = unit * count
        if size <= room:
            value = data[entry.place : entry.place + size].ljust(room, b"\0")
        else:
            value = struct.pack(page.order + offset_code, entry.place)
        body += struct.pack(page.order + entry_code, tag, entry.kind, count) + value
    body += bytes(room)
    start = len(data) + len(data) % 2
    # Panasonic and Olympus write another number here; the decoders know TIFF's only.
    magic = data[:4] if wide else data[:2] + struct.pack(page.order + "H", 42)
    head = magic + struct.pack(
        page.order + ("HHQ" if wide else "I"), *((8, 0) if wide else ()), start
    )
    view = memoryview(data)
    return b"".join([head, view[len(head) :], bytes(len(data) % 2), body])
