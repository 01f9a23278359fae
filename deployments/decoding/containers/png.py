"""PNG, animated or not."""

from __future__ import annotations

import binascii
import struct
import zlib
from typing import Final

from deployments.decoding.containers.found import MAX_METADATA, Found, cut, xmp_orientation

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
TRANSPARENCY: Final = {0: 2, 2: 6}  # bytes of tRNS, by the kind of colour
RAW_EXIF: Final = (b"Raw profile type exif", b"Raw profile type APP1")


def find(data: bytes) -> Found:
    """Find the picture that every viewer shows, and count the other frames."""
    header = palette = transparency = exif = profile = xmp = b""
    pixels: list[memoryview] = []
    frames, declared, first_is_frame = 0, False, False
    view, place = memoryview(data), len(SIGNATURE)
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        body = view[place + 8 : place + 8 + length]
        whole = data[place : place + 12 + length] if kind in (b"IHDR", b"PLTE") else b""
        if kind == b"IHDR" and not header:
            header = whole
        elif kind == b"PLTE" and not palette:
            palette = whole
        elif kind == b"IDAT":
            pixels.append(body)
        elif kind == b"IEND" or len(body) < length:
            break
        elif kind == b"acTL":
            declared = True
        elif kind == b"fcTL":
            frames += 1
            first_is_frame |= not pixels
        elif kind == b"CgBI":
            raise cut("it is in Apple's own variant of PNG, which is for apps only")
        elif length <= MAX_METADATA:
            block = bytes(body)
            if (
                kind == b"tRNS"
                and not pixels
                and not transparency
                and _is_whole(view, place, length)
            ):
                transparency = block
            elif kind == b"eXIf":
                exif = exif or block.removeprefix(b"Exif\0\0")
            elif kind == b"iCCP":
                profile = profile or _profile(block)
            elif kind == b"iTXt" and block.startswith(b"XML:com.adobe.xmp\0"):
                xmp = xmp or block
            elif kind in (b"tEXt", b"zTXt") and block.partition(b"\0")[0] in RAW_EXIF:
                exif = exif or _raw_exif(kind, block)
        place += 12 + length
    if len(header) < 25 or not pixels:
        raise cut("the PNG is cut before its pixels")
    width, height, _, colours = struct.unpack_from(">IIBB", header, 8)
    pictures = frames + (not first_is_frame) if declared else 1
    parts: list[bytes | memoryview] = [SIGNATURE, header, palette]
    if transparency and len(transparency) >= TRANSPARENCY.get(colours, 0):
        parts += _chunk(b"tRNS", transparency)
    size = sum(len(part) for part in pixels)
    parts += [struct.pack(">I4s", size, b"IDAT"), *pixels, bytes(4), *_chunk(b"IEND", b"")]
    return Found(
        b"".join(parts),
        width,
        height,
        exif=exif,
        orientation=xmp_orientation(xmp),
        profile=profile,
        animated=pictures > 1,
        skipped=pictures - 1,
        media_type="image/apng" if declared and pictures > 1 else "image/png",
    )


def _chunk(kind: bytes, body: bytes) -> list[bytes]:
    checksum = zlib.crc32(kind + body)
    return [struct.pack(">I4s", len(body), kind), body, struct.pack(">I", checksum)]


def _is_whole(view: memoryview, place: int, length: int) -> bool:
    checksum = zlib.crc32(view[place + 4 : place + 8 + length])
    return bytes(view[place + 8 + length : place + 12 + length]) == struct.pack(">I", checksum)


def _inflated(block: bytes) -> bytes:
    """Return what was deflated, or nothing if that is broken or too large."""
    inflater = zlib.decompressobj()
    try:
        content = inflater.decompress(block, MAX_METADATA)
    except zlib.error:
        return b""
    return b"" if inflater.unconsumed_tail else content


def _profile(block: bytes) -> bytes:
    return _inflated(block.partition(b"\0")[2][1:])


def _raw_exif(kind: bytes, block: bytes) -> bytes:
    """Return EXIF as ImageMagick writes it: the name, a length, and hexadecimal digits."""
    text = block.partition(b"\0")[2]
    if kind == b"zTXt":
        text = _inflated(text[1:])
    digits = b"".join(text.split()[2:])
    try:
        return binascii.unhexlify(digits).removeprefix(b"Exif\0\0")
    except binascii.Error:
        return b""
