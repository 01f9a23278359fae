"""Views of a query: their pixels against numpy's, and their maps against both."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.verification import Look, Sketch
from deployments.verifier.views import (
    View,
    make_view,
    resize,
    scaling,
    transform,
    translation,
)

sides = st.integers(1, 12)


def numbered(width, height):
    """A picture in which every pixel has a value of its own, as far as there are enough."""
    return (np.arange(width * height) % 251).astype(np.uint8).reshape(height, width)


def sketch_of(pixels, x=0, y=0):
    height, width = pixels.shape
    return Sketch(pixels, (x, y, x + width, y + height))


def corners_of(box):
    x1, y1, x2, y2 = box
    return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]


@st.composite
def looks(draw):
    """A sketch at the size of the query, and a look at a part of it."""
    width, height, left, top = draw(sides), draw(sides), draw(sides), draw(sides)
    x1, y1 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    x2, y2 = draw(st.integers(x1 + 1, width)), draw(st.integers(y1 + 1, height))
    part = (left + x1, top + y1, left + x2, top + y2)
    look = Look(part, draw(st.integers(0, 3)), draw(st.booleans()))
    return sketch_of(numbered(width, height), left, top), look


@given(looks())
def test_a_view_is_mirrored_first_and_then_turned_clockwise(made):
    sketch, look = made
    left, top = sketch.box[:2]
    x1, y1, x2, y2 = look.part
    expected = sketch.pixels[y1 - top : y2 - top, x1 - left : x2 - left]
    expected = np.fliplr(expected) if look.mirrored else expected
    view = make_view(sketch, look)
    np.testing.assert_array_equal(view.pixels, np.rot90(expected, -look.turned))
    assert view.part == look.part


@given(looks())
def test_each_pixel_of_a_view_lies_where_it_was_in_the_query(made):
    sketch, look = made
    view = make_view(sketch, look)
    rows, columns = np.indices(view.pixels.shape)
    centres = np.stack([columns.ravel(), rows.ravel()], 1) + 0.5
    x, y = (transform(view.to_query, centres) - sketch.box[:2]).T
    seen = sketch.pixels[np.floor(y).astype(int), np.floor(x).astype(int)]
    np.testing.assert_array_equal(seen, view.pixels.ravel())
    np.testing.assert_allclose(x % 1, 0.5, atol=1e-9)
    np.testing.assert_allclose(y % 1, 0.5, atol=1e-9)


@given(looks())
def test_the_corners_are_in_the_order_of_the_querys_corners(made):
    sketch, look = made
    view = make_view(sketch, look)
    height, width = view.pixels.shape
    np.testing.assert_allclose(transform(view.to_query, view.corners), corners_of(look.part))
    own = corners_of((0, 0, width, height))
    if look.mirrored:
        own = [own[1], own[0], own[3], own[2]]
    # The query's top left corner is at the top right after a quarter turn clockwise.
    turns = look.turned * (-1 if look.mirrored else 1)
    np.testing.assert_allclose(view.corners, np.roll(own, -turns, axis=0), atol=1e-9)


@pytest.mark.parametrize("quarters", range(-4, 9))
def test_four_quarter_turns_change_nothing(quarters):
    view = View(numbered(5, 3), scaling(2, 3), (0, 0, 10, 9))
    turned = view.turned(quarters).turned(-quarters)
    np.testing.assert_array_equal(turned.pixels, view.pixels)
    np.testing.assert_allclose(turned.to_query, view.to_query)


def test_mirroring_twice_changes_nothing():
    view = View(numbered(5, 3), translation(7, 8), (7, 8, 12, 11))
    twice = view.mirrored().mirrored()
    np.testing.assert_array_equal(twice.pixels, view.pixels)
    np.testing.assert_allclose(twice.to_query, view.to_query)


@given(looks(), st.floats(0.05, 8))
def test_a_scaled_view_has_the_same_corners(made, factor):
    sketch, look = made
    view = make_view(sketch, look)
    scaled = view.scaled(factor)
    height, width = view.pixels.shape
    assert scaled.pixels.shape == (max(1, round(height * factor)), max(1, round(width * factor)))
    whole = np.array(corners_of((0, 0, width, height)), float)
    of_scaled = np.array(corners_of((0, 0, *scaled.pixels.shape[::-1])), float)
    expected = transform(view.to_query, whole)
    np.testing.assert_allclose(transform(scaled.to_query, of_scaled), expected, atol=1e-9)


@given(
    st.integers(1, 2000), st.integers(1, 2000), st.integers(1, 60), st.integers(1, 60), st.data()
)
def test_of_a_small_sketch_a_part_is_its_nearest_pixels(width, height, columns, rows, data):
    """Whatever the sizes, at least one pixel, and one that lies in the sketch."""
    x1, y1 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x2 = data.draw(st.integers(x1 + 1, width))
    y2 = data.draw(st.integers(y1 + 1, height))
    sketch = Sketch(numbered(columns, rows), (0, 0, width, height))
    view = make_view(sketch, Look((x1, y1, x2, y2)))
    seen = transform(view.to_query, np.array([(0, 0), view.pixels.shape[::-1]], float))
    pixel = np.array([width / columns, height / rows])
    part = np.array([(x1, y1), (x2, y2)], float)
    assert (np.array(view.pixels.shape) >= 1).all()
    assert (seen >= -1e-6).all()
    assert (seen <= np.array([width, height]) + 1e-6).all()
    # Each edge is the nearest between two pixels, unless no pixel would be left.
    off = np.abs(seen - part) / pixel
    large = part[1] - part[0] > 1.001 * pixel
    assert (off[:, large] <= 0.501).all()
    assert (off <= 1.501).all()


def test_a_picture_that_becomes_smaller_is_averaged():
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80), np.uint8)
    means = pixels.reshape(15, 4, 20, 4).mean((1, 3))
    np.testing.assert_allclose(resize(pixels, 20, 15), means, atol=0.51)


def test_a_picture_that_has_the_size_stays_as_it_is():
    pixels = numbered(8, 4)
    assert resize(pixels, 8.2, 3.9) is pixels
    assert resize(pixels, 0.01, 0.01).shape == (1, 1)
    assert resize(pixels, 16, 12).shape == (12, 16)


def test_points_are_mapped_as_homogeneous_coordinates():
    matrix = np.array([[2.0, 0, 1], [0, 1, 0], [0, 0.5, 1]])
    mapped = transform(matrix, np.array([(1.0, 2.0), (0.0, 0.0)]))
    np.testing.assert_allclose(mapped, [(1.5, 1), (1, 0)])
    both = translation(3, 4) @ scaling(2, 5)
    np.testing.assert_allclose(transform(both, np.array([(1.0, 1.0)])), [(5, 9)])
