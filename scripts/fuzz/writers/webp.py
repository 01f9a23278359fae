"""WebP."""

from __future__ import annotations

import struct

from fuzz.writers.gif import pack_bits


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a WebP file of chunks: their kinds and contents."""
    body = b"WEBP" + b"".join(riff_chunk(kind, data) for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def riff_chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a WebP file."""
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def webp_pixels(width: int, height: int, alpha: bool = True) -> bytes:
    """Return a lossless picture whose pixels take no bits: each of its codes has one symbol."""
    head = [(0x2F, 8), (width - 1, 14), (height - 1, 14), (alpha, 1), (0, 3)]
    no_transform, no_cache, no_groups = (0, 1), (0, 1), (0, 1)
    one_symbol = [(1, 1), (0, 1), (0, 1), (0, 1)]  # a simple code, of one symbol, of one bit: 0
    return pack_bits([*head, no_transform, no_cache, no_groups, *(5 * one_symbol)])


def webp(width: int, height: int, alpha: bool = True) -> bytes:
    """Return a lossless WebP file of 34 bytes or less."""
    return riff((b"VP8L", webp_pixels(width, height, alpha)))


def webp_canvas(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
    """Return the chunk that tells the size of an extended WebP file."""
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"VP8X", bytes([flags, 0, 0, 0]) + size


def webp_animation(width: int, height: int, frames: int) -> bytes:
    """Return an animated WebP file; each frame covers the canvas."""
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    pixels = riff_chunk(b"VP8L", webp_pixels(width, height))
    frame = (b"ANMF", bytes(6) + size + (100).to_bytes(3, "little") + b"\0" + pixels)
    return riff(webp_canvas(width, height, 0b10), (b"ANIM", bytes(6)), *[frame] * frames)
