"""Boxes in whole pixels."""

from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.boxes import outer_box
from tests.support.running.examples import examples

coordinates = st.floats(-1e4, 1e4, allow_nan=False)


@settings(max_examples=examples(300))
@given(st.tuples(*[coordinates] * 4), st.integers(1, 3000), st.integers(1, 3000))
def test_outer_box_is_inside_and_around(box, width, height):
    x1, y1, x2, y2 = outer_box(box, width, height)
    assert 0 <= x1 < x2 <= width
    assert 0 <= y1 < y2 <= height
    assert all(type(value) is int for value in (x1, y1, x2, y2))
    if 0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height:
        assert x1 <= box[0] < x1 + 1
        assert y1 <= box[1] < y1 + 1
        assert x2 - 1 < box[2] <= x2
        assert y2 - 1 < box[3] <= y2
