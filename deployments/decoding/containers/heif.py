"""AVIF and HEIC: pictures of a video codec in boxes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from deployments.decoding.containers import av1, boxes
from deployments.decoding.containers.found import Found, cut

AVIF: Final = {b"avif", b"avis"}
HEIC: Final = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
MAX_ITEMS: Final = 10_000
EITHER: Final = {b"mif1", b"msf1", b"mif2", b"miaf", b"MiHB"}


def brands(data: bytes) -> list[bytes]:
    """Return what the file says that it is, the most important first."""
    box = next(boxes.within(data, 0, min(len(data), 4096)), None)
    if box is None or box.kind != b"ftyp":
        return []
    listed = data[box.content + 8 : box.end]
    return [data[8:12], *(listed[n : n + 4] for n in range(0, len(listed) - 3, 4))]


def find(data: bytes) -> Found:
    """Find the sizes that the file declares: of its pictures, and of the pixels themselves.

    The decoder allocates by what the pixels say, and then scales that to what the boxes say.
    """
    meta = boxes.first(data, b"meta", 0, len(data))
    movie = boxes.first(data, b"moov", 0, len(data))
    sizes = []
    if meta is not None:
        sizes += _sizes(data, meta)
        for content in _items(data, meta):
            sizes += av1.sizes(content)
    if movie is not None:
        sizes += _track_sizes(data, movie.content, movie.end, 0)
    if not sizes:
        raise cut("this HEIC or AVIF file declares no size, or is cut before it")
    # The decoder says which of them is the picture's, when it has opened the file.
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    return Found(data, width, height)


def without_metadata(data: bytes) -> bytes:
    """Return the file with its EXIF and XMP hidden: same places, other names."""
    hidden = bytearray(data)
    meta = boxes.first(data, b"meta", 0, len(data))
    for _, kind, place in _kinds(data, meta) if meta else ():
        if kind in (b"Exif", b"mime", b"uri "):
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


def _items(data: bytes, meta: boxes.Box) -> Iterator[bytes]:
    """Yield the content of the items in AV1."""
    kinds = {number: kind for number, kind, _ in _kinds(data, meta)}
    if b"av01" not in kinds.values():
        return
    places = boxes.first(data, b"iloc", meta.content + 4, meta.end)
    inside = boxes.first(data, b"idat", meta.content + 4, meta.end)
    if places is None:
        return
    reader, left = Numbers(data, places.content, places.end), 2 * len(data)
    version = reader.take(1)
    reader.take(3)
    widths = reader.take(1)
    of_offset, of_length = widths >> 4, widths & 15
    widths = reader.take(1)
    of_base, of_index = widths >> 4, widths & 15 if version else 0
    for _ in range(min(reader.take(4 if version == 2 else 2), MAX_ITEMS)):
        number = reader.take(4 if version == 2 else 2)
        within = reader.take(2) & 15 if version else 0
        reader.take(2)
        base, parts = reader.take(of_base), []
        for _ in range(min(reader.take(2), MAX_ITEMS)):
            reader.take(of_index)
            start, length = base + reader.take(of_offset), reader.take(of_length)
            start += inside.content if within == 1 and inside else 0
            end = min(start + length, len(data)) if length else len(data)
            left -= max(0, end - start)
            if left < 0:
                raise cut("parts of its pixels lie over each other")
            parts.append(data[start:end])
        if kinds.get(number) == b"av01":
            yield b"".join(parts)


class Numbers:
    """Whole numbers of a box, one after the other; zero behind its end."""

    def __init__(self, data: bytes, place: int, end: int) -> None:
        self.data, self.place, self.end = data, place, end

    def take(self, size: int) -> int:
        """Return the next number, of so many bytes."""
        start, self.place = self.place, self.place + size
        return int.from_bytes(self.data[start : min(self.place, self.end)], "big")


def _kinds(data: bytes, meta: boxes.Box) -> Iterator[tuple[int, bytes, int]]:
    """Yield the number and the kind of each item, and where its kind stands."""
    items = boxes.first(data, b"iinf", meta.content + 4, meta.end)
    if items is None or items.content >= len(data):
        return
    start = items.content + (6 if data[items.content] == 0 else 8)
    for entry in boxes.within(data, start, items.end):
        if entry.kind == b"infe" and entry.end - entry.content >= 12:
            wide = data[entry.content] >= 3
            place = entry.content + 4
            number = int.from_bytes(data[place : place + (4 if wide else 2)], "big")
            place = entry.content + (10 if wide else 8)
            yield number, data[place : place + 4], place


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
