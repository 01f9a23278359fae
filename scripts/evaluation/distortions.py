"""Parts of photos as somebody else might have saved them: turned, scaled, recoloured, compressed.

Everything random is in a `Distortion`, which is drawn first and applied later. So the same one can
be applied to several pictures, and what was drawn can be reported.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance

from deployments.compute.images import outer_box
from deployments.records import Box

SCALES = (0.5, 1.3)
BRIGHTNESSES = (0.75, 1.3)
COLOURS = (0.6, 1.4)
QUALITIES = (40, 80)
DEGREES = 15


@dataclass(frozen=True, slots=True)
class Distortion:
    """What happens to a part of a photo, in this order.

    Attributes:
        degrees: by which it is turned, clockwise.
        mirrored: whether left and right are exchanged.
        scale: factor of its sides.
        brightness, colour: factors, 1 for unchanged; a colour of 0 would be grey.
        quality: of the JPEG, 1 to 95.
    """

    degrees: float = 0
    mirrored: bool = False
    scale: float = 1
    brightness: float = 1
    colour: float = 1
    quality: int = 75

    @classmethod
    def draw(cls, rng: np.random.Generator, turned: bool = False) -> Distortion:
        """Draw a distortion; one that turns mirrors too."""
        return cls(
            degrees=float(rng.choice([-DEGREES, DEGREES])) if turned else 0,
            mirrored=turned,
            scale=rng.uniform(*SCALES),
            brightness=rng.uniform(*BRIGHTNESSES),
            colour=rng.uniform(*COLOURS),
            quality=int(rng.integers(QUALITIES[0], QUALITIES[1] + 1)),
        )

    def part(self, photo: Image.Image, box: Box) -> Image.Image:
        """Return a part of an RGB photo, distorted but not yet compressed."""
        part = cut(photo, box, self.degrees)
        if self.mirrored:
            part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        width, height = (max(1, round(side * self.scale)) for side in part.size)
        part = part.resize((width, height), Image.Resampling.BICUBIC)
        part = ImageEnhance.Brightness(part).enhance(self.brightness)
        return ImageEnhance.Color(part).enhance(self.colour)

    def jpeg(self, photo: Image.Image, box: Box) -> bytes:
        """Return a part of an RGB photo, distorted, as the bytes of a JPEG."""
        saved = io.BytesIO()
        self.part(photo, box).save(saved, "JPEG", quality=self.quality)
        return saved.getvalue()


def cut(photo: Image.Image, box: tuple[float, float, float, float], degrees: float) -> Image.Image:
    """Cut out a window that is turned about its centre, at the size of the box.

    The corners of the turned window show the photo around the box. What lies outside of the photo
    gets the mean colour of that surrounding.

    Args:
        photo: RGB.
        box: x1, y1, x2, y2, pixels.
        degrees: by which the content is turned, clockwise.
    """
    if not degrees:
        return photo.crop(outer_box(box, *photo.size))
    x1, y1, x2, y2 = box
    radius = math.hypot(x2 - x1, y2 - y1) / 2
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    around = outer_box((x - radius, y - radius, x + radius, y + radius), *photo.size)
    region = photo.crop(around)
    mean = region.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    x, y = x - around[0], y - around[1]
    width, height = round(x2 - x1), round(y2 - y1)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # The matrix takes a pixel of the result to its place in the region.
    first_row = (cos, sin, x - cos * width / 2 - sin * height / 2)
    second_row = (-sin, cos, y + sin * width / 2 - cos * height / 2)
    matrix = (*first_row, *second_row)
    return region.transform(
        (width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=mean
    )
