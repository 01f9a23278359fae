"""Scale many crops at once on a GPU, as matrix products.

Each number of a scaled row is a weighted sum of the numbers around its place. So the rows of a crop
are the photo's rows times a matrix of weights; a second product scales the columns. Two products
make all crops of a photo. A GPU has special units for them, and the number of launches doesn't
depend on the number of crops.

The filter is the cubic convolution of Keys (1981) with a = -0.5, stretched by the reduction, with
weights divided by their sum: antialiased bicubic, as in Pillow and torch.

Everything is float16. Pixels minus 128 are whole numbers, which float16 represents exactly. So are
the scaled rows, because they are rounded to whole numbers before the columns are scaled, as in
Pillow and torch. A weight loses 2^-12, and a sum, which the units add up in float32, loses 1/32:
together less than a tenth of a grey level before rounding. TF32 would keep no more of the weights,
at half the speed; bfloat16 would lose half a level; and there are no fast units for float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from deployments.compute.device import upload

DTYPE = torch.float16
MEMORY = 2**29  # bytes of all intermediate results, about
GREY = 128  # subtracted from each pixel, so that rounded numbers are small


@torch.inference_mode()
def scale_windows(
    photos: Sequence[torch.Tensor], windows: Sequence[np.ndarray], size: int
) -> list[torch.Tensor]:
    """Scale windows of photos, and cut out the middle square of each.

    Args:
        photos: uint8 `[height, width, 3]`, on one device.
        windows: for each photo int64 `[n, 3, 2]`: start, length and scaled length of each window,
            in x and y, pixels.
        size: side of the square, pixels; no scaled length is smaller.

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
    """Estimate the memory for a crop: its weights, their matrices, and its scaled rows."""
    return size * (2 * (width + height) + 6 * height + 2 * _taps(windows) * 32)


def _taps(windows: np.ndarray) -> int:
    """Return the largest number of pixels that a pixel of a crop depends on, along one side."""
    reduction = max(1, (windows[:, 1] / windows[:, 2]).max())
    return math.ceil(4 * reduction) + 1


def _weights(
    windows: np.ndarray, size: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pixels that each pixel of a crop depends on, and their weights.

    Returns:
        int64 and float16 `[2, n, size, taps]`, for x and for y; unused pixels have weight 0.
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
    """Return Keys' kernel, a = -0.5, at distances from 0. It is 0 from distance 2 on."""
    t = t.clamp(max=2)
    return torch.where(t < 1, (1.5 * t - 2.5) * t * t + 1, ((-0.5 * t + 2.5) * t - 4) * t + 2)


def _matrix(taps: torch.Tensor, weights: torch.Tensor, length: int) -> torch.Tensor:
    """Return the weights as matrices, float16 `[n, size, at least length]`.

    Weights of 0 may lie beyond the end of the photo, so the matrices have room for them. Rows begin
    at multiples of 16 bytes, which fast products need.
    """
    n, size, most = taps.shape
    matrix = weights.new_zeros((n, size, math.ceil((length + most) / 8) * 8))
    return matrix.scatter_(2, taps, weights)


def _parts(
    photos: Sequence[torch.Tensor], counts: Sequence[int], start: int, stop: int
) -> Iterator[tuple[torch.Tensor, slice]]:
    """Yield the photos of the crops from `start` to `stop`, each with the slice of its crops."""
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
        squares: gets the result, less 128 and not rounded: `[n, size * 3, size]`, by column, colour
            and row.
    """
    height, width, _ = photo.shape
    planes = across.new_empty((width, 3, height))
    torch.sub(photo.permute(1, 2, 0), float(GREY), out=planes)
    rows = across[:, :width] @ planes.view(width, 3 * height)
    # Round to whole numbers of 8 bits, as Pillow and torch do between the two steps.
    rows = rows.round_().clamp_(-GREY, 255 - GREY).view(len(down), -1, height)
    torch.bmm(rows, down[:, :height], out=squares)
