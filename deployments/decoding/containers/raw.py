"""Cameras' raw files: the largest JPEG that the camera put into them.

That is the photo as its camera developed it, in full size with most cameras. To develop the values
of the sensor would take LibRaw and seconds a photo, and give other colours than those that the
photographer has seen. Even its previews are no reason for LibRaw: they are found with few lines.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from deployments.decoding.containers import boxes, directories, jpeg
from deployments.decoding.containers.directories import Directory
from deployments.decoding.containers.found import Found
from deployments.errors import BrokenImage

FUJI: Final = b"FUJIFILMCCD-RAW"
DNG, MAKE, PHOTOMETRIC, COMPRESSION = 0xC612, 271, 262, 259
SENSOR: Final = {32803, 34892}  # what `PHOTOMETRIC` says of a sensor's values
# Where directories point to JPEGs: a place, and a length.
POINTERS: Final = ((513, 514), (273, 279), (324, 325))
PANASONIC: Final = 0x002E
OLYMPUS_MAKER, OLYMPUS_PREVIEW = 0x927C, 0x2020
DETAILS: Final = 0x8769
MAX_PREVIEWS: Final = 32  # cameras write one to four
SMALLEST: Final = 160 * 120
TYPES: Final = {
    b"canon": "image/x-canon-cr2",
    b"nikon": "image/x-nikon-nef",
    b"sony": "image/x-sony-arw",
    b"olympus": "image/x-olympus-orf",
    b"om digital": "image/x-olympus-orf",
    b"panasonic": "image/x-panasonic-rw2",
    b"pentax": "image/x-pentax-pef",
    b"ricoh": "image/x-pentax-pef",
    b"samsung": "image/x-samsung-srw",
}


def is_raw(data: bytes) -> bool:
    """Return whether a file is a camera's raw file."""
    if data.startswith(FUJI) or data[4:12] == b"ftypcrx " or data[8:11] == b"CR\x02":
        return True
    if data[:4] not in directories.MAGICS:
        return False
    if data[2:4] not in (b"*\0", b"\0*"):
        return not directories.is_wide(data)
    return any(
        DNG in directory.entries or directory.number(PHOTOMETRIC) in SENSOR
        for directory in directories.all_of(data)
    )


def find(data: bytes) -> Found:
    """Find the largest JPEG in the file, and turn it as the file says."""
    best: Found | None = None
    pictures: set[int] = set()
    for place, length in sorted(set(_previews(data)), key=lambda part: -part[1])[:MAX_PREVIEWS]:
        part = data[place : place + length]
        if not part.startswith(jpeg.START):
            continue
        try:
            found = jpeg.find(part)
        except BrokenImage:
            continue
        if jpeg.is_lossless(part):  # the sensor's values, and no picture
            continue
        pictures.add(place)
        if best is None or found.width * found.height > best.width * best.height:
            best = found
    if best is None or best.width * best.height < SMALLEST:
        raise BrokenImage(
            "The image can't be read: this raw file holds no picture but the sensor's values. "
            "Develop it, or convert it to JPEG, and send that."
        )
    exif, orientation, media_type = _about(data)
    return replace(
        best,
        exif=exif or best.exif,
        orientation=orientation if orientation is not None else best.orientation,
        skipped=len(pictures) - 1,
        media_type=media_type,
    )


def _about(data: bytes) -> tuple[bytes, int | None, str]:
    """Return the EXIF, the orientation, and the media type of a raw file."""
    if data.startswith(FUJI):
        return b"", None, "image/x-fuji-raf"
    if data[4:8] == b"ftyp":
        block = _canon_block(data, b"CMT1")
        return block, directories.orientation(block), "image/x-canon-cr3"
    first = next(directories.all_of(data), None)
    if first is None:
        return b"", None, "image/x-dcraw"
    maker = first.content(MAKE).lower()
    kind = next((kind for name, kind in TYPES.items() if maker.startswith(name)), "image/x-dcraw")
    if DNG in first.entries:
        kind = "image/x-adobe-dng"
    return data, first.orientation if directories.ORIENTATION in first.entries else None, kind


def _previews(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield where JPEGs may lie, with their lengths."""
    if data.startswith(FUJI):
        if len(data) >= 92:
            yield struct.unpack_from(">II", data, 84)
        return
    if data[4:8] == b"ftyp":
        yield from _canon_previews(data)
        return
    for directory in directories.all_of(data):
        for place, length in POINTERS:
            places, lengths = directory.numbers(place, 2), directory.numbers(length, 2)
            if len(places) == len(lengths) == 1:
                yield places[0], lengths[0]
        if PANASONIC in directory.entries:
            entry = directory.entries[PANASONIC]
            yield entry.place, entry.size
        if DETAILS in directory.entries:
            yield from _olympus_preview(data, directory)


def _olympus_preview(data: bytes, directory: Directory) -> Iterator[tuple[int, int]]:
    """Yield the preview of an ORF: in the camera settings among the maker's notes."""
    details = directories.read(data, directory.number(DETAILS))
    entry = details.entries.get(OLYMPUS_MAKER) if details else None
    if entry is None:
        return
    for name, skipped in ((b"OLYMPUS\0II", 12), (b"OM SYSTEM\0\0\0II", 16)):
        if data[entry.place : entry.place + len(name)] == name:
            notes = directories.read(data, entry.place + skipped)
            place = notes.number(OLYMPUS_PREVIEW) if notes else 0
            inner = directories.read(data, entry.place + place) if place else None
            if inner is not None and inner.number(0x0101):
                yield entry.place + inner.number(0x0101), inner.number(0x0102)


def _canon_block(data: bytes, kind: bytes) -> bytes:
    movie = boxes.first(data, b"moov", 0, len(data))
    canon = boxes.first(data, b"uuid", movie.content, movie.end) if movie else None
    block = boxes.first(data, kind, canon.content + 16, canon.end) if canon else None
    return data[block.content : block.end] if block else b""


def _canon_previews(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the JPEGs of a CR3: a track is one, and a box of its own holds a smaller one."""
    movie = boxes.first(data, b"moov", 0, len(data))
    for track in boxes.within(data, movie.content, movie.end) if movie else ():
        table = _deeper(data, track, b"mdia", b"minf", b"stbl") if track.kind == b"trak" else None
        if table is None:
            continue
        sizes = boxes.first(data, b"stsz", table.content, table.end)
        places = boxes.first(data, b"co64", table.content, table.end)
        if sizes and places and places.content + 16 <= len(data):
            (place,) = struct.unpack_from(">Q", data, places.content + 8)
            length, count, listed = struct.unpack_from(">III", data, sizes.content + 4)
            yield place, length or (listed if count else 0)
    for box in boxes.within(data, 0, len(data)):
        if box.kind == b"uuid":
            start = data.find(jpeg.START, box.content, min(box.end, box.content + 200))
            if start >= 0:
                yield start, box.end - start


def _deeper(data: bytes, box: boxes.Box, *kinds: bytes) -> boxes.Box | None:
    found: boxes.Box | None = box
    for kind in kinds:
        found = boxes.first(data, kind, found.content, found.end) if found else None
    return found
