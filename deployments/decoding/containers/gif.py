"""GIF, animated or not."""

from __future__ import annotations

import struct

from deployments.decoding.containers.found import Found, cut


def find(data: bytes) -> Found:
    """Find the first frame, and count the others."""
    if len(data) < 13:
        raise cut("the GIF is cut in its header")
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    start = 13 + _palette(flags)
    parts, frames, place, control = [data[:start]], 0, start, b""
    while place + 2 <= len(data):
        kind, label = data[place], data[place + 1]
        if kind == 0x21:
            end = _after_blocks(data, place + 2)
            if label == 0xF9 and frames == 0 and end - place >= 8 and data[place + 2] >= 4:
                control = data[place:end]
        elif kind == 0x2C and place + 10 <= len(data):
            left, top, across, down, flags = struct.unpack_from("<HHHHB", data, place + 1)
            end = _after_blocks(data, place + 11 + _palette(flags))
            if frames == 0:
                # The decoder makes the screen as large as its first frame needs.
                width, height = max(width, left + across), max(height, top + down)
                parts += [control, data[place:end], b";" if end <= len(data) else b""]
            frames += 1
        else:
            break
        place = end
    if frames == 0:
        raise cut("the GIF is cut before its first frame")
    return Found(b"".join(parts), width, height, animated=frames > 1, skipped=frames - 1)


def _palette(flags: int) -> int:
    """Return the bytes of the palette that the flags announce."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _after_blocks(data: bytes, place: int) -> int:
    """Return where the blocks from a place on end: behind the end of the file if they are cut."""
    while place < len(data) and data[place]:
        place += data[place] + 1
    return place + 1
