"""Tiles of photos of any size."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.tiles import LEAST_SIDE, fewest_tiles, tile_boxes
from tests.support.running.examples import examples

sides = st.integers(1, 3000)
spare = st.integers(0, 200)
overlaps = st.sampled_from([0, 0.3, 1 / 3, 0.5, 0.75])
some_scales = st.lists(st.integers(2, 16), unique=True, max_size=4)


def uncovered(boxes, width, height):
    """How many pixels lie in none of the boxes."""
    free = np.ones((height, width), bool)
    for x1, y1, x2, y2 in boxes:
        free[y1:y2, x1:x2] = False
    return int(free.sum())


@settings(max_examples=examples(300))
@given(sides, sides, some_scales, spare, overlaps)
def test_tiles_are_different_parts_of_the_photo(width, height, scales, spare, overlap):
    max_tiles = fewest_tiles(scales, overlap) + spare
    boxes = tile_boxes(width, height, scales, max_tiles, overlap)
    assert len(set(boxes)) == len(boxes) <= max_tiles
    for x1, y1, x2, y2 in boxes:
        assert 0 <= x1 < x2 <= width
        assert 0 <= y1 < y2 <= height
        assert min(x2 - x1, y2 - y1) >= LEAST_SIDE
        # About a fourth of the photo at most, so none is nearly the whole picture.
        assert 2 * (x2 - x1) <= width + 1
        assert 2 * (y2 - y1) <= height + 1
        assert all(type(side) is int for side in (x1, y1, x2, y2))


@settings(max_examples=examples(100))
@given(sides, sides, some_scales, spare, overlaps)
def test_each_scale_covers_all_of_the_photo_unless_its_tiles_are_too_small(
    width, height, scales, spare, overlap
):
    boxes = tile_boxes(width, height, scales, fewest_tiles(scales, overlap) + spare, overlap)
    for scale in sorted(scales):
        if min(width, height) < scale * LEAST_SIDE:
            break
        across = round(fewest_tiles([scale], overlap) ** 0.5)
        short = 1 if width >= height else 0
        # Those of a scale come together, as many across the shorter side as it has.
        counts = range(across**2, len(boxes) + 1, across)
        count = next(n for n in counts if uncovered(boxes[:n], width, height) == 0)
        assert len({box[short] for box in boxes[:count]}) == across
        boxes = boxes[count:]
    assert boxes == []


@settings(max_examples=examples(100))
@given(sides, sides, some_scales, spare, overlaps)
def test_the_coarsest_scale_comes_first_in_whatever_order_they_are_given(
    width, height, scales, spare, overlap
):
    max_tiles = fewest_tiles(scales, overlap) + spare
    boxes = tile_boxes(width, height, scales, max_tiles, overlap)
    assert boxes == tile_boxes(width, height, scales[::-1], max_tiles, overlap)
    short = 0 if width < height else 1
    across = [box[short + 2] - box[short] for box in boxes]
    assert all(b <= a + 1 for a, b in pairwise(across))


@settings(max_examples=examples(200))
@given(sides, sides, st.integers(2, 16), overlaps)
def test_tiles_are_equal_and_equally_far_apart(width, height, scale, overlap):
    """Within the pixel they are rounded to; and, where there is room, hardly longer than 3:2."""
    boxes = tile_boxes(width, height, [scale], 10**6, overlap)
    for first, last in ((0, 2), (1, 3)):
        starts = sorted({box[first] for box in boxes})
        sizes = {box[last] - box[first] for box in boxes}
        assert len(sizes) <= 2
        steps = [b - a for a, b in pairwise(starts)]
        assert not steps or max(steps) - min(steps) <= 1
        for size in sizes:
            assert all(step <= size * (1 - overlap) + 2 for step in steps)
    for x1, y1, x2, y2 in boxes:
        short, long = sorted((x2 - x1, y2 - y1))
        assert (long - 1) / (short + 1) <= 1.5 * (1 + 1 / (2 * scale))


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ((4000, 3000), 3 * 3 + 5 * 5),
        ((3000, 4000), 3 * 3 + 5 * 5),
        ((640, 640), 3 * 3 + 5 * 5),
        ((1500, 1000), 3 * 3 + 5 * 5),
        ((1920, 1080), 3 * 3 + 7 * 5),
        ((3000, 1000), 7 * 3 + 7 * 5),  # 11 * 5 wouldn't fit
        ((500, 5000), 3 * 13 + 5 * 5),  # 3 * 25 and 5 * 39 wouldn't fit
        ((95, 95), 3 * 3),  # 32 pixels at scale 2, not at scale 3
        ((63, 500), 0),
        ((10, 3), 0),
        ((1, 1), 0),
        ((20_000, 1), 0),
        ((20_000, 64), 13 * 3),
    ],
)
def test_how_many_tiles(size, count):
    assert len(tile_boxes(*size, [2, 3], 64, 0.5)) == count


@pytest.mark.parametrize(
    ("overlap", "count"),
    [(0, 9), (0.2, 16), (0.3, 16), (1 / 3, 16), (0.34, 25), (0.5, 25), (0.6, 36)],
)
def test_how_many_tiles_overlap_by_so_much(overlap, count):
    assert len(tile_boxes(900, 900, [3], 64, overlap)) == count


def test_tiles_that_overlap_by_a_third():
    across = [(0, 100), (66, 166), (133, 233), (200, 300)]
    assert tile_boxes(300, 300, [3], 64, 0.3) == [
        (left, top, right, bottom) for top, bottom in across for left, right in across
    ]


def test_tiles_of_a_photo():
    assert tile_boxes(200, 80, [2], 64, 0.5) == [
        *[(0, 0, 66, 40), (33, 0, 100, 40), (66, 0, 133, 40), (100, 0, 166, 40), (133, 0, 200, 40)],
        *[(0, 20, 66, 60), (33, 20, 100, 60), (66, 20, 133, 60), (100, 20, 166, 60)],
        *[(133, 20, 200, 60), (0, 40, 66, 80), (33, 40, 100, 80), (66, 40, 133, 80)],
        *[(100, 40, 166, 80), (133, 40, 200, 80)],
    ]
    assert tile_boxes(4000, 3000, [], 64, 0.5) == []


@pytest.mark.parametrize("overlap", [0, 0.3, 0.5, 0.75])
def test_fewest_tiles_are_those_of_a_square(overlap):
    assert fewest_tiles([], overlap) == 0
    for scales in ([2], [3, 2], [2, 3, 4]):
        fewest = fewest_tiles(scales, overlap)
        assert len(tile_boxes(900, 900, scales, fewest, overlap)) == fewest
