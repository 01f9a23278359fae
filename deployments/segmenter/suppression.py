"""Turn a detector's output into detections: choose candidates, and suppress duplicates.

A whole batch of images is done at once, with a number of operations that depends neither on the
number of images nor on that of boxes. So a GPU isn't kept waiting, and a CPU takes no longer than
it would for one image at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from deployments.compute.device import upload

MAX_CANDIDATES = 4096
MAX_DETECTIONS = 300
BLOCK = 256  # candidates that are compared with each other at a time; most images have fewer


def select(
    predictions: torch.Tensor, thresholds: Sequence[float], iou_threshold: float
) -> list[np.ndarray]:
    """Select the objects of a batch of images.

    Each anchor has its most probable class. It is a candidate if its objectness times the
    probability of this class exceeds its image's threshold. The `MAX_CANDIDATES` most confident
    candidates of an image (of equal ones, the first anchors) go to `suppress`.

    Args:
        predictions: float32 `[n, anchors, 5 + classes]`, as `YoloV5.forward` returns them, with
            probabilities between 0 and 1.
        thresholds: one for each image.
        iou_threshold: a box is dropped if its intersection over union with another exceeds this.

    Returns:
        For each image float32 `[k, 6]`: x1, y1, x2, y2, confidence, class; most confident first.
    """
    images = len(predictions)
    threshold = upload(np.array(thresholds, np.float32), predictions.device)
    # A probability is at most 1, so objectness alone excludes most anchors.
    image, anchor = (predictions[..., 4] > threshold[:, None]).nonzero(as_tuple=True)
    rows = predictions[image, anchor]
    confidences, classes = (rows[:, 5:] * rows[:, 4:5]).max(1)
    order = confidences.sort(descending=True, stable=True).indices
    order = order[confidences[order] > threshold[image[order]]]
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
    """Find the boxes that stay: those that no more confident staying box of their class overlaps.

    This is greedy non-maximum suppression without its loop over the boxes that stay. Assume that
    all boxes stay. Drop those that a staying box overlaps, and repeat this with the result until it
    doesn't change. The first box is right from the start, and each round settles at least the next
    one, because a box depends only on those before it. Real images take 3 to 6 rounds. A settled
    block decides about the next blocks, until each image has `MAX_DETECTIONS`.

    Args:
        boxes: float32 `[n, k, 4]`, x1, y1, x2, y2, the most confident of each image first.
        classes: int64 `[n, k]`; -1 pads images with fewer boxes.
        iou_threshold: boxes overlap if their intersection over union exceeds this.

    Returns:
        bool `[n, k]`: which boxes stay, at most `MAX_DETECTIONS` of each image.
    """

    def overlap(first: slice, second: slice) -> torch.Tensor:
        same = classes[:, first, None] == classes[:, None, second]
        return same & (
            intersection_over_union(boxes[:, first, None], boxes[:, None, second]) > iou_threshold
        )

    stay = classes >= 0
    for start in range(0, classes.shape[1], BLOCK):
        before, block = slice(start), slice(start, start + BLOCK)
        free = stay[:, block] & ~_suppressed(overlap(before, block), stay[:, before])
        among = overlap(block, block).triu(1)
        stay[:, block] = free
        while not torch.equal(left := free & ~_suppressed(among, stay[:, block]), stay[:, block]):
            stay[:, block] = left
        if bool((stay[:, : block.stop].sum(1) >= MAX_DETECTIONS).all()):
            break
    return stay & (stay.cumsum(1) <= MAX_DETECTIONS)


def _suppressed(overlap: torch.Tensor, stay: torch.Tensor) -> torch.Tensor:
    """Return which boxes overlap one that stays.

    Args:
        overlap: bool `[n, first, second]`: which boxes overlap.
        stay: bool `[n, first]`.

    Returns:
        bool `[n, second]`.
    """
    return (overlap & stay[:, :, None]).any(1)


def intersection_over_union(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return float32, 0 to 1, for boxes `[..., 4]` that broadcast; 0 if they have no area."""
    top_left = torch.maximum(one[..., :2], other[..., :2])
    bottom_right = torch.minimum(one[..., 2:], other[..., 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(-1)
    union = _area(one) + _area(other) - intersection
    return torch.where(union > 0, intersection / union, torch.zeros_like(union))


def _area(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).prod(-1)
