"""GIF, and its LZW streams of nothing but zeros."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import cache


def gif_head(width: int, height: int) -> bytes:
    """Return the head of a GIF file with four colours."""
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0b1000_0001, 0, 0) + bytes(12)


def gif_frame(width: int, height: int, left: int = 0, top: int = 0) -> bytes:
    """Return a frame of a GIF file."""
    packed = lzw_zeros(width * height)
    blocks = [packed[start : start + 255] for start in range(0, len(packed), 255)]
    data = b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"
    return b"," + struct.pack("<HHHHB", left, top, width, height, 0) + b"\x02" + data


def gif(width: int, height: int) -> bytes:
    """Return a GIF file of one frame."""
    return gif_head(width, height) + gif_frame(width, height) + b";"


@cache
def lzw_zeros(count: int) -> bytes:
    """Return so many zeros as LZW with codes of 3 to 12 bits; a code stands for up to 4,090."""
    clear, end, following, width = 4, 5, 6, 3
    codes, left = [(clear, width)], count
    first = True
    while left:
        # The string of n zeros is the code 0 if n is 1, and otherwise the code n + 4.
        length = 1 if first else min(following - 4, 4091)
        length = min(length, left)
        codes.append((0 if length == 1 else length + 4, width))
        left -= length
        if not first and following < 4096:
            following += 1
            if following == 2**width and width < 12:
                width += 1
        first = False
    return pack_bits([*codes, (end, width)])


def pack_bits(codes: Iterable[tuple[int, int]]) -> bytes:
    """Return codes of so many bits each as bytes, the lowest bits first."""
    packed, buffer, held = bytearray(), 0, 0
    for code, width in codes:
        buffer |= code << held
        held += width
        while held >= 8:
            packed.append(buffer & 255)
            buffer >>= 8
            held -= 8
    return bytes(packed) + bytes([buffer] if held else [])
