"""Damaged files: small valid ones of every container, changed at random.

A file follows from a seed and its number alone, so that each can be made again.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fuzz.good_files import good_files
from fuzz.writers.png import PNG_MAGIC, png_chunk

MOST_BYTES = 256 * 2**10  # of a damaged file
MOST_CHANGES = 6
# Numbers at which programs go wrong: borders of types, and of the service's own limit.
BORDERS = (0, 1, 2, 127, 128, 255, 256, 8_000, 8_001, 32_767, 32_768, 65_535, 65_536, 2**24 - 1,
           64_000_000, 64_000_001, 2**31 - 1, 2**31, 2**32 - 1)  # fmt: skip
FORMS = ("B", "<H", ">H", "<I", ">I")


@dataclass(frozen=True, slots=True)
class DamagedFile:
    """A damaged file.

    Attributes:
        name: its seed and number, and what it was made of.
        container: what it was made of.
        data: its bytes.
    """

    name: str
    container: str
    data: bytes


def damaged_file(seed: int, number: int) -> DamagedFile:
    """Return the damaged file of a number, always the same bytes."""
    rng = random.Random(f"{seed} {number}")
    files = good_files()
    kind = rng.choice(list(files))
    data = damage(rng, files[kind], files)
    return DamagedFile(f"damaged-{seed}-{number}-{kind}", kind.partition("-")[0], data)


def damage(rng: random.Random, data: bytes, others: Mapping[str, bytes]) -> bytes:
    """Return a file with 1 to `MOST_CHANGES` changes.

    Args:
        others: whose bytes it may get.
    """
    is_png = data.startswith(PNG_MAGIC)
    for _ in range(rng.randint(1, MOST_CHANGES)):
        if not data:
            break
        change = rng.choice(CHANGES)
        data = change(rng, bytearray(data), others)[:MOST_BYTES]
    # A decoder looks no further than a checksum that is wrong.
    return with_right_sums(data) if is_png and rng.random() < 0.7 else data


Change = Callable[[random.Random, bytearray, Mapping[str, bytes]], bytes]


def flip_bits(rng: random.Random, data: bytearray, _: Mapping[str, bytes]) -> bytes:
    """Flip up to 16 bits anywhere."""
    for _number in range(rng.randint(1, 16)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def flip_bits_of_the_head(rng: random.Random, data: bytearray, _: Mapping[str, bytes]) -> bytes:
    """Flip up to 4 bits of the first bytes, where sizes and tables are."""
    for _number in range(rng.randint(1, 4)):
        data[rng.randrange(min(len(data), 200))] ^= 1 << rng.randrange(8)
    return bytes(data)


def overwrite(rng: random.Random, data: bytearray, _: Mapping[str, bytes]) -> bytes:
    """Write a run of one byte, or of noise, over what is there."""
    start, end = part_of(rng, data)
    fill = rng.choice((b"\0", b"\xff", b"\x80", None))
    data[start:end] = rng.randbytes(end - start) if fill is None else fill * (end - start)
    return bytes(data)


def set_number(rng: random.Random, data: bytearray, _: Mapping[str, bytes]) -> bytes:
    """Write a number at which programs go wrong."""
    form = rng.choice(FORMS)
    size = struct.calcsize(form)
    if len(data) >= size:
        number = rng.choice(BORDERS) % 256**size
        struct.pack_into(form, data, rng.randrange(len(data) - size + 1), number)
    return bytes(data)


def change_length(rng: random.Random, data: bytearray, _: Mapping[str, bytes]) -> bytes:
    """Change a number that may be a length: one that isn't more than what follows it."""
    form = rng.choice(FORMS)
    size = struct.calcsize(form)
    for _number in range(50):
        if len(data) < size:
            break
        place = rng.randrange(len(data) - size + 1)
        (length,) = struct.unpack_from(form, data, place)
        if 0 < length <= len(data) - place:
            other = rng.choice((length - 1, length + 1, 2 * length, length // 2, 0, -1, -length))
            struct.pack_into(form, data, place, other % 256**size)
            break
    return bytes(data)


def truncate(rng: random.Random, data: bytearray, _: Mapping[str, bytes]) -> bytes:
    """Cut off the end."""
    return bytes(data[: rng.randint(0, len(data))])


def remove(rng: random.Random, data: bytearray, _: Mapping[str, bytes]) -> bytes:
    """Take something out."""
    start, end = part_of(rng, data)
    del data[start:end]
    return bytes(data)


def repeat(rng: random.Random, data: bytearray, _: Mapping[str, bytes]) -> bytes:
    """Repeat something several times, right behind itself."""
    start, end = part_of(rng, data)
    return bytes(data[:end] + data[start:end] * rng.choice((1, 2, 8, 64)) + data[end:])


def exchange(rng: random.Random, data: bytearray, _: Mapping[str, bytes]) -> bytes:
    """Copy something to another place."""
    start, end = part_of(rng, data)
    place = rng.randrange(len(data))
    data[place : place + end - start] = data[start:end]
    return bytes(data)


def splice(rng: random.Random, data: bytearray, others: Mapping[str, bytes]) -> bytes:
    """Go on with the end of another file."""
    other = others[rng.choice(list(others))]
    return bytes(data[: rng.randint(0, len(data))] + other[rng.randint(0, len(other)) :])


def insert(rng: random.Random, data: bytearray, others: Mapping[str, bytes]) -> bytes:
    """Put a piece of another file into this one."""
    other = bytearray(others[rng.choice(list(others))])
    start, end = part_of(rng, other)
    place = rng.randint(0, len(data))
    return bytes(data[:place] + other[start:end] + data[place:])


def part_of(rng: random.Random, data: bytearray) -> tuple[int, int]:
    """Return where a part begins and ends: most are short."""
    start = rng.randrange(len(data))
    length = min(int(2 ** rng.uniform(0, 12)), len(data) - start)
    return start, start + length


CHANGES: tuple[Change, ...] = (
    flip_bits,
    flip_bits_of_the_head,
    overwrite,
    set_number,
    set_number,
    change_length,
    change_length,
    truncate,
    remove,
    repeat,
    exchange,
    splice,
    insert,
)


def with_right_sums(data: bytes) -> bytes:
    """Return a PNG whose chunks have the checksums that fit them, as far as there are chunks."""
    fixed, place = data[: len(PNG_MAGIC)], len(PNG_MAGIC)
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        if place + 12 + length > len(data):
            break
        start = place + 8
        fixed += png_chunk(data[place + 4 : start], data[start : start + length])
        place = start + length + 4
    return fixed + data[place:]
