"""The directories of a TIFF file: also what EXIF is made of, and most cameras' raw files.

This reader takes what it can get: an entry out of place is as good as none.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

SIZES: Final = {1: 1, 2: 1, 3: 2, 4: 4, 6: 1, 7: 1, 8: 2, 9: 4, 11: 4, 12: 8, 13: 4, 16: 8, 18: 8}
SIZES.update({5: 8, 10: 8})
WHOLE_NUMBERS: Final = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 18: "Q"}

ORIENTATION: Final = 0x0112
SUB_DIRECTORIES: Final = 0x014A
# TIFF itself, and the raw files of Panasonic and Olympus, which differ in this number only.
MAGICS: Final = {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"IIU\0", b"IIRO", b"IIRS", b"MMOR"}
MAX_DIRECTORIES: Final = 1000


class Entry(NamedTuple):
    """A field of a directory: `length` values of a `kind`, from the byte at `place` on."""

    kind: int
    length: int
    place: int
    size: int


@dataclass(frozen=True, slots=True)
class Directory:
    data: bytes
    order: str
    entries: dict[int, Entry]
    following: int
    children: tuple[int, ...] = ()

    def numbers(self, tag: int, most: int = 1000) -> list[int]:
        """Return the whole numbers of a field, `most` of them; none if it holds no such numbers."""
        entry = self.entries.get(tag)
        if entry is None or entry.kind not in WHOLE_NUMBERS:
            return []
        code, count = WHOLE_NUMBERS[entry.kind], min(entry.length, most)
        return list(struct.unpack_from(f"{self.order}{count}{code}", self.data, entry.place))

    def number(self, tag: int, default: int = 0) -> int:
        """Return the first whole number of a field."""
        return next(iter(self.numbers(tag, 1)), default)

    def content(self, tag: int) -> bytes:
        """Return the bytes of a field."""
        entry = self.entries.get(tag)
        return self.data[entry.place : entry.place + entry.size] if entry else b""

    @property
    def orientation(self) -> int:
        number = self.number(ORIENTATION, 1)
        return number if 1 <= number <= 8 else 1


def is_wide(data: bytes) -> bool:
    """Return whether offsets take 8 bytes (BigTIFF)."""
    return data[:4] in (b"II+\0", b"MM\0+")


def order_of(data: bytes) -> str:
    """Return the byte order as `struct` writes it."""
    return ">" if data[:2] == b"MM" else "<"


def read(data: bytes, place: int) -> Directory | None:
    """Return the directory at a place, with the entries that lie inside the file."""
    order, wide = order_of(data), is_wide(data)
    count_code, entry_code, step, room = ("Q", "HHQ", 20, 8) if wide else ("H", "HHI", 12, 4)
    offset_code = "Q" if wide else "I"
    try:
        (count,) = struct.unpack_from(order + count_code, data, place)
    except struct.error:
        return None
    place += struct.calcsize(order + count_code)
    entries: dict[int, Entry] = {}
    for start in range(place, min(place + step * min(count, 4096), len(data) - step + 1), step):
        tag, kind, length = struct.unpack_from(order + entry_code, data, start)
        size = SIZES.get(kind, 0) * length
        value = start + step - room
        if size > room:
            (value,) = struct.unpack_from(order + offset_code, data, value)
        if size and value + size <= len(data) and tag not in entries:
            entries[tag] = Entry(kind, length, value, size)
    try:
        (following,) = struct.unpack_from(order + offset_code, data, place + step * count)
    except (struct.error, OverflowError):
        following = 0
    found = Directory(data, order, entries, following)
    children = tuple(found.numbers(SUB_DIRECTORIES, 64))
    return Directory(data, order, entries, following, children)


def all_of(data: bytes) -> Iterator[Directory]:
    """Yield the directories of a file, and those inside of them, in their order."""
    if data[:4] not in MAGICS or (len(data) < 16 and is_wide(data)) or len(data) < 8:
        return
    order = order_of(data)
    (first,) = struct.unpack_from(order + ("8xQ" if is_wide(data) else "4xI"), data)
    to_read = [first]
    seen: set[int] = set()
    while to_read and len(seen) < MAX_DIRECTORIES:
        place = to_read.pop(0)
        if not place or place in seen:
            continue
        seen.add(place)
        directory = read(data, place)
        if directory is None:
            continue
        yield directory
        to_read[:0] = [*directory.children, directory.following]


def orientation(exif: bytes) -> int | None:
    """Return the orientation that an EXIF block gives, 1 to 8; None if it gives none."""
    first = next(all_of(exif), None)
    return first.orientation if first and ORIENTATION in first.entries else None
