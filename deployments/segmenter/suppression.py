"""From a detector's numbers to its findings: what may be an object, and what is the same again.

Everything is done for a whole batch of images at once, with operations whose number doesn't depend
on that of the images or of the boxes: so a GPU isn't kept waiting, and a CPU takes no longer than
for one image after the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from deployments.compute.device import upload

MAX_CANDIDATES = 4096
MAX_DETECTIONS = 300
BLOCK = 256  # candidates that are compared with one another at a time; most images have fewer


def select(
    predictions: torch.Tensor, thresholds: Sequence[float], iou_threshold: float
) -> list[np.ndarray]:
    """Select the objects of a batch of images: of each anchor its most probable class.

    An anchor is a candidate if its objectness times the probability of its class is larger than
    its image's threshold. The most confident `MAX_CANDIDATES` of an image are looked at (of equal
    ones the first anchors), see `suppress`.

    Args:
        predictions: float32 `[n, anchors, 5 + classes]`, as `YoloV5.forward` returns them; the
            probabilities between 0 and 1.
        thresholds: of each image.
        iou_threshold: intersection over union must be larger for a box to be dropped.

    Returns:
        For each image float32 `[k, 6]`: x1, y1, x2, y2, confidence, class; most confident first.
    """
    images = len(predictions)
    least = upload(np.array(thresholds, np.float32), predictions.device)
    # A probability can't raise the product, so most anchors are out by their objectness alone.
    image, anchor = (predictions[..., 4] > least[:, None]).nonzero(as_tuple=True)
    rows = predictions[image, anchor]
    confidences, classes = (rows[:, 5:] * rows[:, 4:5]).max(1)
    order = confidences.sort(descending=True, stable=True).indices
    order = order[confidences[order] > least[image[order]]]
    order = order[image[order].sort(stable=True).indices]
    image, rows = image[order], rows[order]
    half = rows[:, 2:4] / 2
    found = torch.cat(
        (
            rows[:, :2] - half,
            rows[:, :2] + half,
            confidences[order, None],
            classes[order, None],
            image[:, None],
        ),
        1,
    )

    counts = image.bincount(minlength=images)
    place = torch.arange(len(image), device=image.device) - (counts.cumsum(0) - counts)[image]
    most = min(int(counts.max()), MAX_CANDIDATES)
    inside = (place < most).nonzero().squeeze(1)
    found, image, place = found[inside], image[inside], place[inside]
    boxes = found.new_zeros(images, most, 4)
    classes = image.new_full((images, most), -1)
    boxes[image, place] = found[:, :4]
    classes[image, place] = found[:, 5].long()
    kept = found[suppress(boxes, classes, iou_threshold)[image, place]].cpu().numpy()
    ends = np.searchsorted(kept[:, 6], np.arange(images - 1), side="right")
    return np.split(kept[:, :6], ends)


def suppress(boxes: torch.Tensor, classes: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Find the boxes that overlap no more confident one of their class that stays itself.

    This is greedy non-maximum suppression, without its loop over the boxes that stay. Say that all
    boxes stay; drop those that are overlapped by one that stays; begin again with the answer, until
    it doesn't change. The first box is right from the beginning, and each round makes right the
    next one at least, since it depends only on those before it. Genuine images need 3 to 6 rounds.
    What is sure of a block decides about the next ones, until each image has `MAX_DETECTIONS`.

    Args:
        boxes: float32 `[n, k, 4]`, x1, y1, x2, y2, the most confident of each image first.
        classes: int64 `[n, k]`; -1 where an image has fewer boxes.
        iou_threshold: intersection over union must be larger for a box to be dropped.

    Returns:
        bool `[n, k]`: which ones stay, at most `MAX_DETECTIONS` of each image.
    """

    def overlap(first: slice, second: slice) -> torch.Tensor:
        same = classes[:, first, None] == classes[:, None, second]
        return same & (
            intersection_over_union(boxes[:, first, None], boxes[:, None, second]) > iou_threshold
        )

    stay = classes >= 0
    for start in range(0, classes.shape[1], BLOCK):
        before, block = slice(start), slice(start, start + BLOCK)
        free = stay[:, block] & ~_any(overlap(before, block), stay[:, before])
        among = overlap(block, block).triu(1)
        stay[:, block] = free
        while not torch.equal(left := free & ~_any(among, stay[:, block]), stay[:, block]):
            stay[:, block] = left
        if bool((stay[:, : block.stop].sum(1) >= MAX_DETECTIONS).all()):
            break
    return stay & (stay.cumsum(1) <= MAX_DETECTIONS)


def _any(overlap: torch.Tensor, stay: torch.Tensor) -> torch.Tensor:
    """Return bool `[n, second]`: overlapped, bool `[n, first, second]`, by one that stays."""
    return (overlap & stay[:, :, None]).any(1)


def intersection_over_union(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return float32 between 0 and 1 for boxes `[..., 4]` that broadcast; 0 without area."""
    top_left = torch.maximum(one[..., :2], other[..., :2])
    bottom_right = torch.minimum(one[..., 2:], other[..., 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(-1)
    union = _area(one) + _area(other) - intersection
    return torch.where(union > 0, intersection / union, torch.zeros_like(union))


def _area(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).prod(-1)
