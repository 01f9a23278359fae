"""The network against its definition, the geometry against properties, NMS against brute force."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_checkpoint import save_checkpoint, tiny_architecture, tiny_network
from torch import nn

from deployments.checkpoint import CheckpointRefused, read_checkpoint
from deployments.weights import yolov5_weights
from deployments.yolov5 import (
    MAX_CANDIDATES,
    MAX_DETECTIONS,
    PADDING_GREY,
    Conv,
    YoloV5,
    candidates,
    decode_head,
    fuse,
    intersection_over_union,
    lay_on_canvas,
    letterbox,
    load_network,
    non_maximum_suppression,
    square_letterbox,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(("heads", "classes"), [(3, 1), (3, 80), (4, 7)])
def test_a_saved_network_computes_the_same_after_loading(tmp_path, heads, classes):
    network, architecture = tiny_network(heads, classes)
    checkpoint = read_checkpoint(save_checkpoint(tmp_path / "a.pt", network, architecture))
    loaded = load_network(checkpoint, CPU, torch.float32)
    assert loaded.stride == 8 * 2 ** (heads - 1)
    batch = torch.rand(2, 3, 128, 192)
    with torch.inference_mode():
        expected, actual = network(batch), loaded(batch)
    cells = sum(128 * 192 // (8 * 2**h) ** 2 for h in range(heads))
    assert actual.shape == (2, 2 * cells, 5 + classes)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in loaded.modules())
    # Boxes grow with the square of a sigmoid, so they amplify rounding.
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


def test_a_fused_convolution_equals_the_unfused_one():
    torch.manual_seed(0)
    block = Conv(8, 12, 3, 2)
    block.bn.running_mean.normal_()
    block.bn.running_var.uniform_(0.1, 3)
    nn.init.normal_(block.bn.weight)
    nn.init.normal_(block.bn.bias)
    block.eval()
    x = torch.randn(2, 8, 17, 23)
    with torch.inference_mode():
        expected = block(x)
        assert expected.shape == (2, 12, 9, 12)
        actual = fuse(block)(x)
    assert isinstance(block.bn, nn.Identity)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_uint8_is_scaled_to_one():
    network, _ = tiny_network()
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(network(pixels), network(pixels.float() / 255))


def test_bfloat16_is_near_float32_and_decoded_in_float32(tmp_path):
    network, architecture = tiny_network()
    checkpoint = read_checkpoint(save_checkpoint(tmp_path / "a.pt", network, architecture))
    batch = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        half = load_network(checkpoint, CPU, torch.bfloat16)(batch)
        full = load_network(checkpoint, CPU, torch.float32)(batch)
    assert half.dtype == torch.float32
    assert (half[..., :2] - full[..., :2]).abs().mean() < 1
    assert (half[..., 4:] - full[..., 4:]).abs().mean() < 0.03


def test_the_published_size_of_yolov5s():
    """7,235,389 parameters; fused 7,225,885, the figure usually quoted for it."""
    checkpoint = read_checkpoint(yolov5_weights("yolov5s"))
    network = YoloV5(checkpoint.architecture, checkpoint.anchors, checkpoint.stride)
    assert sum(p.numel() for p in network.parameters()) == 7_235_389
    assert sum(p.numel() for p in fuse(network).parameters()) == 7_225_885


def test_depth_and_width_multiples():
    network, _ = tiny_network()
    assert network.model[0].conv.out_channels == 8  # 32 * 0.25
    assert len(network.model[3].m) == 2  # 6 * 0.33
    architecture = tiny_architecture() | {"width_multiple": 0.3, "depth_multiple": 0.01}
    anchors = torch.ones(3, 2, 2)
    network = YoloV5(architecture, anchors, [8, 16, 32])
    assert network.model[0].conv.out_channels == 16  # 9.6, rounded up to a multiple of 8
    assert len(network.model[3].m) == 1


def test_an_unknown_module_is_named_with_those_that_are_known():
    architecture = tiny_architecture()
    architecture["backbone"][1] = [-1, 1, "GhostConv", [32, 3, 2]]
    with pytest.raises(CheckpointRefused, match=r"Layer 1.*'GhostConv'.*Conv, Bottleneck, C3"):
        YoloV5(architecture, torch.ones(3, 2, 2), [8, 16, 32])


def test_weights_of_another_architecture_are_refused(tmp_path):
    network, architecture = tiny_network(classes=7)
    path = save_checkpoint(tmp_path / "a.pt", network, architecture | {"nc": 8})
    with pytest.raises(CheckpointRefused, match="don't fit together"):
        load_network(read_checkpoint(path), CPU, torch.float32)


def test_decoding_by_hand():
    logits = torch.zeros(1, 2 * 6, 3, 4)  # two anchors, one class, 3 rows, 4 columns
    anchors = torch.tensor([[10.0, 20.0], [30.0, 40.0]])
    row = 1 * 12 + 2 * 4 + 3  # second anchor, third row, fourth column
    logits[0, 6:12, 2, 3] = torch.tensor([math.log(3), -math.log(3), 0, math.log(3), 0, 50.0])
    decoded = decode_head(logits, anchors, 8)
    assert decoded.shape == (1, 24, 6)
    # sigmoid(log 3) = 3/4, sigmoid(-log 3) = 1/4
    expected = [(1.5 - 0.5 + 3) * 8, (0.5 - 0.5 + 2) * 8, 30, 1.5**2 * 40, 0.5, 1]
    assert decoded[0, row].tolist() == pytest.approx(expected)
    assert decoded[0, 0].tolist() == pytest.approx([4, 4, 10, 20, 0.5, 0.5])


sides = st.integers(1, 5000)


@settings(max_examples=300, deadline=None)
@given(sides, sides, st.sampled_from([320, 640, 672]), st.sampled_from([1, 32, 64]), st.data())
def test_letterbox_and_back(height, width, image_size, stride, data):
    place = letterbox(height, width, image_size, stride)
    assert max(place.scaled) == image_size
    assert all(side % stride == 0 for side in place.canvas)
    assert all(0 <= c - s < stride for c, s in zip(place.canvas, place.scaled, strict=True))
    x1, x2 = sorted(data.draw(st.tuples(*[st.floats(0, width)] * 2)))
    y1, y2 = sorted(data.draw(st.tuples(*[st.floats(0, height)] * 2)))
    x_scale, y_scale = place.scaled[1] / width, place.scaled[0] / height
    box = [
        x1 * x_scale + place.left,
        y1 * y_scale + place.top,
        x2 * x_scale + place.left,
        y2 * y_scale + place.top,
    ]
    back = place.boxes_on_image(torch.tensor([box, [-9.0, -9, 9999, 9999]]))
    np.testing.assert_allclose(back[0], [x1, y1, x2, y2], atol=1)
    assert back[1].tolist() == [0, 0, width, height]
    assert place.boxes_on_image(torch.zeros(0, 4)).shape == (0, 4)


@settings(max_examples=50, deadline=None)
@given(sides, sides)
def test_square_letterbox(height, width):
    place = square_letterbox(height, width, 320)
    assert place.canvas == (320, 320)
    assert max(place.scaled) == 320
    assert abs(place.top * 2 + place.scaled[0] - 320) <= 1


@pytest.mark.parametrize(("height", "width"), [(30, 70), (64, 64), (200, 3), (1, 1)])
def test_the_picture_lies_centred_on_grey(height, width):
    place = letterbox(height, width, 64, 32)
    canvas = lay_on_canvas(torch.full((height, width, 3), 200, dtype=torch.uint8), place)
    assert canvas.shape == (*place.canvas, 3)
    inside = torch.zeros(place.canvas, dtype=torch.bool)
    rows = slice(place.top, place.top + place.scaled[0])
    inside[rows, place.left : place.left + place.scaled[1]] = True
    assert (canvas[inside] == 200).all()
    assert (canvas[~inside] == PADDING_GREY).all()


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
    boxes, confidences, classes = candidates(prediction, 0.4)
    assert confidences.tolist() == pytest.approx([0.8, 0.45, 0.45])
    assert classes.tolist() == [0, 1, 0]
    assert boxes.tolist() == [[29, 29, 31, 31], [40, 55, 60, 65], [40, 55, 60, 65]]


def test_candidates_are_limited_to_the_most_confident():
    prediction = torch.rand(MAX_CANDIDATES + 500, 6, generator=torch.Generator().manual_seed(0))
    prediction[:, 5] = 1
    _, confidences, _ = candidates(prediction, 0)
    expected = prediction[:, 4].sort(descending=True).values[:MAX_CANDIDATES]
    torch.testing.assert_close(confidences, expected)
    assert len(candidates(prediction, 1.0)[0]) == 0
    assert len(candidates(prediction[:0], 0.5)[0]) == 0


def overlap(a, b):
    """Intersection over union in plain Python."""
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    both = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / union if union > 0 else 0


# Small whole numbers: equal boxes, touching boxes, empty boxes and exact ties all occur.
small = st.integers(0, 8)
box_lists = st.lists(
    st.tuples(small, small, small, small, st.integers(0, 1)).map(
        lambda t: (min(t[0], t[2]), min(t[1], t[3]), max(t[0], t[2]), max(t[1], t[3]), t[4])
    ),
    max_size=30,
)


@settings(max_examples=300, deadline=None)
@given(box_lists, st.sampled_from([0.0, 0.25, 0.45, 0.5, 1.0]))
def test_suppression_equals_brute_force(boxes, threshold):
    expected = []
    for i, box in enumerate(boxes):
        if not any(box[4] == boxes[k][4] and overlap(box, boxes[k]) > threshold for k in expected):
            expected.append(i)
    tensor = torch.tensor([box[:4] for box in boxes], dtype=torch.float32).view(-1, 4)
    classes = torch.tensor([box[4] for box in boxes], dtype=torch.int64)
    # Fractions of small numbers and these thresholds differ by more than float32 rounds,
    # or are exactly equal.
    assert non_maximum_suppression(tensor, classes, threshold).tolist() == expected


def test_at_most_300_are_kept():
    corners = torch.arange(MAX_DETECTIONS + 50).float().mul(10).unsqueeze(1)
    boxes = torch.cat((corners, corners, corners + 5, corners + 5), 1)
    kept = non_maximum_suppression(boxes, torch.zeros(len(boxes), dtype=torch.int64), 0.5)
    assert kept.tolist() == list(range(MAX_DETECTIONS))


def test_intersection_over_union_by_hand():
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10], [3, 3, 3, 3]])
    values = intersection_over_union(torch.tensor([0.0, 0, 10, 10]), boxes)
    torch.testing.assert_close(values, torch.tensor([1, 1 / 3, 0, 0]))
