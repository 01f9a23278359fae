"""JPEG 2000: the bare codestream, or in boxes (JP2)."""

from __future__ import annotations

import struct
from typing import Final

from deployments.decoding.containers import boxes
from deployments.decoding.containers.found import MAX_METADATA, Found, cut
from deployments.errors import BrokenImage

CODESTREAM: Final = b"\xff\x4f\xff\x51"
SIGNATURE: Final = b"\0\0\0\x0cjP  \r\n\x87\n"
BY_NUMBER, BY_PROFILE = 1, 2  # how the colours are said
SRGB, GREY = 16, 17


def find(data: bytes) -> Found:
    """Find the picture. Of its boxes, only those stay that say what its channels are."""
    if data.startswith(CODESTREAM):
        return _found(data, data, 0)
    header = boxes.first(data, b"jp2h", 0, len(data))
    stream = boxes.first(data, b"jp2c", 0, len(data))
    if stream is None or header is None:
        raise cut("the JPEG 2000 is cut before its pixels")
    found = _found(b"", data, stream.content)
    channels = _channels(data, stream.content)
    kept, profile, colour = [], b"", False
    for box in boxes.within(data, header.content, header.end):
        if box.kind == b"ihdr" and box.end - box.content == 14:
            depth = data[stream.content + 42]
            rest = data[box.content + 11 : box.end]
            size = struct.pack(">IIHB", found.height, found.width, channels, depth)
            kept.append(_box(b"ihdr", size + rest))
        elif box.kind == b"colr" and box.end - box.content >= 3 and not colour:
            colour = True
            if data[box.content] == BY_NUMBER and box.end - box.content >= 7:
                kept.append(_box(b"colr", data[box.content : box.content + 7]))
                continue
            profile = data[box.content + 3 : box.end]
            number = GREY if channels < 3 and not _palette(data, header) else SRGB
            kept.append(_box(b"colr", struct.pack(">BBBI", BY_NUMBER, 0, 0, number)))
        elif box.kind in (b"bpcc", b"pclr", b"cmap", b"cdef"):
            kept.append(data[box.start : box.end])
    found.data = b"".join(
        [
            SIGNATURE,
            _box(b"ftyp", b"jp2 \0\0\0\0jp2 "),
            _box(b"jp2h", b"".join(kept)),
            struct.pack(">I4s", 0, b"jp2c"),
            memoryview(data)[stream.content : stream.end],
        ]
    )
    found.profile = profile if len(profile) <= MAX_METADATA else b""
    return found


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def _palette(data: bytes, header: boxes.Box) -> bool:
    return boxes.first(data, b"pclr", header.content, header.end) is not None


def _channels(data: bytes, place: int) -> int:
    return int(struct.unpack_from(">H", data, place + 40)[0])


def _found(content: bytes, data: bytes, place: int) -> Found:
    """Return what the codestream at a place says of its size."""
    if data[place : place + 4] != CODESTREAM or len(data) < place + 45:
        raise cut("the JPEG 2000 is cut before its pixels")
    right, bottom, left, top = struct.unpack_from(">IIII", data, place + 8)
    channels = _channels(data, place)
    if not 1 <= channels <= 4:
        raise BrokenImage(
            f"The image can't be decoded: its JPEG 2000 has {channels:,} channels. Send one with "
            "1 to 4: grey or colours, with or without transparency."
        )
    # A whole number of four bytes for each sample, whatever its depth, and the sample itself.
    return Found(content, right - left, bottom - top, samples=6 * channels)
