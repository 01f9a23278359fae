"""Boxes, each with a length and a kind: what JPEG 2000, AVIF, HEIC and Canon's CR3 are made of."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

MAX_BOXES = 100_000


class Box(NamedTuple):
    """A box: its content lies between two places. `start` is where its length stands."""

    kind: bytes
    start: int
    content: int
    end: int


def within(data: bytes, place: int, end: int) -> Iterator[Box]:
    """Yield the boxes between two places, as far as they are whole; the last may be cut."""
    for _ in range(MAX_BOXES):
        if place + 8 > end:
            return
        length, kind = struct.unpack_from(">I4s", data, place)
        content = place + 8
        if length == 1 and place + 16 <= end:
            (length,) = struct.unpack_from(">Q", data, content)
            content += 8
        elif length == 0:
            length = end - place
        if length < content - place:
            return
        yield Box(kind, place, content, min(place + length, end))
        place += length


def first(data: bytes, kind: bytes, place: int, end: int) -> Box | None:
    """Return the first box of a kind between two places."""
    return next((box for box in within(data, place, end) if box.kind == kind), None)
