"""Cut crops out of photos, and scale them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch.nn import functional

from deployments.boxes import outer_box
from deployments.compute.resample import scale_windows

# Types of devices on which many crops are scaled together, as matrix products. On a CPU that takes
# 16 times as long as one crop at a time, because most numbers of the matrices are 0.
MATRICES_ON = frozenset({"cuda"})
# The CPU scales crops that shrink by more than this, one at a time: their matrices would be large.
MAX_REDUCTION = 64
MAX_ASPECT = 8


def scale_crop(
    pixels: torch.Tensor,
    box: tuple[float, float, float, float],
    size: int,
    squash: bool = False,
) -> torch.Tensor:
    """Cut one box out of an image and scale it; see `scale_crops`.

    Args:
        pixels: uint8 `[height, width, 3]`, on any device.
        box: x1, y1, x2, y2 in pixels; rounded outwards, clipped to the image, at least 1 x 1.

    Returns:
        uint8 `[size, size, 3]` on the same device.
    """
    x1, y1, x2, y2 = outer_box(box, pixels.shape[1], pixels.shape[0])
    if x2 - x1 == y2 - y1 == size:
        return pixels[y1:y2, x1:x2]
    return scale_crops([pixels], [np.array([[x1, y1, x2, y2]])], size, squash)[0][0]


def scale_crops(
    images: Sequence[torch.Tensor],
    boxes: Sequence[np.ndarray],
    size: int,
    squash: bool = False,
    *,
    together_on: Collection[str] = MATRICES_ON,
) -> list[torch.Tensor]:
    """Cut boxes out of images and scale them to the encoder's input, in one step.

    The interpolation is antialiased bicubic. Photos and queries are scaled in the same way, as in
    the training of the encoder. In CLIP's geometry the shortest side becomes `size`, and the centre
    square is cut out, so an oblong box loses its ends.

    A CPU scales one box at a time, a GPU all of them as matrix products. Between the two, 5 of 100
    values differ by 1 grey level, and 1 of 10,000 by 2.

    Args:
        images: uint8 `[height, width, 3]`, on any devices.
        boxes: for each image, integers `[n, 4]`: x1, y1, x2, y2, inside it; see `outer_box`.
        size: side of the square, pixels.
        squash: scale the whole box to the square instead, whatever its shape.
        together_on: types of devices on which crops are scaled together.

    Returns:
        For each image uint8 `[n, size, size, 3]`, on its device.
    """
    windows = [_windows(of_image, size, squash) for of_image in boxes]
    together = [
        i
        for i, image in enumerate(images)
        if image.device.type in together_on
        and (windows[i][:, 1] <= MAX_REDUCTION * windows[i][:, 2]).all()
    ]
    crops: dict[int, torch.Tensor] = {}
    if together:
        scaled = scale_windows([images[i] for i in together], [windows[i] for i in together], size)
        crops.update(zip(together, scaled, strict=True))
    for i in set(range(len(images))) - set(together):
        pixels = images[i].cpu()
        scaled = [_scale_window(pixels, window, size) for window in windows[i].tolist()]
        crops[i] = torch.stack(scaled).to(images[i].device)
    return [crops[i] for i in range(len(images))]


def _windows(boxes: np.ndarray, size: int, squash: bool) -> np.ndarray:
    """Return the window of each box that is scaled: int64 `[n, 3, 2]`, pixels.

    For x and y it has the start, the length, and the scaled length, whose middle `size` pixels are
    the crop.
    """
    start, length = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    scaled = np.full_like(length, size)
    if not squash:
        # CLIP's geometry shows only the middle of a very long strip. Without this limit, a box of
        # 20000 x 1 pixels would be scaled to 20000 * size pixels before its centre is cut out.
        shortest = length.min(1, keepdims=True)
        shown = np.minimum(length, MAX_ASPECT * shortest)
        start, length = start + (length - shown) // 2, shown
        scaled = size * length // shortest
    return np.stack((start, length, scaled), 1)


def _scale_window(pixels: torch.Tensor, window: list[list[int]], size: int) -> torch.Tensor:
    (x, y), (width, height), (scaled_width, scaled_height) = window
    crop = pixels[y : y + height, x : x + width]
    resized = resize(crop, (scaled_height, scaled_width), "bicubic")
    top, left = (scaled_height - size) // 2, (scaled_width - size) // 2
    return resized[top : top + size, left : left + size]


def resize(pixels: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    """Scale uint8 `[h, w, 3]` to `[*size, 3]`, antialiased, as Pillow does.

    If an image shrinks by more than `MAX_REDUCTION`, only every n-th row or column is used. With
    all pixels, a strip of 64 million takes 1.6 s and 0.9 GB instead of 6 ms, and torch's kernel for
    GPUs refuses it.

    Args:
        mode: `bilinear` or `bicubic`.
    """
    steps = [
        max(1, math.ceil(side / (MAX_REDUCTION * new)))
        for side, new in zip(pixels.shape, size, strict=False)
    ]
    pixels = pixels[:: steps[0], :: steps[1]]
    planes = pixels.permute(2, 0, 1).unsqueeze(0)
    if pixels.is_cuda:
        planes = _resize_floats(planes, size, mode)
    else:
        planes = functional.interpolate(planes, size, mode=mode, antialias=True)
    return planes[0].permute(1, 2, 0)


def _resize_floats(planes: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    """Scale uint8 `[1, 3, h, w]` on a GPU, for which torch has no kernel that takes uint8.

    As that of the CPU, and as Pillow, this rounds half up between the columns and the rows. With
    one rounding, a fifth of all values would differ by a grey level; with two, a hundredth.
    """
    for step in ((planes.shape[2], size[1]), size):
        scaled = functional.interpolate(planes.float(), step, mode=mode, antialias=True)
        planes = scaled.add_(0.5).floor_().clamp_(0, 255).to(torch.uint8)
    return planes
