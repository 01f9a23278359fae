"""The kinds of queries: what people do to a part of a photo before they search with it.

`object` and `patch` are the parts themselves, distorted. All other kinds begin with such a part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from deployments.records import Quad
from evaluation.geometry import apply, corners, shift
from evaluation.views import View

PartKind = Literal["object", "patch"]
PARTS: tuple[PartKind, ...] = get_args(PartKind)
ABSENT = "absent"

SCREEN = (1080, 2340)  # of a phone, pixels
STATUS_BAR = 84  # its height, pixels
BANDS = (0.15, 0.35)  # height of a caption's band, as a share of the picture's
LEAST_BAND = 16  # pixels
NARROW = 32  # pixels
DISPLAY = (240, 480)  # longer side of a picture on a display that is photographed, pixels
TILTS = (5, 20)  # degrees
CAMERA = (1.5, 2.5)  # its distance from the display, in diagonals of the picture
SURROUNDING = (0.03, 0.2)  # of a photographed display, as a share of the picture's sides
CELL = (160, 320)  # side of a collage's cell, pixels
TEXT = (
    "when you see it and nobody told me that this was the best day of my whole life so far "
    "please share with your friends who else remembers Monday coffee again but why"
)

# Makes one picture of parts of different photos, the query's own part first. Returns a view of that
# picture for each part that is to be found.
Change = Callable[[Sequence[View], np.random.Generator], list[View]]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of query.

    Attributes:
        change: what becomes of the part.
        parts: of how many photos it takes parts.
    """

    change: Change
    parts: int = 1


def alone(change: Callable[[View, np.random.Generator], View]) -> Kind:
    """Return the kind that changes one part by itself."""
    return Kind(lambda parts, rng: [change(parts[0], rng)])


def narrow(view: View, rng: np.random.Generator) -> View:
    """Scale it to a width of 32 pixels."""
    width, height = view.picture.size
    return view.resized(NARROW, max(1, round(NARROW * height / width)))


def bars(view: View, rng: np.random.Generator) -> View:
    """Show it on a phone, black or white above and below, at times with a status bar."""
    white, status = rng.random(2) < 0.5
    paper, ink = ("white", "black") if white else ("black", "white")
    screen = Image.new("RGB", SCREEN, paper)
    if status:
        draw = ImageDraw.Draw(screen)
        clock = f"{rng.integers(24)}:{rng.integers(60):02}"
        draw.text((60, STATUS_BAR / 2), clock, ink, _font(40), anchor="lm")
        draw.rectangle((960, 28, 1020, 56), outline=ink, width=4)
        draw.rectangle((966, 34, 966 + int(rng.integers(8, 48)), 50), fill=ink)
    factor = min(SCREEN[0] / view.picture.width, SCREEN[1] / view.picture.height)
    large = view.resized(*(max(1, round(side * factor)) for side in view.picture.size))
    x, y = ((whole - side) // 2 for whole, side in zip(SCREEN, large.picture.size, strict=True))
    return large.pasted(screen, x, y)


def caption(view: View, rng: np.random.Generator) -> View:
    """Put a band with words above it, below it, or both."""
    white, upper, lower = rng.random(3) < 0.5
    upper = upper or not lower
    paper, ink = ("white", "black") if white else ("black", "white")
    width, height = view.picture.size
    band = max(LEAST_BAND, round(height * rng.uniform(*BANDS)))
    size = (width, height + band * (int(upper) + int(lower)))
    canvas = Image.new("RGB", size, paper)
    top = band if upper else 0
    for y in [0] * bool(upper) + [top + height] * bool(lower):
        _write(canvas, (0, y, width, y + band), ink, rng)
    return view.pasted(canvas, 0, top)


def _write(
    canvas: Image.Image, box: tuple[int, int, int, int], ink: str, rng: np.random.Generator
) -> None:
    """Write words into a box, on one line or two."""
    left, top, right, bottom = box
    lines = int(rng.integers(1, 3))
    vocabulary = TEXT.split()
    step = (bottom - top) / lines
    font = _font(max(6, 0.6 * step))
    draw = ImageDraw.Draw(canvas)
    for line in range(lines):
        words = ""
        while font.getlength(words) < 0.7 * (right - left):
            words += f"{rng.choice(vocabulary)} "
        place = ((left + right) / 2, top + (line + 0.5) * step)
        draw.text(place, words.strip(), ink, font, anchor="mm")


def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def half_covered(parts: Sequence[View], rng: np.random.Generator) -> list[View]:
    """Lay a part of another photo over one half of it."""
    view, other = parts
    width, height = view.picture.size
    x, y = width // 2, height // 2
    # What is covered, and what stays in sight: left, top, width and height.
    halves = [
        ((0, 0, x, height), (x, 0, width - x, height)),
        ((x, 0, width - x, height), (0, 0, x, height)),
        ((0, 0, width, y), (0, y, width, height - y)),
        ((0, y, width, height - y), (0, 0, width, y)),
    ]
    hidden, rest = halves[rng.integers(4)]
    cover = _filling(other, max(1, hidden[2]), max(1, hidden[3])).picture
    return [view.covered(cover, hidden[0], hidden[1], corners(rest[2], rest[3], *rest[:2]))]


def _filling(view: View, width: int, height: int) -> View:
    """Cut the middle out of a view, in the shape of a rectangle, and scale it to that."""
    factor = min(view.picture.width / width, view.picture.height / height)
    w, h = max(1, round(width * factor)), max(1, round(height * factor))
    x, y = (view.picture.width - w) // 2, (view.picture.height - h) // 2
    return view.cropped((x, y, x + w, y + h)).resized(width, height)


def perspective(view: View, rng: np.random.Generator) -> View:
    """Photograph it from a display: askew, with moiré or out of focus, the dark around it or not.

    The display is turned by 5 to 20 degrees about an axis of any direction.
    """
    factor = rng.uniform(*DISPLAY) / max(view.picture.size)
    view = view.resized(*(max(1, round(side * factor)) for side in view.picture.size))
    width, height = view.picture.size
    away = rng.uniform(*CAMERA) * math.hypot(width, height)
    axis = rng.normal(size=3)
    turn = _rotation(axis / np.linalg.norm(axis), math.radians(rng.uniform(*TILTS)))
    # Of a point (x, y, 0) of the display the camera sees (x', y') * away / (away + z').
    camera = np.array([[away, 0, 0], [0, away, 0], [0, 0, 1]]) @ (
        np.column_stack([turn[:, 0], turn[:, 1], [0, 0, away]])
    )
    camera = camera @ shift(-width / 2, -height / 2)
    display = apply(camera, view.content)
    surrounded = rng.random() < 0.5
    seen_box = (
        _around(display, rng.uniform(*SURROUNDING))
        if surrounded
        else _inside(display, width, height)
    )
    left, top, right, bottom = seen_box
    size = (max(1, round(right - left)), max(1, round(bottom - top)))
    room = Image.new("RGB", size, tuple(rng.integers(8, 48, 3).tolist()))
    seen = view.seen(shift(-left, -top) @ camera, room)
    if not surrounded:
        seen = View.whole(seen.picture, seen.to_photo)
    if rng.random() < 0.5:
        return seen.painted(lambda picture: _moire(picture, rng))
    return seen.painted(
        lambda picture: picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 1.5)))
    )


def _around(display: Quad, margin: float) -> tuple[float, float, float, float]:
    """Return x1, y1, x2, y2 around a quad, with a margin, as a share of the sides."""
    points = np.array(display)
    low, high = points.min(0), points.max(0)
    room = margin * (high - low)
    return (*(low - room).tolist(), *(high + room).tolist())


def _inside(display: Quad, width: int, height: int) -> tuple[float, float, float, float]:
    """Return the largest x1, y1, x2, y2 of this shape inside a quad, about the point (0, 0)."""
    points = np.array(display)
    edges = np.roll(points, -1, axis=0) - points
    inwards = np.column_stack([-edges[:, 1], edges[:, 0]])
    room = -(inwards * points).sum(1)  # of the point (0, 0), to each edge
    needs = np.abs(inwards * [width, height]).sum(1) / 2
    factor = (room / needs).min()
    x, y = factor * width / 2, factor * height / 2
    return (-x, -y, x, y)


def _rotation(axis: np.ndarray, radians: float) -> np.ndarray:
    """Return the matrix, 3 x 3, of a rotation about an axis of length 1."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(radians) * cross + (1 - math.cos(radians)) * cross @ cross


def _moire(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Lay stripes over a picture, other ones in each colour."""
    pixels = np.asarray(picture, np.float32)
    y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    direction, period = rng.uniform(0, math.pi), rng.uniform(3, 12)
    across = (x * math.cos(direction) + y * math.sin(direction)) * (2 * math.pi / period)
    waves = np.sin(across[..., np.newaxis] + rng.uniform(0, 2 * math.pi, 3))
    striped = pixels * (1 + rng.uniform(0.05, 0.15) * waves)
    return Image.fromarray(striped.clip(0, 255).astype(np.uint8))


def collage(parts: Sequence[View], rng: np.random.Generator) -> list[View]:
    """Lay parts of four photos side by side, two by two."""
    side, gap = int(rng.integers(*CELL)), int(rng.integers(0, 9))
    canvas = Image.new("RGB", (2 * side + gap,) * 2, "white" if rng.random() < 0.5 else "black")
    places = [(0, 0), (side + gap, 0), (0, side + gap), (side + gap, side + gap)]
    cells = [_filling(view, side, side) for view in parts]
    for cell, place in zip(cells, places, strict=True):
        canvas.paste(cell.picture, place)
    return [cell.pasted(canvas, *place) for cell, place in zip(cells, places, strict=True)]


# The report's rows come in this order, after those of objects and patches.
KINDS: dict[str, Kind] = {
    "turned-90": alone(lambda view, rng: view.turned(90)),
    "turned-180": alone(lambda view, rng: view.turned(180)),
    "turned-270": alone(lambda view, rng: view.turned(270)),
    "mirrored": alone(lambda view, rng: view.mirrored()),
    "bars": alone(bars),
    "caption": alone(caption),
    "32-pixels": alone(narrow),
    "half-covered": Kind(half_covered, parts=2),
    "perspective": alone(perspective),
    "collage": Kind(collage, parts=4),
    ABSENT: alone(lambda view, rng: view),
}
ALL_KINDS = (*PARTS, *KINDS)
