"""BMP, what is not an image format of the service, and files with numbers written over."""

from __future__ import annotations

import struct


def bmp(
    width: int,
    height: int,
    data: bytes,
    bits: int = 8,
    *,
    compression: int = 0,
    colours: int = 0,
    palette: bytes | None = None,
    head_size: int = 40,
    offset: int | None = None,
) -> bytes:
    """Return a BMP file; `palette` is black if it is None, and `offset` where pixels begin."""
    if palette is None:
        palette = bytes(4 * 2**bits) if bits <= 8 else b""
    info = struct.pack(
        "<IiiHHIIiiII", head_size, width, height, 1, bits, compression, len(data), 0, 0, colours, 0
    )
    start = 14 + len(info) + len(palette) if offset is None else offset
    size = 14 + len(info) + len(palette) + len(data)
    return b"BM" + struct.pack("<IHHI", size & 0xFFFFFFFF, 0, 0, start) + info + palette + data


def iptc(inner: bytes, width: int, height: int) -> bytes:
    """Return an IPTC file that says a size and holds another picture, in pieces."""

    def field(record: int, dataset: int, data: bytes) -> bytes:
        return struct.pack(">BBBH", 0x1C, record, dataset, len(data)) + data

    head = field(3, 60, b"\1\0") + field(3, 20, struct.pack(">H", width))
    head += field(3, 30, struct.pack(">H", height)) + field(3, 120, b"\x05")
    pieces = range(0, len(inner), 30_000)
    return head + b"".join(field(8, 10, inner[start : start + 30_000]) for start in pieces)


def ico(inner: bytes, side: int = 16, *, kind: int = 1) -> bytes:
    """Return an icon (or a cursor: 2) that says it is small, whatever the picture in it is."""
    entry = struct.pack("<BBBBHHII", side, side, 0, 0, 1, 32, len(inner), 22)
    return struct.pack("<HHH", 0, kind, 1) + entry + inner


def icns(inner: bytes) -> bytes:
    """Return an icon of macOS that says 16 x 16."""
    entry = b"icp4" + struct.pack(">I", 8 + len(inner)) + inner
    return b"icns" + struct.pack(">I", 8 + len(entry)) + entry


def psd(width: int, height: int, layers: bytes, channels: int = 3) -> bytes:
    """Return a Photoshop file; `layers` is the content of its section of layers."""
    head = b"8BPS" + struct.pack(">H6xHIIHH", 1, channels, height, width, 8, 3)
    section = struct.pack(">I", len(layers)) + layers
    return head + bytes(4) + bytes(4) + section + bytes(2) + bytes(width * height * channels)


def patched(data: bytes, *places: tuple[int, str, int]) -> bytes:
    """Return a file with numbers written over: where, as what, and which."""
    changed = bytearray(data)
    for place, form, number in places:
        struct.pack_into(form, changed, place, number)
    return bytes(changed)
