"""Colours of 16 bits, of which Pillow keeps the higher 8."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFile

from deployments.decoding.depth import HIGH, SAMPLE

# How Pillow's decoders name the order of a number's two bytes. With the other order they keep the
# lower byte instead of the higher one.
SWAPPED = {";16B": ";16L", ";16L": ";16B", ";16N": ";16B"}
# A picture that fills more than a quarter of its range is a dark one, and not one of fewer bits.
MOST_BITS = 14
ROWS = 256  # that are computed at once


def has_deep_colours(image: ImageFile.ImageFile) -> bool:
    """Tell whether an image that isn't loaded yet has colours of 16 bits."""
    return image.mode in ("RGB", "RGBA") and any(";16" in mode for mode in _modes(image))


def is_nearly_black(image: Image.Image) -> bool:
    """Tell whether the higher bytes hold so little that the lower ones count."""
    return _bits(image) <= MOST_BITS


def keep_lower_bytes(image: ImageFile.ImageFile) -> None:
    """Let the decoder of an image that isn't loaded yet keep the lower bytes."""
    for mode in _modes(image):
        for order, other in SWAPPED.items():
            if mode.endswith(order):
                swapped = mode.removesuffix(order) + other
                image.tile = [tile._replace(args=_swap(tile.args, swapped)) for tile in image.tile]
                return


def combine(higher: Image.Image, lower: Image.Image) -> None:
    """Scale the values of 16 bits to 8, into the picture of the higher bytes.

    The rule is that of grey pictures, see `depth.scale_of`: the fewest bits that hold 999 of 1,000
    values become the whole range. Opacity keeps its higher byte.
    """
    top = 2 ** _bits(higher) - 1
    for start in range(0, higher.height, ROWS):
        box = (0, start, higher.width, min(start + ROWS, higher.height))
        strip = np.array(higher.crop(box))
        colours = strip[..., :3]
        values = colours.astype(np.uint32) << 8 | np.asarray(lower.crop(box))[..., :3]
        colours[:] = np.minimum(values, top) * 255 // top
        higher.paste(Image.fromarray(strip), box)


def _bits(image: Image.Image) -> int:
    step = max(1, int((image.width * image.height / SAMPLE) ** 0.5))
    columns = np.concatenate(
        [
            np.asarray(image.crop((0, row, image.width, row + 1)))[0, ::step, :3]
            for row in range(0, image.height, step)
        ]
    )
    return 8 + int(np.percentile(columns, HIGH)).bit_length()


def _modes(image: ImageFile.ImageFile) -> list[str]:
    """Return the name of the order of bytes, as the decoder is told it."""
    args = image.tile[0].args if image.tile else None
    first = args if isinstance(args, str) else args[0] if args else None
    return [first] if isinstance(first, str) else []


def _swap(args: object, mode: str) -> str | tuple[object, ...]:
    return (mode, *args[1:]) if isinstance(args, tuple) else mode
