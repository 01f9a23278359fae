"""What the encoder is trained on: two overlapping windows of a photo, one of them distorted."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common.photos import find_images
from evaluation.distortions import cut
from evaluation.queries import iou
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from tqdm import tqdm

Window = tuple[float, float, float, float]  # x1, y1, x2, y2, pixels

LONGEST_SIDE = 640


@dataclass(frozen=True)
class PairSettings:
    """How hard the pairs are.

    Attributes:
        size: side of the encoder's input, pixels.
        sides: smallest and largest side of a query, as shares of the photo's.
        tiled: share of the pairs whose chunk lies as a tile may lie. The chunk of the others is
            the query's window, with the inaccuracy of a detector.
        least_overlap: least intersection over union of a tile and the query.
        jitter: most that a corner of a detection moves, as a share of the detection's sides.
        recoloured: share of the pairs whose photo gets other colours.
        turned: share of the queries that are turned.
        degrees: most that they are turned, either way.
        mirrored: share of the queries that are mirrored.
    """

    size: int
    sides: tuple[float, float] = (0.12, 0.85)
    tiled: float = 0.6
    least_overlap: float = 0.3
    jitter: float = 0.13
    recoloured: float = 0.4
    turned: float = 0.3
    degrees: float = 20
    mirrored: float = 0.25


@dataclass(frozen=True)
class WindowPair:
    """A chunk as it is indexed, and a query that should find it: uint8 `[size, size, 3]` each."""

    chunk: np.ndarray
    query: np.ndarray


def load_photos(folders: Iterable[Path]) -> list[np.ndarray]:
    """Read all pictures in folders, scaled down to `LONGEST_SIDE`: uint8 `[height, width, 3]` each.

    Raises:
        SystemExit: there are no pictures in a folder.
    """
    photos = []
    for folder in folders:
        files = find_images([folder])
        if not files:
            raise SystemExit(f"There are no pictures in {folder}.")
        for file in tqdm(files, desc=f"reading {folder.name}", unit="photo"):
            with Image.open(file) as opened:
                opened.draft("RGB", (2 * LONGEST_SIDE, 2 * LONGEST_SIDE))
                image = ImageOps.exif_transpose(opened).convert("RGB")
                image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BICUBIC)
                photos.append(np.array(image))
    return photos


def draw_pair(photo: np.ndarray, settings: PairSettings, random: np.random.Generator) -> WindowPair:
    """Draw two windows of a photo, and make a chunk and a query of them."""
    image = Image.fromarray(photo)
    query_window = draw_window(image.size, settings.sides, random)
    if random.random() < settings.tiled:
        chunk_window = draw_tile(query_window, image.size, settings.least_overlap, random)
    else:
        chunk_window = jittered(query_window, image.size, settings.jitter, random)
    degrees = 0.0
    if random.random() < settings.turned:
        degrees = random.uniform(-settings.degrees, settings.degrees)
    chunk = cut(image, chunk_window, 0)
    chunk = chunk.resize((settings.size, settings.size), Image.Resampling.BICUBIC)
    query = cut(image, query_window, degrees)
    if random.random() < settings.recoloured:
        chunk, query = recoloured((chunk, query), random)
    if random.random() < 0.5:  # as if the photo itself were mirrored
        chunk, query = ImageOps.mirror(chunk), ImageOps.mirror(query)
    if random.random() < 0.3:
        chunk = ImageEnhance.Brightness(chunk).enhance(random.uniform(0.8, 1.25))
        chunk = ImageEnhance.Color(chunk).enhance(random.uniform(0.7, 1.3))
    if random.random() < settings.mirrored:
        query = ImageOps.mirror(query)
    query = worn(query, random)
    query = query.resize((settings.size, settings.size), Image.Resampling.BICUBIC)
    return WindowPair(np.asarray(chunk), np.asarray(query))


def draw_window(
    size: tuple[int, int], sides: tuple[float, float], random: np.random.Generator
) -> Window:
    """Draw a window anywhere in a photo; small ones are as likely as large ones (log-uniform).

    Args:
        size: width and height of the photo, pixels.
        sides: see `PairSettings`.
    """
    share = math.exp(random.uniform(math.log(sides[0]), math.log(sides[1])))
    oblong = math.exp(random.normal(0, 0.3))
    width, height = (
        min(length, max(share * factor * length, 24))
        for length, factor in zip(size, (oblong, 1 / oblong), strict=True)
    )
    x, y = random.uniform(0, size[0] - width), random.uniform(0, size[1] - height)
    return x, y, x + width, y + height


def jittered(
    window: Window, size: tuple[int, int], jitter: float, random: np.random.Generator
) -> Window:
    """Move each side of a window by up to a share of the window's extent."""
    x1, y1, x2, y2 = window
    extent = np.array([x2 - x1, y2 - y1, x2 - x1, y2 - y1])
    x1, y1, x2, y2 = (np.array(window) + extent * random.uniform(-jitter, jitter, 4)).tolist()
    return clipped((x1, y1, x2, y2), size)


def draw_tile(
    window: Window, size: tuple[int, int], least_overlap: float, random: np.random.Generator
) -> Window:
    """Draw a window that lies as the best tile may lie: moved, scaled, but overlapping."""
    x1, y1, x2, y2 = window
    for _ in range(20):
        scale = random.normal(0, 0.35)
        width, height = (
            extent * math.exp(scale + random.normal(0, 0.2)) for extent in (x2 - x1, y2 - y1)
        )
        x = (x1 + x2 - width) / 2 + random.uniform(-0.35, 0.35) * width
        y = (y1 + y2 - height) / 2 + random.uniform(-0.35, 0.35) * height
        tile = clipped((x, y, x + width, y + height), size)
        if iou(window, [tile])[0] >= least_overlap:
            return tile
    return window


def clipped(window: Window, size: tuple[int, int]) -> Window:
    """Clip a window to a photo; at least one pixel wide and high remains."""
    x1, y1, x2, y2 = window
    x1, y1 = min(max(x1, 0), size[0] - 1), min(max(y1, 0), size[1] - 1)
    return x1, y1, max(min(x2, size[0]), x1 + 1), max(min(y2, size[1]), y1 + 1)


def recoloured(
    images: Iterable[Image.Image], random: np.random.Generator
) -> tuple[Image.Image, ...]:
    """Change the colours of pictures, the same way for all: channels mixed, another gamma."""
    matrix = np.eye(3)[random.permutation(3)] if random.random() < 0.6 else np.eye(3)
    matrix = matrix + random.normal(0, 0.15, (3, 3))
    matrix /= matrix.sum(axis=1, keepdims=True)  # grey stays grey
    gamma = math.exp(random.normal(0, 0.25))
    curve = [round(255 * (v / 255) ** gamma) for v in range(256)] * 3
    mixing = tuple(np.hstack([matrix, np.zeros((3, 1))]).flatten())
    return tuple(image.convert("RGB", mixing).point(curve) for image in images)


def worn(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Change a picture as its way through screens, phones and mail does."""
    scale = math.exp(random.uniform(math.log(0.35), math.log(1.3)))
    width, height = (max(16, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    image = ImageEnhance.Brightness(image).enhance(random.uniform(0.65, 1.45))
    image = ImageEnhance.Color(image).enhance(random.uniform(0.4, 1.6))
    if random.random() < 0.4:
        image = ImageEnhance.Contrast(image).enhance(random.uniform(0.7, 1.4))
    if random.random() < 0.2:
        tint = random.uniform(0.88, 1.12, 3)
        image = image.point([min(255, round(v * factor)) for factor in tint for v in range(256)])
    if random.random() < 0.15:
        image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 1.5)))
    if random.random() < 0.8:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(random.integers(25, 90)))
        image = Image.open(file)
        image.load()
    return image
