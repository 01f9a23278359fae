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

from deployments.boxes import outer_box
from deployments.records import Box
from evaluation.geometry import shift
from evaluation.views import View

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

    def view(self, photo: Image.Image, box: Box) -> View:
        """Return a part of an RGB photo, distorted but not yet compressed."""
        view = View.whole(cut(photo, box, self.degrees), window(photo, box, self.degrees))
        if self.mirrored:
            view = view.mirrored()
        view = view.resized(*(max(1, round(side * self.scale)) for side in view.picture.size))
        return view.painted(self._recolour)

    def _recolour(self, picture: Image.Image) -> Image.Image:
        picture = ImageEnhance.Brightness(picture).enhance(self.brightness)
        return ImageEnhance.Color(picture).enhance(self.colour)

    def save(self, picture: Image.Image) -> bytes:
        """Return a picture as the bytes of a JPEG."""
        saved = io.BytesIO()
        picture.save(saved, "JPEG", quality=self.quality)
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
    matrix = shift(-around[0], -around[1]) @ window(photo, box, degrees)
    return region.transform(
        (round(x2 - x1), round(y2 - y1)),
        Image.Transform.AFFINE,
        tuple(matrix[:2].ravel()),
        Image.Resampling.BICUBIC,
        fillcolor=mean,
    )


def window(
    photo: Image.Image, box: tuple[float, float, float, float], degrees: float
) -> np.ndarray:
    """Return the matrix, 3 x 3, that takes points of what `cut` returns to points of the photo."""
    if not degrees:
        return shift(*outer_box(box, *photo.size)[:2])
    x1, y1, x2, y2 = box
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    centre = (round(x2 - x1) / 2, round(y2 - y1) / 2)
    return shift((x1 + x2) / 2, (y1 + y2) / 2) @ turn @ shift(-centre[0], -centre[1])
