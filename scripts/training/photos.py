"""The photos that the encoder is trained on, all in the memory of the device."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common.photos import find_images
from PIL import Image, ImageOps
from tqdm import tqdm

SIDE = 384  # of the canvases, pixels; 0.44 MB a photo


@dataclass(frozen=True)
class Photos:
    """Photos on canvases of the same size, each in the upper left corner.

    A photo's last column and row are repeated up to the end of its canvas, so that a window which
    reaches beyond the photo shows no black.

    Attributes:
        canvases: uint8 `[n, 3, SIDE, SIDE]`.
        sizes: width and height of each, pixels, float32 `[n, 2]`.
    """

    canvases: torch.Tensor
    sizes: torch.Tensor

    def __len__(self) -> int:
        return len(self.canvases)

    def some(self, numbers: torch.Tensor | slice) -> Photos:
        """Return some of the photos: copies of them, or, for a slice, the same."""
        return Photos(self.canvases[numbers], self.sizes[numbers])

    def pixels(self, number: int) -> torch.Tensor:
        """Return a photo without its canvas, uint8 `[height, width, 3]`."""
        width, height = (int(side) for side in self.sizes[number])
        return self.canvases[number, :, :height, :width].permute(1, 2, 0).contiguous()


def load_photos(folders: Iterable[Path], device: torch.device) -> Photos:
    """Read all pictures in folders, scaled down to `SIDE`. Those that can't be read are named.

    Returns:
        The photos in a random order that is the same each time: the first ones are a fair sample.

    Raises:
        SystemExit: there are no pictures in a folder.
    """
    files = []
    for folder in folders:
        found = find_images([folder])
        if not found:
            raise SystemExit(f"There are no pictures in {folder}.")
        files += found
    files = [files[number] for number in np.random.default_rng(0).permutation(len(files))]
    canvases = torch.empty((len(files), 3, SIDE, SIDE), dtype=torch.uint8, device=device)
    sizes = torch.empty((len(files), 2), device=device)
    count = 0
    for pixels in _read_all(files):
        height, width = pixels.shape[:2]
        canvas = np.pad(pixels, ((0, SIDE - height), (0, SIDE - width), (0, 0)), mode="edge")
        canvases[count] = torch.from_numpy(canvas).to(device).permute(2, 0, 1)
        sizes[count] = torch.tensor([width, height], dtype=torch.float32)
        count += 1
    return Photos(canvases[:count], sizes[:count])


def _read_all(files: list[Path]) -> Iterator[np.ndarray]:
    ahead = 64 * (os.cpu_count() or 1)  # so that few decoded photos wait
    with (
        ThreadPoolExecutor(os.cpu_count()) as threads,
        tqdm(total=len(files), desc="reading", unit="photo") as bar,
    ):
        for start in range(0, len(files), ahead):
            for pixels in threads.map(_read, files[start : start + ahead]):
                bar.update()
                if pixels is not None:
                    yield pixels


def _read(file: Path) -> np.ndarray | None:
    try:
        with Image.open(file) as opened:
            opened.draft("RGB", (2 * SIDE, 2 * SIDE))
            image = ImageOps.exif_transpose(opened).convert("RGB")
            image.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
            return np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        tqdm.write(f"{file} is left out: {error}", file=sys.stderr)
        return None
