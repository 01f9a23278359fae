"""AVIF and HEIC: pictures of a video codec in boxes."""

from __future__ import annotations

import struct
from typing import Final

from deployments.decoding.containers import boxes
from deployments.decoding.containers.found import Found, cut

AVIF: Final = {b"avif", b"avis"}
HEIC: Final = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
EITHER: Final = {b"mif1", b"msf1", b"mif2", b"miaf", b"MiHB"}


def brands(data: bytes) -> list[bytes]:
    """Return what the file says that it is, the most important first."""
    box = next(boxes.within(data, 0, min(len(data), 4096)), None)
    if box is None or box.kind != b"ftyp":
        return []
    listed = data[box.content + 8 : box.end]
    return [data[8:12], *(listed[n : n + 4] for n in range(0, len(listed) - 3, 4))]


def find(data: bytes) -> Found:
    """Find the sizes that the file declares: those of the picture, its tiles and its thumbnails."""
    meta = boxes.first(data, b"meta", 0, len(data))
    movie = boxes.first(data, b"moov", 0, len(data))
    sizes = []
    if meta is not None:
        sizes += _sizes(data, meta)
    if movie is not None:
        sizes += _track_sizes(data, movie.content, movie.end, 0)
    if not sizes:
        raise cut("the file declares no size of its picture, or is cut before it")
    # The decoder says which of them is the picture's, when it has opened the file.
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    return Found(data, width, height)


def without_metadata(data: bytes) -> bytes:
    """Return the file with its EXIF and XMP hidden: same places, other names."""
    hidden = bytearray(data)
    meta = boxes.first(data, b"meta", 0, len(data))
    items = boxes.first(data, b"iinf", meta.content + 4, meta.end) if meta else None
    if items:
        start = items.content + (6 if data[items.content] == 0 else 8)
        for entry in boxes.within(data, start, items.end):
            place = entry.content + (8 if data[entry.content] < 3 else 10)
            if entry.kind == b"infe" and hidden[place : place + 4] in (b"Exif", b"mime", b"uri "):
                hidden[place : place + 4] = b"none"
    return bytes(hidden)


def _sizes(data: bytes, meta: boxes.Box) -> list[tuple[int, int]]:
    properties = boxes.first(data, b"iprp", meta.content + 4, meta.end)
    if properties is None:
        return []
    listed = boxes.first(data, b"ipco", properties.content, properties.end)
    if listed is None:
        return []
    return [
        struct.unpack_from(">II", data, box.content + 4)
        for box in boxes.within(data, listed.content, listed.end)
        if box.kind == b"ispe" and box.end - box.content >= 12
    ]


# The boxes around what describes a video's frames.
NESTED: Final = {b"trak": 0, b"mdia": 0, b"minf": 0, b"stbl": 0, b"stsd": 8}


def _track_sizes(data: bytes, place: int, end: int, depth: int) -> list[tuple[int, int]]:
    sizes: list[tuple[int, int]] = []
    for box in boxes.within(data, place, end):
        if box.kind in NESTED and depth < 6:
            sizes += _track_sizes(data, box.content + NESTED[box.kind], box.end, depth + 1)
        elif box.kind in (b"av01", b"hvc1", b"hev1") and box.end - box.content >= 28:
            sizes.append(struct.unpack_from(">HH", data, box.content + 24))
    return sizes
