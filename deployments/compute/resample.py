"""Many parts of photos scaled at once, as products of matrices: the way for GPUs.

Each number of a scaled row is a weighted sum of the numbers around its place: so the rows of a crop
are those of the photo times a matrix of weights, and its columns are once more. All crops of a
photo are two products, for which a GPU has units of its own, and what is launched for a photo
doesn't depend on how many crops it has.

The filter is the cubic convolution of Keys (1981) with a = -0.5, stretched by the reduction, and
its weights divided by their sum: antialiased bicubic, as Pillow's and torch's.

Everything is float16. The pixels are whole numbers, less 128, so they are exact in it, and so are
the scaled rows, which are rounded to whole numbers before the columns, as Pillow and torch do. Of
a weight 2^-12 is lost, and of a sum, which the units add up in float32, 1/32: together less than a
tenth of a grey level, and then it is rounded. TF32 would keep no more of the weights, at half the
speed; bfloat16 would lose half a level; for float32 itself there are no fast units.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from deployments.compute.device import upload

DTYPE = torch.float16
MEMORY = 2**29  # bytes for all that is in between, about
GREY = 128  # taken from each pixel, so that numbers are small where they are rounded


@torch.inference_mode()
def scale_windows(
    photos: Sequence[torch.Tensor], windows: Sequence[np.ndarray], size: int
) -> list[torch.Tensor]:
    """Scale windows of photos, and cut out the middle square of each.

    Args:
        photos: uint8 `[height, width, 3]`, on one device.
        windows: of each photo int64 `[n, 3, 2]`, each of x and y: where a window starts, how long
            it is, and how long that is scaled, pixels.
        size: side of the square, pixels; no window is scaled to less.

    Returns:
        For each photo uint8 `[n, size, size, 3]`.
    """
    counts = [len(of_photo) for of_photo in windows]
    every = np.concatenate(windows)
    height, width = (max(photo.shape[axis] for photo in photos) for axis in (0, 1))
    crops = photos[0].new_empty((len(every), size, size, 3))
    step = max(1, MEMORY // _bytes_of_a_crop(every, size, height, width))
    for start in range(0, len(every), step):
        some = every[start : start + step]
        taps, weights = _weights(some, size, crops.device)
        across = _matrix(taps[0], weights[0], width).view(len(some) * size, -1)
        down = _matrix(taps[1], weights[1], height).transpose(1, 2)
        squares = across.new_empty((len(some), size * 3, size))  # column, colour; row
        for photo, part in _parts(photos, counts, start, start + step):
            rows = slice(part.start * size, part.stop * size)
            _product(photo, across[rows], down[part], squares[part])
        squares = squares.round_().add_(GREY).clamp_(0, 255)
        crops[start : start + step] = squares.view(-1, size, 3, size).permute(0, 3, 1, 2)
    return list(crops.split(counts))


def _bytes_of_a_crop(windows: np.ndarray, size: int, height: int, width: int) -> int:
    """Estimate the memory for a crop: its matrices, its scaled rows, and the weights before."""
    return size * (2 * (width + height) + 6 * height + 2 * _taps(windows) * 32)


def _taps(windows: np.ndarray) -> int:
    """Return how many pixels one of the result depends on, at most."""
    reduction = max(1, (windows[:, 1] / windows[:, 2]).max())
    return math.ceil(4 * reduction) + 1


def _weights(
    windows: np.ndarray, size: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which pixels each one of the results depends on, and how much.

    Returns:
        int64 and float16 `[2, n, size, taps]`, for x and for y; where there are fewer pixels, the
        weight is 0.
    """
    start, length, scaled = windows.transpose(1, 2, 0)  # [3, 2, n]
    scale = length / scaled
    reach = np.maximum(scale, 1)
    first = ((scaled - size) // 2 + 0.5) * scale  # the middle of the first result
    numbers = upload(np.stack((start, length, scale, reach, first)).astype(np.float32), device)
    start, length, scale, reach, first = numbers[..., None]
    centre = first + scale * torch.arange(size, device=device)
    nearest = (centre - 2 * reach + 0.5).floor_().clamp_(min=0)
    taps = nearest[..., None] + torch.arange(_taps(windows), device=device)
    distance = (taps + 0.5 - centre[..., None]).abs_() / reach[..., None]
    weights = _cubic(distance) * (taps < length[..., None])
    weights /= weights.sum(-1, keepdim=True)
    return (taps + start[..., None]).long(), weights.to(DTYPE)


def _cubic(t: torch.Tensor) -> torch.Tensor:
    """Keys' kernel, a = -0.5, of distances from 0: a curve up to 1, another up to 2, then 0."""
    t = t.clamp(max=2)
    return torch.where(t < 1, (1.5 * t - 2.5) * t * t + 1, ((-0.5 * t + 2.5) * t - 4) * t + 2)


def _matrix(taps: torch.Tensor, weights: torch.Tensor, length: int) -> torch.Tensor:
    """Put weights where they belong: float16 `[n, size, at least length]`.

    Those of 0 may lie beyond the photo's end, for which there is room; and rows begin at multiples
    of 16 bytes, without which there is no fast product.
    """
    n, size, most = taps.shape
    matrix = weights.new_zeros((n, size, math.ceil((length + most) / 8) * 8))
    return matrix.scatter_(2, taps, weights)


def _parts(
    photos: Sequence[torch.Tensor], counts: Sequence[int], start: int, stop: int
) -> Iterator[tuple[torch.Tensor, slice]]:
    """Yield the photos that have crops between two numbers, and which of those are theirs."""
    first = 0
    for photo, count in zip(photos, counts, strict=True):
        begin, end = max(first, start), min(first + count, stop)
        if begin < end:
            yield photo, slice(begin - start, end - start)
        first += count


def _product(
    photo: torch.Tensor, across: torch.Tensor, down: torch.Tensor, squares: torch.Tensor
) -> None:
    """Scale parts of a photo.

    Args:
        photo: uint8 `[height, width, 3]`.
        across: `[n * size, at least width]`.
        down: `[n, at least height, size]`.
        squares: `[n, size * 3, size]`, by column, colour and row: where they go, less 128, not
            rounded.
    """
    height, width, _ = photo.shape
    planes = across.new_empty((width, 3, height))
    torch.sub(photo.permute(1, 2, 0), float(GREY), out=planes)
    rows = across[:, :width] @ planes.view(width, 3 * height)
    # To whole numbers of 8 bits, as Pillow and torch have them between the two steps.
    rows = rows.round_().clamp_(-GREY, 255 - GREY).view(len(down), -1, height)
    torch.bmm(rows, down[:, :height], out=squares)
