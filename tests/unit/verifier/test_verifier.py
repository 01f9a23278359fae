"""The verifier: whether a query is in a photo and where, for whatever was done to the query."""

import math

import numpy as np
import pytest
from evaluation.geometry import pose
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from skimage.transform import ProjectiveTransform

from deployments.records import Preview
from deployments.verification import Look, Sketch
from deployments.verifier.alignment import Alignment
from deployments.verifier.verifier import LEAST_PLACES, STANDARD, Verifier
from tests.support.photos.cutting import (
    SHA256,
    apply,
    candidate,
    corners_of,
    cut,
    placed,
    preview_of,
    sketch_of,
)
from tests.support.running.examples import examples

verifier = Verifier()
CUP = (170, 12, 424, 303)


@pytest.fixture(scope="module")
def previews(seen):
    return {name: preview_of(photo) for name, photo in seen.items()}


def look_for(query, previews, name, box, **options):
    """What is seen of a query in one photo, near a chunk."""
    verdict = verifier.verify(sketch_of(query), [candidate(name, box)], previews, **options)
    return verdict.sightings[name]


def look_again(query, previews, name, box):
    """As the flow does when nothing was seen: with every look that the verdict asks for."""
    sketch = sketch_of(query)
    verdict = verifier.verify(sketch, [candidate(name, box)], previews)
    assert not any(verdict.sightings.values())
    again = [candidate(name, box, look) for look in verdict.looks]
    return verifier.verify_again(sketch, again, previews).get(name)


def off(sighting, to_photo):
    """How far the corners of the seen part are from their places at most, pixels of the photo."""
    expected = apply(to_photo, corners_of(sighting.part))
    return np.linalg.norm(np.array(sighting.quad) - expected, axis=1).max()


def assert_consistent(sighting, width, height):
    """What a sighting says of itself agrees with its quad, as the evaluation counts it."""
    assert np.isfinite(sighting.quad).all()
    mirrored, degrees = pose(sighting.quad)
    assert sighting.mirrored == mirrored
    assert abs((sighting.rotation - degrees + 180) % 360 - 180) < 8  # perspective bends it
    assert -180 <= sighting.rotation <= 180
    assert 0 <= sighting.coverage <= 1 + 1e-9
    assert sighting.inliers >= 1
    x1, y1, x2, y2 = sighting.part
    xs, ys = np.array(sighting.quad).T
    area = abs(xs @ np.roll(ys, -1) - ys @ np.roll(xs, -1)) / 2
    assert sighting.scale == pytest.approx(math.sqrt(area / ((x2 - x1) * (y2 - y1))))


# Found where it is

UNTURNED = placed(297, 157, 254, 290)
MIRROR = np.array([[-1, 0, 254], [0, 1, 0], [0, 0, 1.0]])


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 10, -20, 45, 90, 180, -90, 135])
def test_a_query_is_seen_at_its_place_however_it_is_turned(seen, previews, degrees, mirrored):
    photo, width, height = seen["coffee"], 254, 290
    to_photo = placed(297, 157, width, height, degrees=degrees)
    to_photo = to_photo @ MIRROR if mirrored else to_photo
    sighting = look_for(cut(photo, to_photo, width, height), previews, "coffee", CUP)
    assert_consistent(sighting, 600, 400)
    assert off(sighting, to_photo) < 3
    assert sighting.mirrored == mirrored
    # The photo is turned by so much, and then mirrored, to look like the query.
    assert abs((sighting.rotation - degrees + 180) % 360 - 180) < 1
    assert sighting.scale == pytest.approx(1, rel=0.02)
    assert sighting.part == (0, 0, width, height)
    assert sighting.agreement > 0.9


@pytest.mark.parametrize("quarters", [1, 2, 3])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_small_query_is_seen_by_another_look(seen, previews, quarters, mirrored):
    """It has too few corners, so how it is turned has to be tried."""
    photo, side = seen["astronaut"], 40
    part = cut(photo, placed(220, 120, side, side, scale=2.5), side, side)
    part = part[:, ::-1] if mirrored else part
    query = np.ascontiguousarray(np.rot90(part, -quarters))
    sketch, chunk = sketch_of(query), (165, 65, 275, 175)
    # The look undoes what was done: mirrored, turned back.
    back = quarters if mirrored else -quarters % 4
    look = Look(sketch.box, turned=back, mirrored=mirrored)
    (sighting,) = verifier.verify_again(
        sketch, [candidate("astronaut", chunk, look)], previews
    ).values()
    assert_consistent(sighting, 512, 512)
    assert sighting.mirrored == mirrored
    # Where the corners of the query came from.
    corners = np.array(corners_of((170, 70, 270, 170)), float)
    corners = corners[[1, 0, 3, 2]] if mirrored else corners
    np.testing.assert_allclose(sighting.quad, np.roll(corners, quarters, axis=0), atol=3)
    wrong = Look(sketch.box, turned=(back + 1) % 4, mirrored=mirrored)
    assert not verifier.verify_again(sketch, [candidate("astronaut", chunk, wrong)], previews)


@settings(max_examples=examples(15))
@given(st.data())
def test_a_part_at_any_place_size_and_angle_comes_back(seen, previews, data):
    """To a pixel of what is compared, which is the photo's at the query's size there."""
    name = data.draw(st.sampled_from(["astronaut", "chelsea"]))
    photo = seen[name]
    scale, degrees = data.draw(st.floats(0.7, 1.4)), data.draw(st.floats(-180, 180))
    width, height = data.draw(st.integers(100, 160)), data.draw(st.integers(100, 160))
    x = data.draw(st.floats(0.35, 0.6)) * photo.shape[1]
    y = data.draw(st.floats(0.35, 0.6)) * photo.shape[0]
    to_photo = placed(x, y, width, height, scale=scale, degrees=degrees)
    corners = apply(to_photo, corners_of((0, 0, width, height)))
    box = (*np.maximum(corners.min(0), 0), *np.minimum(corners.max(0), photo.shape[1::-1]))
    query = cut(photo, to_photo, width, height)
    sighting = look_for(query, previews, name, box)
    if sighting is None:  # corners may be few at some place; then it is looked at again
        return
    assert_consistent(sighting, *photo.shape[1::-1])
    assert off(sighting, to_photo) < 4 * scale
    assert abs((sighting.rotation - degrees + 180) % 360 - 180) < 2
    assert sighting.scale == pytest.approx(scale, rel=0.05)


def test_nearly_all_parts_are_seen_at_any_angle(seen, previews):
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(12):
        to_photo = placed(*rng.uniform(180, 300, 2), 150, 140, degrees=rng.uniform(-180, 180))
        corners = apply(to_photo, corners_of((0, 0, 150, 140)))
        box = (*corners.min(0), *corners.max(0))
        sighting = look_for(cut(seen["astronaut"], to_photo, 150, 140), previews, "astronaut", box)
        found += sighting is not None and off(sighting, to_photo) < 4
    assert found >= 11


def test_a_photographed_display_is_seen_in_perspective(seen, previews):
    size = 220, 200
    quad = [(180, 60), (410, 40), (390, 260), (200, 240)]
    to_photo = ProjectiveTransform.from_estimate(
        np.array(corners_of((0, 0, *size)), float), np.array(quad, float)
    ).params
    query = cut(seen["coffee"], to_photo, *size)
    sighting = look_for(query, previews, "coffee", CUP)
    assert off(sighting, to_photo) < 4
    assert_consistent(sighting, 600, 400)


def test_a_large_photo_is_seen_by_its_preview(seen):
    """Places are in pixels of the original."""
    photo = np.array(Image.fromarray(seen["coffee"]).resize((1800, 1200)))
    to_photo = placed(900, 480, 250, 250, scale=3)
    query = cut(seen["coffee"], placed(300, 160, 250, 250), 250, 250)
    sighting = look_for(query, {"large": preview_of(photo)}, "large", (500, 100, 1300, 900))
    assert off(sighting, to_photo) < 9
    assert sighting.scale == pytest.approx(3, rel=0.03)


def test_a_query_that_reaches_beyond_the_photo_is_covered_in_part(seen, previews):
    """A quarter of it is beyond, and dark."""
    width, height = 200, 200
    to_photo = placed(300, 350, width, height)  # 50 of 200 lines lie below the photo
    query = cut(seen["coffee"], to_photo, width, height)
    sighting = look_for(query, previews, "coffee", (200, 240, 400, 400))
    assert sighting is not None
    assert_consistent(sighting, 600, 400)
    assert off(sighting, to_photo) < 6
    beyond = apply(to_photo, corners_of(sighting.part))[:, 1].max() - 400
    expected = 1 - max(0, beyond) / (sighting.part[3] - sighting.part[1])
    assert sighting.coverage == pytest.approx(expected, abs=0.04)


def test_a_part_of_the_query_is_in_pixels_of_all_of_it(seen, previews):
    """A box was searched with: quad and part are of that box."""
    box = (170, 12, 424, 303)
    sketch = sketch_of(seen["coffee"], box)
    verdict = verifier.verify(sketch, [candidate("coffee", box)], previews)
    sighting = verdict.sightings["coffee"]
    assert sighting.part == box
    np.testing.assert_allclose(sighting.quad, corners_of(box), atol=2)
    assert sighting.scale == pytest.approx(1, rel=0.02)


# What was around it


def test_borders_are_cut_off(seen, previews):
    x1, y1, x2, y2 = CUP
    part = seen["coffee"][y1:y2, x1:x2]
    query = np.pad(part, ((150, 150), (0, 0), (0, 0)))
    sighting = look_for(query, previews, "coffee", CUP) or look_again(
        query, previews, "coffee", CUP
    )
    assert off(sighting, placed(297, 157.5, *query.shape[1::-1])) < 4
    assert sighting.part[1] == pytest.approx(150, abs=5)
    assert sighting.part[3] == pytest.approx(150 + y2 - y1, abs=5)
    assert sighting.coverage == pytest.approx(1, abs=0.01)


def test_a_caption_is_cut_off(seen, previews):
    x1, y1, x2, y2 = CUP
    part = seen["coffee"][y1:y2, x1:x2]
    band = Image.new("RGB", (x2 - x1, 80), "white")
    for line in range(10, 70, 20):
        ImageDraw.Draw(band).text((10, line), "nobody told me that this was the best", "black")
    query = np.vstack([np.asarray(band), part])
    sighting = look_for(query, previews, "coffee", CUP) or look_again(
        query, previews, "coffee", CUP
    )
    assert off(sighting, placed(297, 117.5, *query.shape[1::-1])) < 8


@pytest.mark.parametrize("side", ["left", "right", "top", "bottom"])
def test_what_a_half_shows_is_seen(seen, previews, side):
    """The other half shows something else."""
    width, height = 240, 240
    to_photo = placed(297, 157, width, height)
    query = cut(seen["coffee"], to_photo, width, height)
    other = seen["rocket"][100:340, 200:440]
    half = {
        "left": np.s_[:, 120:],
        "right": np.s_[:, :120],
        "top": np.s_[120:],
        "bottom": np.s_[:120],
    }[side]
    query[half] = other[half]
    sighting = look_for(query, previews, "coffee", CUP) or look_again(
        query, previews, "coffee", CUP
    )
    assert sighting is not None
    assert off(sighting, to_photo) < 6


def test_when_a_part_was_seen_parts_that_share_pixels_with_it_are_left_out(seen, previews):
    sketch = sketch_of(np.ascontiguousarray(seen["coffee"][40:240, 180:400]))
    left, right, all_of_it = (0, 0, 110, 200), (110, 0, 220, 200), (0, 0, 220, 200)
    copies = previews | {"copy": previews["coffee"]}
    looks = [("coffee", left), ("copy", left), ("copy", all_of_it)]
    candidates = [candidate(name, CUP, Look(part)) for name, part in looks]
    found = verifier.verify_again(sketch, candidates, copies)
    assert list(found) == ["coffee"]
    # What was seen of the half is extended to all of it, so nothing is left to look for.
    assert found["coffee"].part in (all_of_it, left)
    first_only = verifier.verify_again(sketch, [candidate("coffee", CUP, Look(right))], copies)
    assert list(first_only) == ["coffee"]


# Which photos are looked at


@pytest.fixture
def cup(seen):
    x1, y1, x2, y2 = CUP
    return sketch_of(np.ascontiguousarray(seen["coffee"][y1:y2, x1:x2]))


def test_it_is_looked_for_until_it_is_seen(cup, previews):
    order = ["chelsea", "coffee", "astronaut", "rocket"]
    candidates = [
        candidate(name, CUP if name == "coffee" else (0, 0, 300, 300), distance=number / 5)
        for number, name in enumerate(order, 1)
    ]
    verdict = verifier.verify(cup, candidates, previews)
    assert {name: bool(found) for name, found in verdict.sightings.items()} == {
        "chelsea": False,
        "coffee": True,
    }
    assert verdict.looks == []
    every = verifier.verify(cup, candidates, previews, everything=True)
    assert {name: bool(found) for name, found in every.sightings.items()} == {
        name: name == "coffee" for name in order
    }
    assert every.sightings["coffee"] == verdict.sightings["coffee"]


def test_photos_that_are_about_as_near_are_looked_at_too(cup, previews):
    """They may be copies."""
    copies = previews | {"copy": previews["coffee"], "far": previews["coffee"]}
    candidates = [
        candidate("coffee", CUP, distance=0.1),
        candidate("chelsea", (0, 0, 300, 300), distance=0.11),
        candidate("copy", CUP, distance=0.12),
        candidate("far", CUP, distance=0.25),
    ]
    sightings = verifier.verify(cup, candidates, copies).sightings
    assert set(sightings) == {"coffee", "chelsea", "copy"}
    assert sightings["coffee"] == sightings["copy"]
    assert sightings["chelsea"] is None


def test_a_photo_without_a_preview_is_passed_over(cup, previews):
    candidates = [candidate("gone", CUP, distance=0.05), candidate("coffee", CUP)]
    verdict = verifier.verify(cup, candidates, previews)
    assert set(verdict.sightings) == {"coffee"}
    assert verifier.verify(cup, candidates[:1], previews).sightings == {}
    assert verifier.verify_again(cup, candidates[:1], previews) == {}


@pytest.mark.parametrize(
    ("name", "box"),
    [
        ("chelsea", (100, 50, 300, 250)),
        ("astronaut", (150, 0, 350, 200)),
        ("rocket", (250, 100, 450, 300)),
        ("coffee", (0, 100, 160, 260)),
    ],
)
def test_what_is_in_another_photo_is_not_seen(seen, previews, name, box):
    x1, y1, x2, y2 = box
    sketch = sketch_of(np.ascontiguousarray(seen[name][y1:y2, x1:x2]))
    candidates = [
        candidate(other, (0, 0, *photo.shape[1::-1]))
        for other, photo in seen.items()
        if other != name
    ]
    verdict = verifier.verify(sketch, candidates, previews, everything=True)
    assert verdict.sightings == dict.fromkeys(set(seen) - {name})
    assert not verdict.plain
    again = [candidate(one.id, one.box, look) for one in candidates for look in verdict.looks]
    assert verifier.verify_again(sketch, again, previews) == {}


def test_the_looks_are_turned_mirrored_and_parts(cup, previews):
    """When nothing was seen; each of them once, and not the one that was tried."""
    looks = verifier.verify(cup, [], previews).looks
    assert len(looks) == len(set(looks))
    assert Look(cup.box) not in looks
    whole = {(look.turned, look.mirrored) for look in looks if look.part == cup.box}
    assert whole == {(q, m) for q in range(4) for m in (False, True)} - {(0, False)}
    parts = {look.part for look in looks} - {cup.box}
    assert len(parts) == 8  # halves and quarters
    for x1, y1, x2, y2 in parts:
        assert 0 <= x1 < x2 <= cup.box[2]
        assert 0 <= y1 < y2 <= cup.box[3]


@pytest.mark.parametrize("content", ["constant", "ramp", "sky"])
def test_a_plain_query_is_not_looked_for(seen, previews, content):
    query = {
        "constant": np.full((80, 90, 3), 120, np.uint8),
        "ramp": np.tile(np.linspace(50, 90, 120).astype(np.uint8)[:, None, None], (1, 100, 3)),
        "sky": seen["rocket"][5:60, 10:80],
    }[content]
    if content == "sky":
        query = query // 8 + 100
    candidates = [candidate("rocket", (0, 0, 640, 427))]
    verdict = verifier.verify(sketch_of(query), candidates, previews, everything=True)
    assert verdict.plain
    assert (verdict.sightings, verdict.looks) == ({}, [])


# Whatever it is given

SHAPES = [(1, 1), (1, 40), (40, 1), (2, 2), (3, 20000), (20000, 3), (24, 24), (60, 300)]
KINDS = {
    "noise": lambda rng, shape: rng.integers(0, 256, shape, np.uint8),
    "constant": lambda rng, shape: np.full(shape, rng.integers(0, 256), np.uint8),
    "lines": lambda rng, shape: np.broadcast_to(
        rng.integers(0, 256, (1, *shape[1:]), np.uint8), shape
    ),
    "framed": lambda rng, shape: np.pad(
        rng.integers(0, 256, (1, 1, 3), np.uint8),
        ((shape[0] // 2, shape[0] - 1 - shape[0] // 2), (shape[1] - 1, 0), (0, 0)),
    ),
}
kinds, shapes = st.sampled_from(sorted(KINDS)), st.sampled_from(SHAPES)


@settings(max_examples=examples(60))
@given(kinds, shapes, kinds, shapes, st.integers(0, 999), st.data())
def test_nothing_is_an_error_and_nothing_is_no_number(what, size, where, size_there, seed, data):
    rng = np.random.default_rng(seed)
    photo = np.ascontiguousarray(KINDS[where](rng, (*size_there, 3)))
    height, width = photo.shape[:2]
    edges = st.sampled_from
    x1, y1 = data.draw(edges([0, width // 2, width - 1])), data.draw(edges([0, height - 1]))
    x2 = data.draw(edges([x1 + 1, width]))
    y2 = data.draw(edges([y1 + 1, height]))
    sketch = sketch_of(np.ascontiguousarray(KINDS[what](rng, (*size, 3))))
    previews = {"a": preview_of(photo)}
    verdict = verifier.verify(sketch, [candidate("a", (x1, y1, x2, y2))], previews, everything=True)
    again = [candidate("a", (x1, y1, x2, y2), look) for look in verdict.looks]
    seen_again = verifier.verify_again(sketch, again, previews)
    assert verdict.plain == (not verdict.sightings)
    for sighting in [*verdict.sightings.values(), *seen_again.values()]:
        if sighting is not None:
            assert_consistent(sighting, width, height)


@settings(max_examples=examples(30))
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6000), st.integers(1, 6000))
def test_a_tiny_sketch_of_a_query_of_any_size(columns, rows, width, height):
    pixels = np.random.default_rng(0).integers(0, 256, (rows, columns), np.uint8)
    sketch = Sketch(pixels, (0, 0, width, height))
    previews = {"a": Preview(SHA256, width, height, preview_of(np.zeros((1, 1, 3), np.uint8)).data)}
    verdict = verifier.verify(sketch, [candidate("a", (0, 0, width, height))], previews)
    assert not any(verdict.sightings.values())
    again = [candidate("a", (0, 0, 1, 1), look) for look in verdict.looks]
    assert verifier.verify_again(sketch, again, previews) == {}


# How much is enough


def alike(agreement, side=64, places=40):
    return Alignment(np.eye(3), agreement, places, side)


def test_a_near_photo_needs_to_agree_less_and_a_small_query_more():
    least = STANDARD.agreement
    assert STANDARD.holds(alike(least + 0.01), 0.25)
    assert not STANDARD.holds(alike(least - 0.01), 0.25)
    assert STANDARD.holds(alike(least - 0.05), 0.1)
    assert not STANDARD.holds(alike(least + 0.05), 0.4)
    assert not STANDARD.holds(alike(least + 0.05, side=32), 0.25)
    assert not STANDARD.holds(alike(1, places=LEAST_PLACES - 1), 0)


def test_of_doubtful_sightings_the_best_counts(seen, previews):
    """A mirrored cup lies quite well on the cup as it is, which is looked for first."""
    photo, width, height = seen["coffee"], 254, 290
    to_photo = placed(297, 157, width, height) @ MIRROR
    query = cut(photo, to_photo, width, height)
    sighting = look_for(query, previews, "coffee", CUP)
    assert sighting.mirrored
    assert off(sighting, to_photo) < 3
