"""Pictures that follow from a name."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import numpy as np
from PIL import Image


def encode(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """Return a picture as a file of this format."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(name: str, width: int = 96, height: int = 64) -> Image.Image:
    """Return a coarse pattern that follows from a name, so that each test has its own pictures."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def picture(name: str) -> bytes:
    """Return the pattern of a name as a PNG file."""
    return encode(pixels(name))
