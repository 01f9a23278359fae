"""Borders of queries: what lies inside of bars, captions and margins is found, and nothing else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from deployments.verifier.borders import (
    EDGE,
    LEAST_BORDER,
    LEAST_CONTENT,
    LEAST_SIDE,
    find_contents,
)
from tests.support.photos.pictures import pixels
from tests.support.running.examples import examples


@pytest.fixture
def grey():
    """A picture that is textured up to its edges."""
    return np.array(pixels("borders", 240, 180).convert("L"))


def framed(content, left, top, right, bottom, level):
    return np.pad(content, ((top, bottom), (left, right)), constant_values=level)


def is_inside(found, box, slack=EDGE):
    """The box, without at most `slack` pixels on each side that has a border."""
    return all(
        0 <= (outer - inner if number > 1 else inner - outer) <= slack
        for number, (inner, outer) in enumerate(zip(found, box, strict=True))
    )


@pytest.mark.parametrize("level", [0, 255, 128])
@pytest.mark.parametrize(
    "margins",
    [(0, 50, 0, 50), (50, 0, 50, 0), (20, 30, 40, 50), (0, 90, 0, 0), (0, 0, 25, 0)],
)
def test_plain_borders_are_left_out(grey, margins, level):
    left, top, right, bottom = margins
    query = framed(grey, *margins, level)
    height, width = query.shape
    box, *_ = find_contents(query)
    assert is_inside(box, (left, top, width - right, height - bottom))


def test_a_caption_on_a_plain_band_is_left_out_with_it(grey):
    band = Image.new("L", (grey.shape[1], 60), 255)
    draw = ImageDraw.Draw(band)
    for line in (12, 34):
        draw.text((10, line), "when you see it and nobody told me", fill=0)
    query = np.vstack([np.array(band), grey])
    boxes = find_contents(query)
    assert any(is_inside(box, (0, 60, grey.shape[1], 60 + len(grey))) for box in boxes)


@pytest.mark.parametrize("name", ["chelsea", "coffee", "astronaut"])
def test_a_photo_has_no_borders(seen, name):
    """Also one whose edges are dark or out of focus."""
    photo = np.array(Image.fromarray(seen[name]).convert("L"))
    height, width = photo.shape
    for x1, y1, x2, y2 in find_contents(photo):
        assert (x2 - x1) * (y2 - y1) > 0.6 * width * height


def test_a_part_that_is_textured_up_to_its_edges_has_no_borders(grey):
    assert find_contents(grey) == []


def test_a_drawing_on_white_paper_keeps_what_is_drawn():
    paper = Image.new("L", (200, 160), 255)
    ImageDraw.Draw(paper).ellipse((60, 50, 140, 110), outline=0, width=3)
    for x1, y1, x2, y2 in find_contents(np.array(paper)):
        assert x1 <= 66
        assert y1 <= 56
        assert x2 >= 134
        assert y2 >= 104


def test_a_border_that_is_narrow_is_none(grey):
    narrow = int(LEAST_BORDER * len(grey)) - 1
    assert find_contents(framed(grey, 0, narrow, 0, narrow, 0)) == []


def test_a_border_is_of_one_colour():
    """A gradient from dark to bright has lines of one colour, but each of another."""
    gradient = np.repeat(np.arange(0, 256, 2, dtype=np.uint8)[:, None], 90, axis=1)
    for x1, y1, x2, y2 in find_contents(gradient):
        assert (x2 - x1, y2 - y1) >= (90, 100)


def test_what_is_all_border_stays_whole():
    assert find_contents(np.full((40, 60), 9, np.uint8)) == []
    line = np.full((200, 60), 9, np.uint8)
    line[100] = np.arange(60) * 4
    assert find_contents(line) == []  # too little is left


shapes = st.tuples(st.integers(1, 50), st.integers(1, 50))


@settings(max_examples=examples(100))
@given(shapes, st.integers(0, 2**32 - 1), st.tuples(*[st.integers(0, 30)] * 4), st.integers(0, 255))
def test_contents_lie_in_the_query_and_are_no_slivers(shape, seed, margins, level):
    content = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    query = framed(content, *margins, level)
    height, width = query.shape
    boxes = find_contents(query)
    assert len(set(boxes)) == len(boxes) <= 2
    for x1, y1, x2, y2 in boxes:
        assert 0 <= x1 < x2 <= width
        assert 0 <= y1 < y2 <= height
        assert (x1, y1, x2, y2) != (0, 0, width, height)
        assert x2 - x1 >= LEAST_CONTENT * width
        assert y2 - y1 >= LEAST_CONTENT * height


@settings(max_examples=examples(40))
@given(st.integers(0, 2**32 - 1), st.tuples(*[st.sampled_from([0, 9, 20])] * 4))
def test_borders_are_found_on_whichever_side_they_are(seed, margins):
    """What is inside of plain borders turns with the query."""
    content = np.random.default_rng(seed).integers(0, 256, (50, 70), np.uint8)
    query = framed(content, *margins, 77)
    boxes = find_contents(query)[:1]
    height = query.shape[0]
    turned = find_contents(np.rot90(query, -1))[:1]
    assert turned == [(height - y2, x1, height - y1, x2) for x1, y1, x2, y2 in boxes]


def test_a_strip_that_is_too_narrow_to_show_anything_is_no_content(grey):
    for side, shown in ((LEAST_SIDE // 2, False), (3 * LEAST_SIDE, True)):
        query = framed(grey[:side], 0, 60, 0, 60, 255)
        assert bool(find_contents(query)) == shown
