"""Pictures made of a part of a photo, that know where in the photo each of their pixels is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from deployments.records import Quad
from evaluation.geometry import apply, corners, shift, stretch

TURNS = {
    90: Image.Transpose.ROTATE_270,  # Pillow turns counter-clockwise
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A picture that shows a part of a photo.

    Attributes:
        picture: RGB.
        to_photo: 3 x 3 homography, from points of the picture to points of the photo.
        content: corners of what is of the photo, in the picture; the rest hides it or frames it.
    """

    picture: Image.Image
    to_photo: np.ndarray
    content: Quad

    @classmethod
    def whole(cls, picture: Image.Image, to_photo: np.ndarray) -> View:
        """Return the view that shows nothing but the photo."""
        return cls(picture, to_photo, corners(*picture.size))

    @property
    def quad(self) -> Quad:
        """Return the place of the content in the photo."""
        return apply(self.to_photo, self.content)

    def painted(self, paint: Callable[[Image.Image], Image.Image]) -> View:
        """Change its pixels, but not their places."""
        return replace(self, picture=paint(self.picture))

    def resized(self, width: int, height: int) -> View:
        """Scale it to so many pixels."""
        factors = (self.picture.width / width, self.picture.height / height)
        return View(
            self.picture.resize((width, height), Image.Resampling.BICUBIC),
            self.to_photo @ stretch(*factors),
            apply(stretch(1 / factors[0], 1 / factors[1]), self.content),
        )

    def mirrored(self) -> View:
        """Exchange left and right."""
        matrix = shift(self.picture.width, 0) @ stretch(-1, 1)
        return self._transposed(Image.Transpose.FLIP_LEFT_RIGHT, matrix)

    def turned(self, degrees: int) -> View:
        """Turn it clockwise by 90, 180 or 270 degrees."""
        width, height = self.picture.size
        matrices = {
            90: [[0, 1, 0], [-1, 0, height], [0, 0, 1]],
            180: [[-1, 0, width], [0, -1, height], [0, 0, 1]],
            270: [[0, -1, width], [1, 0, 0], [0, 0, 1]],
        }
        return self._transposed(TURNS[degrees], np.array(matrices[degrees], float))

    def _transposed(self, how: Image.Transpose, back: np.ndarray) -> View:
        """Turn or mirror a view that is all content.

        Args:
            back: takes points of the result to points of this view.
        """
        return View.whole(self.picture.transpose(how), self.to_photo @ back)

    def cropped(self, box: tuple[int, int, int, int]) -> View:
        """Return the part of it in a box inside it, which is all content."""
        return View.whole(self.picture.crop(box), self.to_photo @ shift(box[0], box[1]))

    def pasted(self, canvas: Image.Image, x: int, y: int) -> View:
        """Return a copy of a canvas that shows this view, its top left corner at x, y."""
        picture = canvas.copy()
        picture.paste(self.picture, (x, y))
        return View(picture, self.to_photo @ shift(-x, -y), apply(shift(x, y), self.content))

    def covered(self, cover: Image.Image, x: int, y: int, rest: Quad) -> View:
        """Paste a cover over it.

        Args:
            rest: the corners of what stays in sight.
        """
        picture = self.picture.copy()
        picture.paste(cover, (x, y))
        return View(picture, self.to_photo, rest)

    def seen(self, matrix: np.ndarray, canvas: Image.Image) -> View:
        """Return a copy of a canvas onto which this view is projected.

        Args:
            matrix: 3 x 3 homography, from points of this view to points of the canvas.
        """
        back = np.linalg.inv(matrix)
        back /= back[2, 2]
        coefficients = tuple(back.ravel()[:8])

        def project(picture: Image.Image) -> Image.Image:
            how = Image.Transform.PERSPECTIVE
            return picture.transform(canvas.size, how, coefficients, Image.Resampling.BICUBIC)

        picture = canvas.copy()
        picture.paste(project(self.picture), mask=project(Image.new("L", self.picture.size, 255)))
        return View(picture, self.to_photo @ back, apply(matrix, self.content))
