"""From a picture as its file stores it to upright sRGB."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from PIL import Image

from deployments.decoding.colours import lab_to_srgb, to_srgb
from deployments.decoding.depth import Scale, scale_of

# What is behind transparent pixels: white as on a page in a browser, unless the picture is bright
# itself. On white, all white logos would be the same white square.
LIGHT: Final = (255, 255, 255)
# Dark enough for white and yellow, and not black: shadows, which are half transparent black, show.
# With models/compact a white star on it is 0.42 away from a photo with that star on blue, and 0.58
# from the nearest other; over black it is 0.51, over grey of 128 0.47, over white 0.57.
DARK: Final = (32, 32, 32)
# The mean brightness, weighted by opacity, from which on a picture lies over dark. White and pale
# logos have 230 and more, and with a third in red still 200; most objects on a transparent
# ground have less than 180.
BRIGHT: Final = 200

STRIP: Final = 2**18  # pixels that are converted at once: they fit a core's cache

TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
LYING: Final = {5, 6, 7, 8}  # width and height change places
LAST_ROW_FIRST: Final = {3, 4, 6, 7}
LAST_COLUMN_FIRST: Final = {2, 3, 7, 8}

Allocate = Callable[[tuple[int, int, int]], np.ndarray]


def new_array(shape: tuple[int, int, int]) -> np.ndarray:
    """Return room for pixels in this process's own memory."""
    return np.empty(shape, np.uint8)


def upright_rgb(
    image: Image.Image, profile: bytes, orientation: int, allocate: Allocate = new_array
) -> np.ndarray:
    """Convert a picture that is loaded, strip by strip, and turn it upright.

    Args:
        image: of any mode.
        profile: its ICC profile, or nothing.
        orientation: as in EXIF, 1 to 8.
        allocate: gives room for the result.

    Returns:
        uint8 `[height, width, 3]`, sRGB. Nothing else as large is made on the way.
    """
    width, height = image.size
    scale = _scale_of(image)
    transparent = image.has_transparency_data
    ground = _ground(image, scale) if transparent else LIGHT
    shape = (width, height, 3) if orientation in LYING else (height, width, 3)
    upright = allocate(shape)
    for left, top, strip in _strips(image):
        rgb = _over(_plain(strip, scale), profile, ground)
        rows, columns = slice(top, top + strip.height), slice(left, left + strip.width)
        if orientation in TURNS:
            rgb = rgb.transpose(TURNS[orientation])
        if orientation in LAST_ROW_FIRST:
            rows = slice(height - rows.stop, height - rows.start)
        if orientation in LAST_COLUMN_FIRST:
            columns = slice(width - columns.stop, width - columns.start)
        upright[(columns, rows) if orientation in LYING else (rows, columns)] = rgb
    return upright


def _strips(image: Image.Image) -> Iterator[tuple[int, int, Image.Image]]:
    """Yield the picture in strips, each with the column and the row at which it starts."""
    columns = min(image.width, STRIP)
    rows = STRIP // columns
    for top in range(0, image.height, rows):
        for left in range(0, image.width, columns):
            right, bottom = min(left + columns, image.width), min(top + rows, image.height)
            yield left, top, image.crop((left, top, right, bottom))


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith("I") or image.mode == "F"


def _scale_of(image: Image.Image) -> Scale | None:
    if not _is_deep(image):
        return None
    values = (np.asarray(strip) for *_, strip in _strips(image))
    return scale_of(values, image.width * image.height)


def _plain(strip: Image.Image, scale: Scale | None) -> Image.Image:
    """Return a strip in one of the modes L, LA, RGB, RGBA, CMYK and LAB."""
    if scale is not None:
        values = np.asarray(strip)
        grey = Image.fromarray(scale(values))
        clear = strip.info.get("transparency")
        if isinstance(clear, int):
            grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
        return grey
    if strip.has_transparency_data:
        return strip if strip.mode in ("LA", "RGBA") else strip.convert("RGBA")
    if strip.mode == "1":
        return strip.convert("L")
    return strip if strip.mode in ("L", "RGB", "CMYK", "LAB") else strip.convert("RGB")


def _over(strip: Image.Image, profile: bytes, ground: tuple[int, int, int]) -> Image.Image:
    """Convert a strip to sRGB, and lay it over a ground."""
    if strip.mode not in ("LA", "RGBA"):
        return _to_rgb(strip, profile)
    alpha = strip.getchannel("A")
    opaque = _to_rgb(strip.convert("L" if strip.mode == "LA" else "RGB"), profile)
    laid = Image.new("RGB", strip.size, ground)
    laid.paste(opaque, mask=alpha)
    return laid


def _to_rgb(strip: Image.Image, profile: bytes) -> Image.Image:
    if strip.mode == "LAB":
        return lab_to_srgb()(strip)
    convert = to_srgb(profile, strip.mode) if profile else None
    if convert is not None:
        return convert(strip)
    return strip if strip.mode == "RGB" else strip.convert("RGB")


def _ground(image: Image.Image, scale: Scale | None) -> tuple[int, int, int]:
    """Choose what lies behind a picture: what its own pixels stand out from."""
    light = weight = 0.0
    for *_, strip in _strips(image):
        plain = _plain(strip, scale)
        alpha = np.asarray(plain.getchannel("A"), np.float32).ravel()
        light += float(np.asarray(plain.convert("L"), np.float32).ravel() @ alpha)
        weight += float(alpha.sum())
    return DARK if weight and light / weight >= BRIGHT else LIGHT
