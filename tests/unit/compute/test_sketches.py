"""Sketches of queries: small and grey, and of the part that is asked for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from deployments.compute.sketches import make_sketch
from deployments.limits import SKETCH_SIDE
from tests.support.running.examples import examples


def test_a_sketch_is_the_part_in_grey():
    photo, box = data.coffee(), (100, 50, 300, 180)
    sketch = make_sketch(photo, box)
    expected = np.asarray(Image.fromarray(photo).convert("L").crop(box))
    np.testing.assert_array_equal(sketch.pixels, expected)
    assert sketch.pixels.dtype == np.uint8
    assert sketch.box == box


def test_a_large_part_is_scaled_down():
    photo = data.coffee()
    sketch = make_sketch(photo, (0, 0, 600, 400))
    assert sketch.pixels.shape == (SKETCH_SIDE * 2 // 3, SKETCH_SIDE)
    grey = Image.fromarray(photo).convert("L")
    small = np.asarray(grey.resize(sketch.pixels.shape[::-1], Image.Resampling.BICUBIC))
    assert np.abs(sketch.pixels.astype(int) - small).max() <= 4
    assert sketch.box == (0, 0, 600, 400)


def test_a_sketch_keeps_no_part_of_the_photo_alive():
    """It goes to another process without the rest."""
    sketch = make_sketch(data.coffee(), (0, 0, 20, 20))
    assert sketch.pixels.base is None or sketch.pixels.base.size <= 20 * 20 * 3


@pytest.mark.parametrize("size", [(1, 1), (1, 20000), (20000, 3), (385, 1), (384, 384)])
def test_extreme_shapes(size):
    width, height = size
    sketch = make_sketch(np.full((height, width, 3), 99, np.uint8), (0, 0, width, height))
    assert max(sketch.pixels.shape) == min(SKETCH_SIDE, max(size))
    assert min(sketch.pixels.shape) >= 1
    assert (sketch.pixels == 99).all()


@settings(max_examples=examples(40))
@given(st.data())
def test_any_box_in_the_query_has_a_sketch(draw):
    width, height = draw.draw(st.integers(1, 700)), draw.draw(st.integers(1, 700))
    x1, y1 = draw.draw(st.integers(0, width - 1)), draw.draw(st.integers(0, height - 1))
    box = (
        x1,
        y1,
        draw.draw(st.integers(x1 + 1, width)),
        draw.draw(st.integers(y1 + 1, height)),
    )
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    sketch = make_sketch(pixels, box)
    shape, sides = np.array(sketch.pixels.shape), np.array([box[3] - box[1], box[2] - box[0]])
    scale = min(1, SKETCH_SIDE / sides.max())
    assert (np.abs(shape - np.maximum(1, sides * scale)) <= 0.5 + 1e-9).all()
