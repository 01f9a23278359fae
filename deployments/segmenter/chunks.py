"""Choose the parts of a photo that become chunks: its objects, tiles, and the whole photo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from deployments.boxes import outer_box
from deployments.records import Box
from deployments.tiles import tile_boxes

TILE_IOU = 0.7  # a tile that overlaps an object by more would give nearly the same chunk
# Weights of red, green and blue in a grey value (ITU-R BT.601), as in Pillow.
GREY = (0.299, 0.587, 0.114)


class ChunkBoxes(NamedTuple):
    """The boxes of a photo's chunks, in pixels, inside the photo.

    Attributes:
        objects: in the order of the detections.
        tiles: without those that nearly equal an object's box.
        whole: the whole photo.
    """

    objects: list[Box]
    tiles: list[Box]
    whole: Box


def choose_boxes(
    height: int,
    width: int,
    detected: Sequence[Sequence[float]],
    scales: Sequence[int],
    max_tiles: int,
    overlap: float,
) -> ChunkBoxes:
    """Choose the boxes of a photo's chunks.

    Args:
        height, width: size of the photo, pixels.
        detected: x1, y1, x2, y2 of each detection, pixels; rounded outwards.
        scales, max_tiles, overlap: see `tiles.tile_boxes`.
    """
    objects = [outer_box((x1, y1, x2, y2), width, height) for x1, y1, x2, y2 in detected]
    tiles = distinct_tiles(tile_boxes(width, height, scales, max_tiles, overlap), objects)
    return ChunkBoxes(objects, tiles, (0, 0, width, height))


def distinct_tiles(tiles: list[Box], objects: list[Box]) -> list[Box]:
    """Return the tiles without those that nearly equal an object's box.

    This is NumPy, because on so few boxes its operations take a fifth of torch's time.
    """
    if not tiles or not objects:
        return tiles
    one, other = np.array(tiles), np.array(objects)[:, None]
    inside = np.minimum(one[:, 2:], other[..., 2:]) - np.maximum(one[:, :2], other[..., :2])
    intersection = inside.clip(0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (one, other)]
    union = np.maximum(sum(areas) - intersection, 1)  # in whole pixels
    equal = (intersection / union > TILE_IOU).any(0)
    return [tile for tile, is_equal in zip(tiles, equal.tolist(), strict=True) if not is_equal]


def contrasts(crops: torch.Tensor) -> list[float]:
    """Return the standard deviation of each crop's grey values, 0 to 127.5.

    Args:
        crops: uint8 `[n, h, w, 3]`, on any device.
    """
    grey = crops.float() @ torch.tensor(GREY, device=crops.device)
    return grey.flatten(1).std(1, correction=0).tolist()
