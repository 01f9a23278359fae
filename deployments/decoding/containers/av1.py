"""AV1: the size that the pixels of an AVIF have, whatever the boxes around them say."""

from __future__ import annotations

from typing import Final

SEQUENCE_HEADER: Final = 1
MAX_UNITS: Final = 10_000


class Bits:
    """Bits of a header, the highest of each byte first; nothing but zeros behind its end."""

    def __init__(self, data: bytes) -> None:
        self.number = int.from_bytes(data, "big")
        self.left = 8 * len(data)

    def take(self, count: int) -> int:
        """Return the next bits as a number."""
        self.left -= count
        if self.left < 0:
            return 0
        return self.number >> self.left & ((1 << count) - 1)

    def variable(self) -> None:
        """Pass a number of the kind that counts its own bits."""
        zeros = 0
        while self.left > 0 and zeros < 32 and not self.take(1):
            zeros += 1
        if zeros < 32:
            self.take(zeros)


def sizes(data: bytes) -> list[tuple[int, int]]:
    """Return the largest width and height of each sequence header in a stream of units."""
    found, place = [], 0
    for _ in range(MAX_UNITS):
        if place >= len(data):
            break
        head = data[place]
        place += 2 if head & 4 else 1
        length = len(data) - place
        if head & 2:
            length = shift = 0
            while place < len(data) and shift < 56:
                length |= (data[place] & 127) << shift
                shift, place = shift + 7, place + 1
                if data[place - 1] < 128:
                    break
        if head >> 3 & 15 == SEQUENCE_HEADER:
            found.append(_size(Bits(data[place : place + min(length, 1024)])))
        place += length
    return found


def _size(bits: Bits) -> tuple[int, int]:
    """Return the size in a sequence header (5.5.1 of the specification)."""
    bits.take(3 + 1)  # profile, still picture
    if bits.take(1):  # a header for one picture
        bits.take(5)
    else:
        models = delay = 0
        if bits.take(1):  # timing
            bits.take(32)
            bits.take(32)
            if bits.take(1):
                bits.variable()
            models = bits.take(1)
            if models:
                delay = bits.take(5) + 1
                bits.take(32 + 5 + 5)
        initial_delay = bits.take(1)
        for _ in range(bits.take(5) + 1):
            bits.take(12)
            if bits.take(5) > 7:  # the level; from there on with a tier
                bits.take(1)
            if models and bits.take(1):
                bits.take(2 * delay + 1)
            if initial_delay and bits.take(1):
                bits.take(4)
    across, down = bits.take(4) + 1, bits.take(4) + 1
    return bits.take(across) + 1, bits.take(down) + 1
