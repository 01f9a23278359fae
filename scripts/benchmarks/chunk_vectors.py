"""Vectors of the chunks of many photos, made of those of some hundred real ones.

Of each photo the whole and 34 tiles (2 x 2 and 3 x 3, half overlapping) are scaled to 128 x 128 and
embedded with YOLOv5s's backbone (896 numbers, reduced to the wanted dimension by principal
components, L2-normalised): a network trained on photos, whose weights the service has anyway. The
queries are other parts of the same photos, with brightness and colour changed and JPEG quality 40
to 80.

Then the photos are multiplied. A new photo is a mixture of two real ones, tile by tile (10 to 50 %
of the second), plus the difference between a random tile of a third photo and that photo's mean. So
the chunks of a photo stay alike, photos form clusters, and the space between real photos fills up,
as it does in a growing collection. Uniform noise would do none of this.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from common.backbone import SIDE, Backbone, unit
from common.photos import find_images
from PIL import Image, ImageEnhance
from tqdm import tqdm

TILES = (1, 2, 3)
CHUNKS = sum((2 * n - 1) ** 2 for n in TILES)  # of a photo
WANTED = 10  # photos
QUERIES = 500
FEWEST_PHOTOS = 100
BLOCK = 1024  # photos that are processed together


class Vectors(NamedTuple):
    """What is searched, and by what.

    Attributes:
        chunks: float16 `[photos, 35, d]`, memory-mapped.
        queries: float32 `[q, d]`.
        nearest: the ten nearest photos of each query, int64 `[q, 10]`.
    """

    chunks: np.ndarray
    queries: np.ndarray
    nearest: np.ndarray


def read(folder: Path, chunks: int, dimension: int) -> Vectors:
    """Read what `prepare` wrote."""
    here = folder / f"{chunks}x{dimension}"
    mapped = np.load(here / "chunks.npy", mmap_mode="r")
    return Vectors(mapped, np.load(here / "queries.npy"), np.load(here / "nearest.npy"))


def prepare(folder: Path, photos: Sequence[Path], chunks: int, dimension: int) -> None:
    """Write the files that `read` reads, unless they exist.

    Args:
        folder: gets the files.
        photos: folders of photos; needed when nothing was embedded yet.

    Raises:
        SystemExit: there are no photos, or too few.
    """
    base = folder / "base.npz"
    if not base.exists():
        embedded = embed(find_photos(photos))
        np.savez(base, chunks=embedded[0], queries=embedded[1])
    here = folder / f"{chunks}x{dimension}"
    if (here / "nearest.npy").exists():
        return
    here.mkdir(exist_ok=True)
    with np.load(base) as arrays:
        real, queries = reduce(arrays["chunks"], arrays["queries"], dimension)
    queries = queries[np.random.default_rng(1).permutation(len(queries))[:QUERIES]]
    multiply(real, chunks // CHUNKS, here / "chunks.npy")
    np.save(here / "queries.npy", queries)
    np.save(
        here / "nearest.npy", find_nearest(np.load(here / "chunks.npy", mmap_mode="r"), queries)
    )


def find_photos(folders: Sequence[Path]) -> list[Path]:
    """Return the files of the photos to embed.

    Raises:
        SystemExit: there are too few.
    """
    if not folders:
        sys.exit("Say which photos to make vectors of: --photos FOLDER")
    files = find_images(folders, {".jpg", ".jpeg", ".png"})
    if len(files) < FEWEST_PHOTOS:
        sys.exit(
            f"There are {len(files)} photos (JPEG, PNG) in there: {FEWEST_PHOTOS} are the fewest."
        )
    return files


def embed(files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Embed the chunks of photos, and a query of each.

    Returns:
        float32 `[n, 35, 896]` and `[n, 896]`.
    """
    backbone, rng, found = Backbone(), np.random.default_rng(0), []
    for file in tqdm(files, unit="photo", desc="embedding"):
        image = Image.open(file).convert("RGB")
        size = (SIDE, SIDE)
        parts = [image.resize(size, Image.Resampling.BILINEAR, box) for box in tiles(*image.size)]
        parts.append(draw_part(image, rng).resize(size, Image.Resampling.BILINEAR))
        found.append(backbone(np.stack([np.asarray(part) for part in parts])))
    both = np.stack(found)
    return both[:, :-1], both[:, -1]


def tiles(width: int, height: int) -> Iterator[tuple[float, float, float, float]]:
    """Yield the boxes of the whole picture and of its half overlapping tiles."""
    for n in TILES:
        w, h = width / n, height / n
        for row in range(2 * n - 1):
            for column in range(2 * n - 1):
                yield column * w / 2, row * h / 2, column * w / 2 + w, row * h / 2 + h


def draw_part(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Cut a part of 20 to 60 % of each side, and save it as somebody else might have."""
    w, h = (rng.uniform(0.2, 0.6, 2) * image.size).astype(int)
    x, y = (rng.uniform(0, 1, 2) * (image.width - w, image.height - h)).astype(int)
    part = image.crop((x, y, x + w, y + h))
    part = ImageEnhance.Brightness(part).enhance(rng.uniform(0.8, 1.2))
    part = ImageEnhance.Color(part).enhance(rng.uniform(0.7, 1.3))
    saved = io.BytesIO()
    part.save(saved, "JPEG", quality=int(rng.integers(40, 81)))
    return Image.open(saved)


def reduce(
    chunks: np.ndarray, queries: np.ndarray, dimension: int
) -> tuple[np.ndarray, np.ndarray]:
    """Project both on the principal components of the chunks, and L2-normalise: float32."""
    flat = chunks.reshape(-1, chunks.shape[-1])
    mean = flat.mean(0)
    _, _, components = np.linalg.svd(flat[::5] - mean, full_matrices=False)
    basis = components[:dimension].T

    def project(vectors: np.ndarray) -> np.ndarray:
        return unit((vectors - mean) @ basis).astype(np.float32)

    return project(chunks), project(queries)


def multiply(real: np.ndarray, photos: int, file: Path) -> None:
    """Write the chunks of many photos: the real ones first, then mixtures of them.

    Args:
        real: float32 `[n, 35, d]`.
        photos: how many are written.
        file: gets them as float16 `[photos, 35, d]`.
    """
    rng = np.random.default_rng(0)
    shape = (photos, *real.shape[1:])
    target = np.lib.format.open_memmap(file, mode="w+", dtype=np.float16, shape=shape)
    target[: len(real)] = real[:photos]
    for start in tqdm(range(len(real), photos, BLOCK), desc="multiplying", unit="kphoto"):
        part = target[start : start + BLOCK]
        one, two, three = rng.integers(0, len(real), (3, len(part)))
        share = rng.uniform(0.1, 0.5, (len(part), 1, 1)).astype(np.float32)
        tile = rng.integers(0, CHUNKS, (len(part), CHUNKS))
        apart = real[three[:, None], tile] - real[three].mean(1, keepdims=True)
        part[:] = unit((1 - share) * real[one] + share * real[two] + 0.3 * apart)


def find_nearest(chunks: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Compare everything in float32: the ten nearest photos of each query, int64 `[q, 10]`."""
    best, numbers = [], []
    by = torch.from_numpy(queries)
    for start in tqdm(range(0, len(chunks), BLOCK), desc="comparing all", unit="kphoto"):
        part = torch.from_numpy(chunks[start : start + BLOCK].astype(np.float32))
        found = (part @ by.T).amax(1).topk(min(WANTED, len(part)), 0)
        best.append(found.values)
        numbers.append(found.indices + start)
    order = torch.cat(best).topk(WANTED, 0).indices
    return torch.cat(numbers).gather(0, order).T.numpy()
