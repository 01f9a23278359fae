"""What a GPU is measured with: sizes, and photos."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from common.paths import ROOT
from common.photos import find_images
from PIL import Image, ImageDraw

from benchmarks.gpu.networks import VIT_B_32, TowerShape, read_shape

COMPACT = "models/compact"


class Sizes(NamedTuple):
    """The sizes of a measurement.

    Attributes:
        photo: width and height of made-up photos, pixels.
        image_size: longer side of the detector's canvas, pixels.
        width: of the detector, see `networks.random_yolov5`.
        encoders: by their names.
        batches: sizes of batches of photos, and of crops.
        crops: sizes of batches of crops alone: the crops of a batch of photos.
        matrix: side of the matrices whose product shows what the chip can do.
        photos: number of made-up photos.
        batch: photos that go through the pipeline together.
        vectors: how many are searched.
        dimension: length of such a vector.
        queries: how many at a time.
    """

    photo: tuple[int, int]
    image_size: int
    width: float
    encoders: dict[str, TowerShape]
    batches: tuple[int, ...]
    crops: tuple[int, ...]
    matrix: int
    photos: int
    batch: int
    vectors: tuple[int, ...]
    dimension: int
    queries: tuple[int, ...]


FULL = Sizes(
    photo=(640, 480),
    image_size=416,
    width=0.5,
    encoders={COMPACT: read_shape(ROOT / COMPACT), "vit-b-32": VIT_B_32},
    batches=(1, 8, 32, 64, 128),
    crops=(512, 1280),
    matrix=8192,
    photos=128,
    batch=32,
    vectors=(1_000_000, 10_000_000, 100_000_000),
    dimension=512,
    queries=(1, 64),
)
TINY_TOWER = TowerShape(16, 8, 64, 2, 2, 128, 16, quick=False)
TINY = Sizes(
    photo=(128, 96),
    image_size=128,
    width=0.125,
    encoders={COMPACT: TINY_TOWER, "vit-b-32": TINY_TOWER._replace(quick=True)},
    batches=(1, 2),
    crops=(3,),
    matrix=64,
    photos=5,
    batch=2,
    vectors=(100, 3000),
    dimension=16,
    queries=(1, 3),
)


def make_photos(size: tuple[int, int], count: int) -> list[bytes]:
    """Make up JPEGs of shapes and noise: at 640 x 480 about 120 kB each, like a camera's.

    Args:
        size: width and height, pixels.
    """
    generator = np.random.default_rng(0)
    made = []
    for _ in range(count):
        red, green, blue = generator.integers(0, 256, 3).tolist()
        image = Image.new("RGB", size, (red, green, blue))
        draw = ImageDraw.Draw(image)
        for _ in range(30):
            corners = generator.random((2, 2)) * size
            corners.sort(0)
            shape = draw.ellipse if generator.random() < 0.5 else draw.rectangle
            shape(corners.flatten().tolist(), fill=tuple(generator.integers(0, 256, 3).tolist()))
        noisy = np.asarray(image) + generator.normal(0, 16, (size[1], size[0], 3))
        buffer = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
        made.append(buffer.getvalue())
    return made


def read_photos(folder: Path) -> list[bytes]:
    """Read the JPEGs below a folder.

    Raises:
        SystemExit: there are none.
    """
    files = find_images([folder], {".jpg", ".jpeg"})
    if not files:
        sys.exit(f"There are no JPEGs in {folder}.")
    return [file.read_bytes() for file in files]
