"""WebP, animated or not. Its decoder allocates the canvas as soon as it sees the file."""

from __future__ import annotations

import struct
from typing import Final

from deployments.decoding.containers.found import Found, cut, xmp_orientation

ANIMATION, ALPHA = 0x02, 0x10
PIXELS: Final = (b"VP8 ", b"VP8L")


def find(data: bytes) -> Found:
    """Find the picture or the first frame, and count the other frames."""
    canvas: tuple[int, int] | None = None
    exif = profile = xmp = animation = alpha = pixels = frame = b""
    frames, place, size = 0, 12, (0, 0)
    while place + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, place)
        end = place + 8 + length + length % 2
        body = memoryview(data)[place + 8 : place + 8 + length]
        if kind == b"VP8X" and len(body) >= 10 and canvas is None:
            canvas = _three(body, 4) + 1, _three(body, 7) + 1
        elif kind in PIXELS and not pixels and not frame:
            pixels, size = data[place:end], _size(kind, bytes(body[:10]))
        elif kind == b"ALPH" and not alpha and not pixels:
            alpha = data[place:end]
        elif kind == b"ANIM" and len(body) >= 6:
            animation = data[place:end]
        elif kind == b"ANMF" and len(body) >= 16:
            frames += 1
            if not frame:
                frame = data[place:end]
                size = _frame_size(bytes(body))
        elif len(body) == length and kind == b"EXIF":
            exif = exif or bytes(body).removeprefix(b"Exif\0\0")
        elif len(body) == length and kind == b"ICCP":
            profile = profile or bytes(body)
        elif len(body) == length and kind == b"XMP ":
            xmp = xmp or bytes(body)
        place = end
    if frame and canvas and animation:
        flags, (width, height), chunks = ANIMATION | ALPHA, canvas, [animation, frame]
    elif pixels:
        flags, (width, height), chunks = ALPHA if alpha else 0, size, [alpha, pixels]
    else:
        raise cut("the WebP is cut before its pixels")
    if flags and width and height:
        extended = struct.pack("<BxxxHBHB", flags, *_low(width - 1), *_low(height - 1))
        chunks.insert(0, struct.pack("<4sI", b"VP8X", 10) + extended)
    content = b"WEBP" + b"".join(chunks)
    return Found(
        struct.pack("<4sI", b"RIFF", len(content)) + content,
        width,
        height,
        allocated=max(width * height, size[0] * size[1]),
        exif=exif,
        orientation=xmp_orientation(xmp),
        profile=profile,
        animated=bool(frame) and frames > 1,
        skipped=max(0, frames - 1),
    )


def _three(body: memoryview, place: int) -> int:
    return int.from_bytes(body[place : place + 3], "little")


def _low(number: int) -> tuple[int, int]:
    return number & 0xFFFF, number >> 16


def _size(kind: bytes, body: bytes) -> tuple[int, int]:
    """Return the size that the pixels themselves declare."""
    if kind == b"VP8 " and len(body) >= 10 and body[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and len(body) >= 5 and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    raise cut("the WebP is cut before its pixels")


def _frame_size(body: bytes) -> tuple[int, int]:
    """Return the larger of the sizes that a frame declares, and that its pixels declare."""
    width, height = _three(memoryview(body), 6) + 1, _three(memoryview(body), 9) + 1
    place = 16
    while place + 8 <= len(body):
        kind, length = struct.unpack_from("<4sI", body, place)
        if kind in PIXELS:
            inner = _size(kind, body[place + 8 : place + 18])
            return max(width, inner[0]), max(height, inner[1])
        place += 8 + length + length % 2
    return width, height
