"""What may be an object, and what is the same again: against brute force, ties included."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.segmenter import suppression
from deployments.segmenter.chunks import TILE_IOU, distinct_tiles
from deployments.segmenter.suppression import (
    MAX_CANDIDATES,
    MAX_DETECTIONS,
    _likely,
    intersection_over_union,
    select,
    suppress,
)
from tests.support.networks.operations import CountOperations
from tests.support.running.examples import examples


def overlap(a, b):
    """Intersection over union in plain Python."""
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    both = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / union if union > 0 else 0


def greedy(boxes, classes, threshold):
    """Non-maximum suppression as it is defined: which boxes stay, most confident first."""
    stay = []
    for i, box in enumerate(boxes):
        if len(stay) < suppression.MAX_DETECTIONS and not any(
            classes[i] == classes[k] and overlap(box, boxes[k]) > threshold for k in stay
        ):
            stay.append(i)
    return stay


# Small whole numbers: equal boxes, touching boxes, empty boxes and exact ties all occur. Fractions
# of them and these thresholds differ by more than float32 rounds, or are exactly equal.
small = st.integers(0, 8)
boxes = st.tuples(small, small, small, small).map(
    lambda t: (min(t[0], t[2]), min(t[1], t[3]), max(t[0], t[2]), max(t[1], t[3]))
)
box_lists = st.lists(st.tuples(boxes, st.integers(0, 1)), max_size=30)
iou_thresholds = st.sampled_from([0.0, 0.25, 0.45, 0.5, 1.0])
blocks = st.sampled_from([1, 2, 7, 256])


@settings(max_examples=examples(300))
@given(st.lists(box_lists, min_size=1, max_size=4), iou_thresholds, blocks, st.integers(1, 12))
def test_suppression_equals_brute_force(images, threshold, block, most):
    longest = max(map(len, images))
    corners = torch.zeros(len(images), longest, 4)
    classes = torch.full((len(images), longest), -1)
    for number, image in enumerate(images):
        for place, (box, label) in enumerate(image):
            corners[number, place] = torch.tensor(box)
            classes[number, place] = label
    with patch.multiple(suppression, BLOCK=block, MAX_DETECTIONS=most):
        stay = suppress(corners, classes, threshold)
        expected = [
            greedy(*zip(*image, strict=True), threshold) if image else [] for image in images
        ]
    assert [row.nonzero().flatten().tolist() for row in stay] == expected


def test_a_chain_as_long_as_a_block():
    """Each box overlaps the next one only: every second one stays, found one after the other."""
    left = torch.arange(suppression.BLOCK * 2 + 10).float() * 6
    corners = torch.stack((left, torch.zeros_like(left), left + 10, torch.ones_like(left)), 1)
    with patch.object(suppression, "MAX_DETECTIONS", 1000):
        stay = suppress(corners[None], torch.zeros(1, len(left), dtype=torch.int64), 0.2)
    assert stay[0].tolist() == [number % 2 == 0 for number in range(len(left))]


def test_at_most_300_are_kept():
    corners = torch.arange(MAX_DETECTIONS + 50).float().mul(10).unsqueeze(1)
    disjoint = torch.cat((corners, corners, corners + 5, corners + 5), 1)
    both = torch.stack((disjoint, torch.zeros_like(disjoint)))
    stay = suppress(both, torch.zeros(both.shape[:2], dtype=torch.int64), 0.5)
    for row in stay:  # without area nothing overlaps either
        assert row.nonzero().flatten().tolist() == list(range(MAX_DETECTIONS))


def test_candidates_by_hand():
    prediction = torch.tensor(
        [
            [50, 60, 20, 10, 0.9, 0.1, 0.5],  # 0.45, class 1
            [10, 10, 4, 4, 0.4, 1.0, 0.0],  # below: 0.4 is not more than 0.4
            [30, 30, 2, 2, 1.0, 0.8, 0.7],  # 0.8, class 0; only the best class counts
            [0, 0, 8, 8, 1.0, 0.3, 0.2],  # objectness alone isn't enough
            [50, 60, 20, 10, 0.5, 0.9, 0.2],  # 0.45 again: after the first
        ]
    )
    first, second = select(torch.stack((prediction, prediction)), [0.4, 0.5], 1.0)
    assert first.dtype == np.float32
    assert first[:, 4].tolist() == pytest.approx([0.8, 0.45, 0.45])
    assert first[:, 5].tolist() == [0, 1, 0]
    assert first[:, :4].tolist() == [[29, 29, 31, 31], [40, 55, 60, 65], [40, 55, 60, 65]]
    np.testing.assert_array_equal(second, first[:1])


def selected_by_brute_force(prediction, threshold, iou_threshold):
    """Look at one anchor after the other, in the numbers of the network."""
    found = []
    for row in prediction.numpy():
        products = row[5:] * row[4]
        confidence, label = products.max(), int(products.argmax())
        if confidence > np.float32(threshold):
            x, y, width, height = row[:4]
            box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            found.append((*map(float, box), float(confidence), label))
    found.sort(key=lambda one: -one[4])  # stable
    found = found[: suppression.MAX_CANDIDATES]
    stay = greedy([one[:4] for one in found], [one[5] for one in found], iou_threshold)
    return [found[i] for i in stay]


def all_of_them(predictions, threshold):
    """What a GPU looks at."""
    return predictions


# Few values, so that confidences are often equal, of anchors and of classes.
tenths = st.integers(0, 4).map(lambda n: n / 4)
anchors = st.tuples(small, small, small, small, tenths, tenths, tenths)


@settings(max_examples=examples(300))
@given(
    st.data(),
    st.integers(1, 4),
    st.integers(1, 25),
    iou_thresholds,
    st.integers(1, 10),
    st.sampled_from([_likely, all_of_them]),
)
def test_selection_equals_brute_force(data, images, length, iou_threshold, most, likely):
    rows = data.draw(st.lists(anchors, min_size=images * length, max_size=images * length))
    predictions = torch.tensor(rows, dtype=torch.float32).view(images, length, 7)
    thresholds = data.draw(st.lists(tenths, min_size=images, max_size=images))
    sizes = {"MAX_CANDIDATES": most, "MAX_DETECTIONS": 6, "BLOCK": 4}
    with patch.multiple(suppression, _likely=likely, **sizes):
        found = select(predictions, thresholds, iou_threshold)
        expected = [
            selected_by_brute_force(prediction, threshold, iou_threshold)
            for prediction, threshold in zip(predictions, thresholds, strict=True)
        ]
    assert [list(map(tuple, of_image.tolist())) for of_image in found] == expected


def test_an_image_does_not_depend_on_the_others():
    predictions = torch.rand(5, 600, 25, generator=torch.Generator().manual_seed(0))
    predictions[..., :4] *= 100
    predictions[3, :, 4] = 0  # finds nothing
    thresholds = [0.0, 0.5, 0.8, 0.0, 0.9]
    together = select(predictions, thresholds, 0.45)
    assert [len(found) > 0 for found in together] == [True, True, True, False, True]
    for number, threshold in enumerate(thresholds):
        (alone,) = select(predictions[number : number + 1], [threshold], 0.45)
        np.testing.assert_array_equal(together[number], alone)
        assert alone.shape[1] == 6


def test_nothing_is_launched_for_an_image(monkeypatch):
    monkeypatch.setattr(suppression, "upload", lambda array, device: torch.from_numpy(array))
    prediction = torch.rand(1, 300, 25, generator=torch.Generator().manual_seed(0))
    prediction[..., :4] *= 50
    counts = []
    for images in (1, 20):
        with CountOperations() as counter:
            found = select(prediction.repeat(images, 1, 1), [0.5] * images, 0.45)
        assert len(found) == images
        assert len(found[0]) > 5
        counts.append(counter.count)
    assert counts[0] == counts[1]


def test_candidates_are_limited_to_the_most_confident():
    prediction = torch.rand(1, MAX_CANDIDATES + 500, 6, generator=torch.Generator().manual_seed(0))
    prediction[..., 5] = 1
    prediction[..., 2:4] = 0  # without area: nothing overlaps
    with patch.object(suppression, "MAX_DETECTIONS", 10_000):
        (found,) = select(prediction, [0], 0.5)
    expected = prediction[0, :, 4].sort(descending=True).values[:MAX_CANDIDATES]
    np.testing.assert_array_equal(found[:, 4], expected)
    assert [len(found) for found in select(prediction, [1.0], 0.5)] == [0]
    assert [len(found) for found in select(prediction[:, :0], [0.5], 0.5)] == [0]


def test_intersection_over_union_by_hand():
    others = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10], [3, 3, 3, 3]])
    values = intersection_over_union(torch.tensor([0.0, 0, 10, 10]), others)
    torch.testing.assert_close(values, torch.tensor([1, 1 / 3, 0, 0]))
    table = intersection_over_union(others[:, None], others)
    torch.testing.assert_close(table[0], values)
    torch.testing.assert_close(table, table.T)


@settings(max_examples=examples(100))
@given(st.lists(boxes, max_size=12), st.lists(boxes, max_size=6))
def test_tiles_that_show_something_else(tiles, objects):
    expected = [t for t in tiles if all(overlap(t, o) <= TILE_IOU for o in objects)]
    assert distinct_tiles(tiles, objects) == expected
