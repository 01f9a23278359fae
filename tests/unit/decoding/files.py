"""Files for the tests of decoding, whole and out of joint."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from deployments.decoding.image import decode
from deployments.limits import ImageLimits

LIMITS = ImageLimits()


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def read(data):
    return decode(data, LIMITS)


def texture(seed=0, width=96, height=64):
    """A coarse colourful pattern."""
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def png_chunk(kind, body, wrong=False):
    checksum = zlib.crc32(kind + body) ^ wrong
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def in_png(png, chunk):
    """Insert a chunk behind the header."""
    return png[:33] + chunk + png[33:]


def in_jpeg(jpeg, marker, body):
    """Insert a segment behind the start."""
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body + jpeg[2:]


def in_webp(webp, kind, body):
    """Make a simple WebP an extended one with another chunk."""
    size = Image.open(io.BytesIO(webp)).size
    flags = {b"EXIF": 0x08, b"ICCP": 0x20, b"XMP ": 0x04}[kind]
    head = struct.pack("<4sIBxxxHBHB", b"VP8X", 10, flags, size[0] - 1, 0, size[1] - 1, 0)
    chunk = struct.pack("<4sI", kind, len(body)) + body + bytes(len(body) % 2)
    content = b"WEBP" + head + (chunk + webp[12:] if kind == b"ICCP" else webp[12:] + chunk)
    return struct.pack("<4sI", b"RIFF", len(content)) + content


def exif(*entries):
    """An EXIF block of (tag, type, count, four bytes), little-endian."""
    body = b"".join(struct.pack("<HHI4s", *entry) for entry in sorted(entries))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4)


TURNED = (0x0112, 3, 1, b"\x06\0\0\0")
