"""The network against its definition, the geometry against properties."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deployments.compute.weights import yolov5_weights
from deployments.segmenter.checkpoint import CheckpointRefused, read_checkpoint
from deployments.segmenter.letterbox import (
    PADDING_GREY,
    lay_on_canvases,
    letterbox,
    square_letterbox,
)
from deployments.segmenter.yolov5 import Conv, YoloV5, decode_head, fuse, load_network
from tests.support.networks.checkpoints import save_checkpoint, tiny_architecture, tiny_network
from tests.support.running.examples import examples

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


@pytest.mark.slow
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


@settings(max_examples=examples(300))
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
    back = place.boxes_on_image(np.array([box, [-9.0, -9, 9999, 9999]], np.float32))
    assert back.dtype == np.float32
    np.testing.assert_allclose(back[0], [x1, y1, x2, y2], atol=1)
    assert back[1].tolist() == [0, 0, width, height]
    assert place.boxes_on_image(np.zeros((0, 4), np.float32)).shape == (0, 4)


@settings(max_examples=examples(50))
@given(sides, sides, st.sampled_from([(1, 336), (32, 352), (64, 384)]))
def test_square_letterbox(height, width, stride_and_side):
    stride, side = stride_and_side
    place = square_letterbox(height, width, 336, stride)
    assert place.canvas == (side, side)
    assert max(place.scaled) == 336
    assert abs(place.top * 2 + place.scaled[0] - place.canvas[0]) <= 1


@pytest.mark.parametrize(("height", "width"), [(30, 70), (64, 64), (200, 3), (1, 1)])
def test_pictures_lie_centred_on_grey(height, width):
    sizes = [(height, width), (2 * height, 2 * width)]  # of one canvas
    places = [letterbox(*size, 64, 32) for size in sizes]
    images = [
        torch.full((*size, 3), value, dtype=torch.uint8)
        for size, value in zip(sizes, (200, 100), strict=True)
    ]
    canvases = lay_on_canvases(images, places, CPU)
    assert canvases.shape == (2, *places[0].canvas, 3)
    assert canvases.dtype == torch.uint8
    for canvas, place, value in zip(canvases, places, (200, 100), strict=True):
        inside = torch.zeros(place.canvas, dtype=torch.bool)
        rows = slice(place.top, place.top + place.scaled[0])
        inside[rows, place.left : place.left + place.scaled[1]] = True
        assert (canvas[inside] == value).all()
        assert (canvas[~inside] == PADDING_GREY).all()
