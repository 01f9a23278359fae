"""The photos of an answer and their order, from what was ranked and what was seen."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.matches import SAME_PLACE, Hit, arrange
from deployments.query import SearchOptions
from deployments.records import Chunk, RankedPhoto, Record
from deployments.verification import Sighting
from tests.support.running.examples import examples

WIDTH, HEIGHT = 200, 100
SQUARE = ((10.0, 20.0), (60.0, 20.0), (60.0, 70.0), (10.0, 70.0))


def hit(id, distance=0.1, sha256=None, width=WIDTH, height=HEIGHT):
    chunks = [
        Chunk(box=(0, 0, 50, 50), source="tile"),
        Chunk(box=(0, 0, 90, 90), source="detection", confidence=0.9, label="cup"),
    ]
    record = Record(
        id=id,
        filename=f"{id}.png",
        media_type="image/png",
        bytes=1,
        sha256=sha256 or id,
        width=width,
        height=height,
        animated=False,
        indexed_at="2026-01-01T00:00:00.000+00:00",
        sequence=1,
        chunks=chunks,
    )
    return Hit(RankedPhoto(id, distance, [(1, distance), (0, distance + 0.1)]), record)


def sighting(quad=SQUARE, inliers=30, agreement=0.9):
    return Sighting(
        quad=quad,
        part=(0, 0, 50, 50),
        mirrored=False,
        rotation=-12.5,
        scale=1.5,
        inliers=inliers,
        coverage=0.75,
        agreement=agreement,
    )


def ids(matches):
    return [match.id for match in matches]


def test_verified_photos_come_first_the_most_certain_first():
    hits = [hit(id, number / 10) for number, id in enumerate("abcde")]
    seen = {"b": sighting(inliers=30), "d": sighting(inliers=60), "c": None, "e": sighting()}
    seen["e"] = sighting(inliers=40, agreement=0.7)  # more places, but less alike
    matches = arrange(hits, seen, SearchOptions())
    assert ids(matches) == ["d", "e", "b", "a", "c"]
    assert [match.verified for match in matches] == [True, True, True, None, False]
    assert seen["e"].inliers * 0.7 > 30 * 0.9


def test_a_verified_match_says_where():
    (match,) = arrange([hit("a")], {"a": sighting()}, SearchOptions())
    assert match.quad == SQUARE
    assert match.box == (10, 20, 60, 70)
    assert (match.part, match.mirrored, match.rotation) == ((0, 0, 50, 50), False, -12.5)
    assert (match.scale, match.inliers, match.coverage) == (1.5, 30, 0.75)
    # The chunk's own box stays among the chunks.
    assert (match.source, match.label, match.chunks[0].box) == ("detection", "cup", (0, 0, 90, 90))


@pytest.mark.parametrize("seen", [{}, {"a": None}])
def test_a_match_that_is_not_verified_has_the_box_of_its_nearest_chunk(seen):
    (match,) = arrange([hit("a")], seen, SearchOptions())
    assert match.box == (0, 0, 90, 90)
    assert match.verified is (False if seen else None)
    unset = (match.quad, match.part, match.mirrored, match.rotation, match.scale)
    assert unset == (None,) * 5
    assert (match.inliers, match.coverage, match.copies) == (None, None, [])


@settings(max_examples=examples(100))
@given(st.lists(st.tuples(*[st.floats(-500, 500)] * 2), min_size=4, max_size=4))
def test_the_box_is_the_quads_bounds_inside_the_photo(points):
    (match,) = arrange([hit("a")], {"a": sighting(tuple(points))}, SearchOptions())
    x1, y1, x2, y2 = match.box
    assert 0 <= x1 < x2 <= WIDTH
    assert 0 <= y1 < y2 <= HEIGHT
    inside = np.clip(np.array(points), 0, (WIDTH, HEIGHT))
    assert (inside >= np.array([x1, y1])).all() or x1 == WIDTH - 1 or y1 == HEIGHT - 1
    assert (inside <= np.array([x2, y2])).all()
    low, high = inside.min(0), inside.max(0)
    if (high - low >= 1).all():  # outwards to whole pixels, and no farther
        assert (low - np.array([x1, y1]) < 1).all()
        assert (np.array([x2, y2]) - high < 1).all()


found = st.none() | st.builds(
    sighting, st.just(SQUARE), st.integers(1, 64), st.floats(0.5, 1, allow_nan=False)
)


@settings(max_examples=examples(100))
@given(st.lists(found | st.just("unseen"), max_size=8), st.integers(1, 8))
def test_what_is_not_verified_keeps_the_order_and_the_content_of_the_ranking(outcomes, limit):
    hits = [hit(f"p{number}", number / 10) for number in range(len(outcomes))]
    seen = {f"p{n}": outcome for n, outcome in enumerate(outcomes) if outcome != "unseen"}
    options = SearchOptions(limit=limit)
    plain = arrange(hits, {}, dataclasses.replace(options, limit=1000))
    matches = arrange(hits, seen, dataclasses.replace(options, limit=1000))
    assert sorted(ids(matches)) == sorted(ids(plain))
    verified = [match for match in matches if match.verified]
    others = matches[len(verified) :]
    assert not any(match.verified for match in others)
    expected = [match for match in plain if seen.get(match.id) is None]
    assert [match.model_copy(update={"verified": None}) for match in others] == expected
    certainty = [seen[match.id].inliers * seen[match.id].agreement for match in verified]
    assert certainty == sorted(certainty, reverse=True)
    # Limits and `verified` only leave some of these out.
    assert arrange(hits, seen, options) == matches[:limit]
    only = dataclasses.replace(options, verified=True)
    assert arrange(hits, seen, only) == verified[:limit]


def test_equally_certain_photos_stay_nearest_first():
    hits = [hit(id, number / 10) for number, id in enumerate("zyx")]
    seen = dict.fromkeys("xyz", sighting())
    assert ids(arrange(hits, seen, SearchOptions())) == ["z", "y", "x"]


# Copies

COPIES = SearchOptions(group="copies")


def moved(quad, x, y, factor=1.0):
    return tuple((factor * px + x, factor * py + y) for px, py in quad)


def test_photos_with_the_same_bytes_are_copies_verified_or_not():
    hits = [hit("a", 0.1, "same"), hit("b", 0.2), hit("c", 0.3, "same")]
    for seen in ({}, {"a": None, "c": None}, {"a": sighting(), "c": sighting()}):
        first, second = arrange(hits, seen, COPIES)
        assert (first.id, ids(first.copies), second.id) == ("a", ["c"], "b")
        assert first.copies[0].copies == second.copies == []
    assert ids(arrange(hits, {}, SearchOptions())) == ["a", "b", "c"]


def test_photos_of_other_sizes_are_copies_if_the_query_is_at_the_same_place():
    hits = [hit("a"), hit("b", 0.2, width=2 * WIDTH, height=2 * HEIGHT), hit("c", 0.3)]
    seen = {
        "a": sighting(inliers=60),
        "b": sighting(moved(SQUARE, 1, -1, factor=2), inliers=50),
        "c": sighting(moved(SQUARE, 50, 0), inliers=40),
    }
    first, second = arrange(hits, seen, COPIES)
    assert (first.id, ids(first.copies), second.id) == ("a", ["b"], "c")
    assert first.copies[0].quad == seen["b"].quad
    assert first.copies[0].box == (21, 39, 121, 139)


@pytest.mark.parametrize(("share", "same"), [(0.9, True), (1.1, False)])
def test_how_far_a_place_may_be_off(share, same):
    by = share * SAME_PLACE
    seen = {"a": sighting(), "b": sighting(moved(SQUARE, by * WIDTH, by * HEIGHT))}
    assert len(arrange([hit("a"), hit("b")], seen, COPIES)) == (1 if same else 2)


def test_photos_in_which_nothing_was_seen_are_no_copies():
    hits = [hit("a"), hit("b")]
    assert ids(arrange(hits, {"a": None, "b": None}, COPIES)) == ["a", "b"]
    assert ids(arrange(hits, {"a": sighting()}, COPIES)) == ["a", "b"]


def test_a_turned_query_is_at_another_place():
    """Corners are compared each with its own."""
    turned = (*SQUARE[1:], SQUARE[0])
    seen = {"a": sighting(), "b": sighting(turned)}
    assert len(arrange([hit("a"), hit("b")], seen, COPIES)) == 2


def test_copies_dont_count_towards_the_limit():
    hits = [hit(id, number / 10, sha256=id[0]) for number, id in enumerate(["a1", "a2", "b1", "c"])]
    matches = arrange(hits, {}, SearchOptions(group="copies", limit=2))
    assert [(match.id, ids(match.copies)) for match in matches] == [("a1", ["a2"]), ("b1", [])]


def test_with_verified_only_those_are_copies():
    hits = [hit("a", 0.1, "same"), hit("b", 0.2, "same"), hit("c", 0.3)]
    options = SearchOptions(group="copies", verified=True)
    (match,) = arrange(hits, {"b": sighting(), "a": None}, options)
    assert (match.id, match.copies) == ("b", [])


def test_the_pictures_of_a_collage_are_no_copies():
    """They may well be cut out of the same places of their photos."""
    left = sighting()
    right = dataclasses.replace(left, part=(50, 0, 100, 50))
    matches = arrange([hit("a"), hit("b")], {"a": left, "b": right}, SearchOptions(group="copies"))
    assert ids(matches) == ["a", "b"]
