"""Regions: the pixels around a chunk, where in the photo they are, and how they are turned."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.verifier.regions import GROWTH, Region
from deployments.verifier.views import transform
from tests.support.photos.cutting import corners_of
from tests.support.running.examples import examples

sides = st.integers(1, 3000)


@st.composite
def chunks(draw):
    """The size of a photo, and a box in it."""
    width, height = draw(sides), draw(sides)
    x1, y1 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return (
        width,
        height,
        (
            x1,
            y1,
            draw(st.integers(x1 + 1, width)),
            draw(st.integers(y1 + 1, height)),
        ),
    )


@settings(max_examples=examples(100))
@given(chunks(), st.integers(1, 40), st.integers(1, 40))
def test_a_region_is_the_chunk_and_half_as_much_around_it(chunk, columns, rows):
    width, height, box = chunk
    preview = np.arange(rows * columns).reshape(rows, columns).astype(np.uint8)
    region = Region(preview, width, height, box)
    h, w = region.pixels.shape
    (x1, y1), (x2, y2) = transform(region.to_photo, np.array([(0, 0), (w, h)], float))
    # Whole pixels of the preview: no less than is asked for, and less than one more.
    pixel_x, pixel_y = width / columns, height / rows
    grow_x, grow_y = GROWTH * (box[2] - box[0]), GROWTH * (box[3] - box[1])
    for low, high, least, most, pixel, side in (
        (x1, x2, box[0] - grow_x, box[2] + grow_x, pixel_x, width),
        (y1, y2, box[1] - grow_y, box[3] + grow_y, pixel_y, height),
    ):
        assert -1e-6 <= low <= max(least, 0) + 1e-6
        assert min(most, side) - 1e-6 <= high <= side + 1e-6
        assert low > least - pixel - 1e-6
        assert high < most + pixel + 1e-6
    left, top = round(x1 / pixel_x), round(y1 / pixel_y)
    np.testing.assert_array_equal(region.pixels, preview[top : top + h, left : left + w])


def test_a_chunk_that_lies_beyond_the_photo_has_a_region_too():
    """The record says so if it is damaged."""
    region = Region(np.zeros((10, 10), np.uint8), 10, 10, (50, 50, 60, 60))
    assert region.pixels.shape == (1, 1)


def marked(width, height, x, y):
    """A dark picture with a bright spot, whose centre is at x, y."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    spot = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18)
    return spot.astype(np.uint8)


def centre(pixels):
    """The point around which the bright pixels lie."""
    bright = np.where(pixels > pixels.max() / 4, pixels, 0).astype(float)
    rows, columns = np.indices(pixels.shape) + 0.5
    return np.array([(columns * bright).sum(), (rows * bright).sum()]) / bright.sum()


@pytest.mark.parametrize("degrees", [0, 15, -15, 90, -90])
def test_a_point_of_each_level_lies_where_it_was(degrees):
    """And by how far it is turned: what lies above the middle comes to its right if clockwise."""
    region = Region(marked(120, 90, 60, 28), 120, 90, (30, 20, 90, 70))
    origin = transform(region.to_photo, np.array([(0.0, 0.0)]))[0]
    levels = region.pyramid(degrees, [24, 36, 60])
    for pixels, to_region in levels:
        x, y = transform(to_region, centre(pixels)[None])[0] + origin
        assert (x, y) == pytest.approx((60, 28), abs=0.3)
    pixels, _ = levels[-1]
    x, y = centre(pixels) - np.array(pixels.shape[::-1]) / 2
    turned = np.degrees(np.arctan2(x, -y))
    assert turned == pytest.approx(degrees, abs=3)


@pytest.mark.parametrize("degrees", [0, 15, -30])
def test_each_level_has_the_chunk_at_the_size_that_is_asked_for(degrees):
    region = Region(np.zeros((90, 120), np.uint8), 240, 180, (60, 40, 180, 140))
    for side, (pixels, to_region) in zip((24, 50), region.pyramid(degrees, [24, 50]), strict=True):
        # The chunk is half as large in the preview.
        scale = side / np.sqrt(60 * 50)
        assert np.sqrt(abs(np.linalg.det(to_region[:2, :2]))) == pytest.approx(1 / scale, rel=0.03)
        own = transform(np.linalg.inv(to_region), np.array(corners_of((0, 0, 120, 90)), float))
        # All of it is there, turned: the bounds of its corners, and no more.
        low, high = own.min(0), own.max(0)
        np.testing.assert_allclose(low, 0, atol=1.5)
        np.testing.assert_allclose(high, pixels.shape[::-1], atol=1.5)


def test_a_pyramid_is_made_once_for_each_angle():
    region = Region(marked(50, 50, 20, 20), 50, 50, (10, 10, 40, 40))
    assert region.pyramid(15, [20, 30]) is region.pyramid(15, [20, 30])
    assert region.pyramid(15, [20, 30]) is not region.pyramid(-15, [20, 30])


def test_beyond_the_edges_of_a_turned_region_there_is_no_border():
    """A border would correlate with those of queries."""
    noise = np.random.default_rng(0).integers(100, 156, (60, 80), np.uint8)
    ((pixels, _),) = Region(noise, 80, 60, (0, 0, 80, 60)).pyramid(30, [70])
    assert pixels.min() > 60
    assert pixels[:8, :8].std() > 3


@pytest.mark.parametrize("shape", [(1, 1), (640, 1), (1, 640), (640, 640)])
@pytest.mark.parametrize("degrees", [0, 15])
def test_a_chunk_that_is_nothing_in_the_preview_makes_no_huge_pyramid(shape, degrees):
    """It takes memory, and is resized from a pixel or two."""
    region = Region(np.zeros(shape, np.uint8), 64_000, 64_000, (5, 5, 6, 6))
    levels = region.pyramid(degrees, [12, 48])
    assert all(0 < pixels.size < 2**20 for pixels, _ in levels)
