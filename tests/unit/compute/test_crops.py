"""Crops, against CLIP's own."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from transformers import CLIPImageProcessorPil

from deployments.compute.crops import _resize_floats, resize, scale_crop
from deployments.segmenter.chunks import contrasts

BOXES = [
    (0, 0, 600, 400),
    (100, 50, 500, 350),
    (170, 12, 424, 303),
    (10, 10, 60, 390),
    (3, 200, 500, 290),
    (300, 200, 340, 230),
]


def differs_from_transformers(box, side, squash=False, **processing):
    """How far each value is from what transformers makes of a part of a photo, grey levels."""
    photo = data.coffee()
    x1, y1, x2, y2 = box
    processor = CLIPImageProcessorPil(**processing, do_rescale=False, do_normalize=False)
    expected = processor(Image.fromarray(photo[y1:y2, x1:x2]))["pixel_values"][0]
    actual = scale_crop(torch.from_numpy(photo), box, side, squash).numpy()
    difference = actual.astype(int) - np.transpose(expected, (1, 2, 0)).astype(int)
    return np.abs(difference)


@pytest.mark.parametrize("size", [32, 112, 224])
@pytest.mark.parametrize("box", BOXES)
def test_scale_crop_is_clips_own_geometry(box, size):
    processing = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    assert differs_from_transformers(box, size, **processing).max() <= 2


@pytest.mark.parametrize("size", [32, 112, 224])
@pytest.mark.parametrize("box", [*BOXES, (0, 7, 600, 8), (9, 0, 10, 400)])
def test_squash_scales_all_of_the_box(box, size):
    processing = {"size": {"height": size, "width": size}, "do_center_crop": False}
    difference = differs_from_transformers(box, size, squash=True, **processing)
    # Pillow scales vertically first where that is less work, torch never does. What overshoots at a
    # sharp edge is clipped between the two, so a pixel in a thousand may differ by more than 2.
    assert np.quantile(difference, 0.999) <= 2
    assert difference.max() <= 12


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize(
    "box", [(0, 0, 1, 1), (5, 5, 5, 5), (0, 0, 600, 1), (0, 0, 1, 400), (-9, -9, 900, 900)]
)
def test_scale_crop_of_any_box(box, squash):
    crop = scale_crop(torch.from_numpy(data.coffee()), box, 64, squash)
    assert crop.shape == (64, 64, 3)
    assert crop.dtype == torch.uint8


def test_scale_crop_of_a_long_strip_shows_its_middle():
    strip = torch.zeros(4, 20000, 3, dtype=torch.uint8)
    strip[:, 9980:10020] = 200
    assert (scale_crop(strip, (0, 0, 20000, 4), 32) == 200).all()


def test_a_long_strip_is_squashed_with_its_ends():
    strip = torch.zeros(4, 20000, 3, dtype=torch.uint8)
    strip[:, :5000] = 200
    crop = scale_crop(strip, (0, 0, 20000, 4), 32, squash=True)
    assert (crop[:, :6] == 200).all()
    assert (crop[:, 10:] == 0).all()


def test_what_has_the_size_already_stays_as_it_is():
    pixels = torch.from_numpy(data.coffee())
    for squash in (False, True):
        crop = scale_crop(pixels, (10, 20, 74, 84), 64, squash)
        assert torch.equal(crop, pixels[20:84, 10:74])


def test_contrast_is_the_deviation_of_pillows_grey():
    photo = data.coffee()
    grey = np.array(Image.fromarray(photo).convert("L"))
    assert contrasts(torch.from_numpy(photo)[None]) == [pytest.approx(grey.std(), abs=0.05)]
    flat, halves = torch.full((2, 8, 8, 3), 99, dtype=torch.uint8)
    halves[:4], halves[4:] = 0, 255
    assert contrasts(torch.stack([flat, halves])) == pytest.approx([0, 127.5], abs=1e-3)


def test_resize_is_pillows():
    photo = data.coffee()
    for mode, resample in (("bilinear", Image.BILINEAR), ("bicubic", Image.BICUBIC)):
        expected = np.array(Image.fromarray(photo).resize((90, 70), resample)).astype(int)
        actual = resize(torch.from_numpy(photo), (70, 90), mode).numpy().astype(int)
        assert np.abs(actual - expected).max() <= 1


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(312, 416), (416, 312), (300, 300), (200, 600)])
def test_a_gpus_way_to_resize_is_that_of_the_cpu(mode, size):
    """The rest is the CPU's weights, which are whole numbers."""
    photo = torch.from_numpy(data.coffee())
    planes = _resize_floats(photo.permute(2, 0, 1)[None], size, mode)
    levels = (planes[0].permute(1, 2, 0).int() - resize(photo, size, mode)).abs()
    assert levels.max() <= 1
    assert (levels > 0).float().mean() < 0.02


def test_a_strip_is_scaled_down_by_the_pixels_that_matter():
    """Not by all: as many weights as a strip of millions has would be gigabytes."""
    strip = torch.arange(3_000_000).mul(256).div(3_000_000).to(torch.uint8)
    strip = strip.view(1, -1, 1).expand(1, -1, 3)
    scaled = resize(strip, (1, 256), "bilinear")
    expected = torch.arange(256).view(1, 256, 1).expand(1, 256, 3)
    assert (scaled.int() - expected).abs().max() <= 1
