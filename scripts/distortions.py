"""Parts of photos as somebody else might have saved them: turned, scaled, recoloured, compressed.

Everything random is in a `Distortion`, which is drawn first and applied after; so the same one can
be applied to several pictures, and what was drawn can be told.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance

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
        degrees: it is turned by these, counterclockwise.
        mirrored: left and right are exchanged.
        scale: its sides are multiplied by this.
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
        """Draw one; those that are turned are mirrored too."""
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
        size = tuple(max(1, round(side * self.scale)) for side in part.size)
        part = part.resize(size, Image.Resampling.BICUBIC)
        part = ImageEnhance.Brightness(part).enhance(self.brightness)
        return ImageEnhance.Color(part).enhance(self.colour)

    def jpeg(self, photo: Image.Image, box: Box) -> bytes:
        """Return a part of an RGB photo, distorted, as the bytes of a JPEG."""
        saved = io.BytesIO()
        self.part(photo, box).save(saved, "JPEG", quality=self.quality)
        return saved.getvalue()


def cut(photo: Image.Image, box: Box, degrees: float = 0) -> Image.Image:
    """Cut out a window that is turned about its centre, at the size of the box.

    The turned window's corners are filled from the photo around the box; what lies outside of the
    photo continues its edge.

    Args:
        photo: RGB.
        degrees: by how much what is seen is turned, counterclockwise.
    """
    if not degrees:
        return photo.crop(box)
    x1, y1, x2, y2 = box
    reach = max(x2 - x1, y2 - y1)  # further than any corner is turned out of the box
    rows = np.clip(np.arange(y1 - reach, y2 + reach), 0, photo.height - 1)
    columns = np.clip(np.arange(x1 - reach, x2 + reach), 0, photo.width - 1)
    around = Image.fromarray(np.asarray(photo)[rows[:, None], columns])
    turned = around.rotate(degrees, Image.Resampling.BICUBIC)
    return turned.crop((reach, reach, reach + x2 - x1, reach + y2 - y1))
