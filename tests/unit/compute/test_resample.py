"""Crops by products of matrices: what one crop after the other gives, with few operations."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from deployments.boxes import outer_box
from deployments.compute import crops, resample
from deployments.compute.crops import scale_crops
from deployments.tiles import tile_boxes
from tests.support.networks.operations import CountOperations
from tests.support.running.examples import examples


def by_matrices(photos, boxes, size, squash=False):
    """Cut as a GPU does, on the CPU: the same operations in the same number format."""
    return scale_crops(photos, boxes, size, squash, together_on={"cpu"})


def differences(photos, boxes, size, squash):
    """How far the values are from those that are cut one after the other, grey levels."""
    both = by_matrices(photos, boxes, size, squash), scale_crops(photos, boxes, size, squash)
    for actual, expected, of_photo in zip(*both, boxes, strict=True):
        assert actual.shape == expected.shape == (len(of_photo), size, size, 3)
        assert actual.dtype == torch.uint8
    actual, expected = (torch.cat([crops.flatten() for crops in one]).int() for one in both)
    return (actual - expected).abs()


def assert_alike(difference):
    """Where two roundings come together, a value in 10,000 may differ by 2; of noise, more."""
    assert difference.max() <= 2
    assert (difference == 2).sum() <= 2 + len(difference) / 50


def noise(generator, height, width):
    return generator.integers(0, 256, (height, width, 3), np.uint8)


def edges(generator, height, width):
    """Black and white: the sums overshoot at every pixel."""
    return (noise(generator, height, width) > 127).astype(np.uint8) * 255


def gradients(generator, height, width):
    small = Image.fromarray(noise(generator, 3, 3))
    return np.array(small.resize((width, height), Image.Resampling.BICUBIC))


fractions = st.tuples(*[st.floats(-0.1, 1.1)] * 4)
photos = st.tuples(
    st.sampled_from([noise, edges, gradients]),
    st.integers(0, 2**32),
    st.integers(1, 90),
    st.integers(1, 90),
    st.lists(fractions, min_size=1, max_size=5),
)


@settings(max_examples=examples(80))
@given(
    st.lists(photos, min_size=1, max_size=3),
    st.integers(1, 30),
    st.booleans(),
    st.sampled_from([1, 200_000, 2**28]),
)
def test_any_boxes_of_any_photos_are_cut_as_one_after_the_other(described, size, squash, memory):
    pixels, boxes = [], []
    for kind, seed, height, width, parts in described:
        pixels.append(torch.from_numpy(kind(np.random.default_rng(seed), height, width)))
        corners = np.array(parts)[:, [[0, 2], [1, 3]]]
        corners.sort(2)
        corners *= np.array([[width], [height]])
        boxes.append(
            np.array(
                [outer_box(box, width, height) for box in corners.transpose(0, 2, 1).reshape(-1, 4)]
            )
        )
    with patch.object(resample, "MEMORY", memory):
        difference = differences(pixels, boxes, size, squash)
    assert_alike(difference)


@pytest.mark.parametrize("squash", [False, True])
def test_the_chunks_of_a_photo_differ_by_a_grey_level_at_most(squash):
    photo = torch.from_numpy(data.coffee()[100:250, 150:350].copy())
    boxes = np.array([*tile_boxes(200, 150, (2, 3), 64, 0.5), (0, 0, 200, 150), (15, 20, 165, 45)])
    difference = differences([photo], [boxes], 48, squash)
    assert (difference > 0).float().mean() < 0.06
    assert (difference > 1).float().mean() < 2e-4


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize(
    ("size", "boxes"),
    [
        ((1, 1), [(0, 0, 1, 1)]),
        ((4, 2000), [(0, 0, 2000, 4), (3, 1, 1500, 2), (5, 0, 6, 4)]),  # longer than 8 : 1
        ((2000, 4), [(0, 0, 4, 2000), (1, 3, 2, 1500)]),
        ((70, 90), [(0, 0, 90, 70), (89, 69, 90, 70), (80, 0, 90, 70), (0, 60, 90, 70)]),
    ],
)
def test_strips_and_single_pixels(size, boxes, squash):
    photo = torch.from_numpy(noise(np.random.default_rng(0), *size))
    assert_alike(differences([photo], [np.array(boxes)], 32, squash))


def test_what_has_the_size_already_stays_as_it_is():
    photo = torch.from_numpy(noise(np.random.default_rng(0), 60, 80))
    (crops,) = by_matrices([photo], [np.array([(0, 0, 32, 32), (48, 28, 80, 60)])], 32)
    assert torch.equal(crops, torch.stack((photo[:32, :32], photo[28:, 48:])))


def test_what_would_be_scaled_down_too_much_is_left_to_the_cpu():
    """A GPU's kernels can't, and the matrices of the others must not become large for its sake."""
    generator = np.random.default_rng(0)
    strip = torch.from_numpy(noise(generator, 4, crops.MAX_REDUCTION * 16 + 1))
    photo = torch.from_numpy(noise(generator, 20, 30))
    boxes = [np.array([(0, 0, strip.shape[1], 4)]), np.array([(0, 0, 30, 20)])]
    seen = []

    def spy(photos, windows, size):
        seen.extend(photos)
        return resample.scale_windows(photos, windows, size)

    with patch.object(crops, "scale_windows", spy):
        actual = by_matrices([strip, photo], boxes, 16, squash=True)
    assert [one is photo for one in seen] == [True]
    expected = scale_crops([strip, photo], boxes, 16, squash=True)
    assert torch.equal(actual[0], expected[0])
    assert (actual[1].int() - expected[1].int()).abs().max() <= 1


def operations(photos, crops):
    image = torch.zeros(40, 60, 3, dtype=torch.uint8)
    with CountOperations() as counter:
        by_matrices([image] * photos, [np.array([(0, 0, 60, 40)] * crops)] * photos, 8)
    return counter.count


def test_nothing_is_launched_for_a_crop_and_little_for_a_photo():
    few = operations(1, 2)
    assert few == operations(1, 50)
    assert operations(11, 50) - operations(1, 50) <= 10 * 12
