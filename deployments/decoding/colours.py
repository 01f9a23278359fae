"""From the colours of an ICC profile to sRGB."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache
from typing import Final

import numpy as np
from PIL import Image, ImageCms

Converter = Callable[[Image.Image], Image.Image]

# Which colour space a profile must be of, by the mode of the picture.
SPACES: Final = {"L": "GRAY", "RGB": "RGB ", "CMYK": "CMYK"}

# Neighbours in a photo have other colours: to look for the last one takes 9 % longer.
UNCACHED: Final = ImageCms.Flags.NOCACHE


@lru_cache(maxsize=8)  # photos of one phone or one export have one profile
def to_srgb(profile: bytes, mode: str) -> Converter | None:
    """Return what converts pictures of a mode, `L`, `RGB` or `CMYK`, to RGB in sRGB.

    None if nothing is to be converted: the profile changes no colour by more than a level, or it is
    broken, or is one for other pictures.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space != SPACES[mode]:
            return None
        transform = ImageCms.buildTransform(source, _srgb(), mode, "RGB", flags=UNCACHED)
        probe = _probe(mode)
        converted = transform.apply(probe)
    except Exception:  # whatever is wrong with the profile, the pixels are right
        return None
    if mode != "CMYK":
        change = np.asarray(converted, np.int16) - np.asarray(probe.convert("RGB"), np.int16)
        if abs(change).max() <= 1:
            return None
    return transform.apply


@lru_cache(maxsize=1)
def lab_to_srgb() -> Converter:
    """Return what converts pictures in CIE Lab."""
    lab = ImageCms.createProfile("LAB")
    return ImageCms.buildTransform(lab, _srgb(), "LAB", "RGB").apply


@lru_cache(maxsize=1)
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _probe(mode: str) -> Image.Image:
    """Return a picture with colours from all over."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    steps = np.linspace(0, 255, 6).astype(np.uint8)
    grid = np.stack(np.meshgrid(*[steps] * len(mode), indexing="ij"), -1)
    rows = np.ascontiguousarray(grid.reshape(1, -1, len(mode)))
    return Image.frombytes(mode, (rows.shape[1], 1), rows.tobytes())
