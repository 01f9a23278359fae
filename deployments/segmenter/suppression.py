"""Turn a detector's output into detections: choose candidates, and suppress duplicates.

A whole batch of images is done at once, with a number of operations that depends neither on the
number of images nor on that of boxes. The candidates are chosen where the output is, and fetched
from there in one step, because a GPU would have to be waited for in each round of the suppression.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from deployments.compute.device import download, upload

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
    threshold = upload(np.array(thresholds, np.float32), predictions.device)
    (found,) = download([_candidates(predictions, threshold)])
    most = (found[..., 5] >= 0).sum(1).max()
    boxes, classes = torch.from_numpy(found[:, :most]).split((4, 2), 2)
    stay = suppress(boxes, classes[..., 1].long(), iou_threshold).numpy()
    return [of_image[:most][kept] for of_image, kept in zip(found, stay, strict=True)]


def _candidates(predictions: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Return the candidates of each image, most confident first.

    Returns:
        float32 `[n, k, 6]`: x1, y1, x2, y2, confidence, class; the class is -1 after an image's
        last candidate.
    """
    if predictions.device.type == "cpu":
        predictions = _likely(predictions, threshold)
    confidences, classes = (predictions[..., 5:] * predictions[..., 4:5]).max(2)
    is_candidate = confidences > threshold[:, None]
    ranked = torch.where(is_candidate, confidences, -1).sort(descending=True, stable=True)
    order = ranked.indices[:, :MAX_CANDIDATES]
    place = predictions.gather(1, order[..., None].expand(-1, -1, 4))
    centre, half = place[..., :2], place[..., 2:] / 2
    classes = torch.where(is_candidate, classes, -1).gather(1, order)
    confidences = confidences.gather(1, order)
    return torch.cat((centre - half, centre + half, confidences[..., None], classes[..., None]), 2)


def _likely(predictions: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Return fewer rows of each image, in their order, among them all whose objectness is enough.

    A probability is at most 1, so objectness alone excludes most anchors. On a GPU, to look at all
    of them takes less time than to wait for their number.
    """
    is_likely = predictions[..., 4] > threshold[:, None]
    most = int(is_likely.sum(1).max())
    anchors = is_likely.float().topk(most).indices.sort(1).values
    return predictions.gather(1, anchors[..., None].expand(-1, -1, predictions.shape[2]))


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
