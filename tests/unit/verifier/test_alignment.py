"""Alignment: a map that is nearly right becomes right to a part of a pixel, and is measured."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.filters import gaussian
from skimage.transform import ProjectiveTransform

from deployments.verification import Look
from deployments.verifier.alignment import CELLS, MOST_SIDE, align, measure_texture
from deployments.verifier.regions import Region
from deployments.verifier.views import View, make_view, resize
from tests.support.photos.cutting import apply, corners_of, cut, placed, sketch_of
from tests.support.running.examples import examples


def region_of(photo):
    height, width = photo.shape[:2]
    pixels = photo if photo.ndim == 2 else photo.mean(2).astype(np.uint8)
    return Region(pixels, width, height, (0, 0, width, height))


def view_of(query):
    sketch = sketch_of(query)
    return make_view(sketch, Look(sketch.box))


def view_of_grey(pixels):
    return View(pixels, np.eye(3), (0, 0, pixels.shape[1], pixels.shape[0]))


def moved(to_region, width, height, by, rng):
    """A map that is wrong at each corner, by about a share of the sides, as a proposal is."""
    corners = np.array(corners_of((0, 0, width, height)), float)
    shift = rng.uniform(-by, by, 2) * (width, height)
    growth = 1 + rng.uniform(-by, by)
    middle = np.array([width, height]) / 2
    wrong = (corners - middle) * growth + middle + shift
    return to_region @ ProjectiveTransform.from_estimate(corners, wrong).params


def farthest(one, other, width, height):
    corners = corners_of((0, 0, width, height))
    return np.linalg.norm(apply(one, corners) - apply(other, corners), axis=1).max()


@pytest.mark.parametrize("name", ["chelsea", "astronaut"])
@pytest.mark.parametrize("matrix", [[[1, 0], [0, 1]], [[1.1, 0.1], [-0.08, 0.9]]])
def test_an_affine_map_is_found_to_a_part_of_a_pixel(seen, name, matrix):
    """In most places: where there is little to see, it may be off by one or two."""
    photo, side = seen[name].mean(2).astype(np.uint8), 64
    errors = []
    for seed, place in enumerate([(170.3, 90.7), (120.5, 180.2), (230.1, 60.6), (60.4, 140.9)] * 2):
        to_region = np.eye(3)
        to_region[:2, :2], to_region[:2, 2] = matrix, place
        view = view_of_grey(cut(photo, to_region, side, side))
        start = moved(to_region, side, side, 0.04, np.random.default_rng(seed))
        assert farthest(start, to_region, side, side) > 1
        found = align(view, region_of(photo), start)
        errors.append(farthest(found.to_region, to_region, side, side))
        assert found.agreement > 0.7
        assert found.side == side
    assert np.median(errors) < 0.5
    assert max(errors) < 3


def test_a_homography_is_found_to_a_part_of_a_pixel(seen):
    photo, side = seen["astronaut"], 64
    quad = [(150, 60), (221, 70), (214, 139), (155, 128)]
    to_region = ProjectiveTransform.from_estimate(
        np.array(corners_of((0, 0, side, side)), float), np.array(quad, float)
    ).params
    view = view_of(cut(photo, to_region, side, side))
    start = moved(to_region, side, side, 0.03, np.random.default_rng(0))
    found = align(view, region_of(photo), start, perspective=True)
    assert farthest(found.to_region, to_region, side, side) < 0.5
    assert found.to_region[2, 2] == 1
    # What is affine fits it less well.
    affine = align(view, region_of(photo), start)
    assert farthest(affine.to_region, to_region, side, side) > 1
    assert affine.agreement < found.agreement


def test_a_large_view_is_found_to_what_a_pixel_of_the_compared_is(seen):
    """It is compared at 64 pixels a side, so a pixel of that is several of its own."""
    photo, width, height = seen["coffee"], 300, 220
    to_region = placed(290, 180, width, height, scale=1.1, degrees=4)
    view = view_of(cut(photo, to_region, width, height))
    start = moved(to_region, width, height, 0.03, np.random.default_rng(1))
    found = align(view, region_of(photo), start)
    assert found.side == pytest.approx(MOST_SIDE, abs=1)
    assert farthest(found.to_region, to_region, width, height) < 0.5 * 257 / MOST_SIDE
    assert found.places > 30


@settings(max_examples=examples(12))
@given(
    st.floats(150, 350),
    st.floats(100, 350),
    st.floats(0.8, 1.3),
    st.floats(-180, 180),
    st.integers(0, 99),
)
def test_an_alignment_is_the_same_wherever_the_view_lies(seen, x, y, scale, degrees, seed):
    photo, side = seen["astronaut"].mean(2).astype(np.uint8), 64
    to_region = placed(x, y, side, side, scale=scale, degrees=degrees)
    view = view_of_grey(cut(photo, to_region, side, side))
    start = moved(to_region, side, side, 0.03, np.random.default_rng(seed))
    found = align(view, region_of(photo), start)
    if measure_texture(view) > 6:
        assert found is not None
        assert farthest(found.to_region, to_region, side, side) < 1
        assert found.agreement > 0.75


def test_light_and_contrast_count_for_nothing(seen):
    photo, side = seen["chelsea"].mean(2).astype(np.uint8), 64
    to_region = placed(220, 150, side, side)
    pixels = photo[118:182, 188:252]
    found = [
        align(view_of_grey(changed.astype(np.uint8)), region_of(photo), to_region)
        for changed in (pixels, pixels * 0.5 + 100, np.clip(pixels * 1.2 - 30.0, 0, 255))
    ]
    assert min(one.agreement for one in found) > 0.95


def test_what_is_not_there_doesnt_agree(seen):
    view = view_of(seen["rocket"][150:278, 250:378])
    for x in range(100, 500, 50):
        found = align(view, region_of(seen["coffee"]), placed(x, 200, 128, 128))
        assert found is None or found.agreement < 0.5


def edges(positions, slope, size=96, softness=1.5):
    """Straight edges, parallel to each other: where they end, nobody can tell."""
    ys, xs = np.mgrid[:size, :size]
    levels = np.zeros((size, size))
    for position in positions:
        levels += 60 * np.tanh((ys - position - slope * xs) / softness)
    noise = np.random.default_rng(int(slope * 100)).normal(0, 1.5, levels.shape)
    return np.clip(128 + levels + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("positions", [(48,), (20, 30, 40, 50, 60, 70)])
def test_a_straight_edge_doesnt_agree_with_another_one(positions):
    """Nor stripes with stripes: across they agree, along there is nothing to agree."""
    view = view_of_grey(edges(positions, 0.02)[16:80, 16:80])
    found = align(view, region_of(edges(positions, 0.05)), placed(48, 48, 64, 64))
    assert found is not None
    assert found.places >= CELLS
    assert found.agreement < 0.3


def test_an_edge_that_bends_agrees_with_itself():
    """With noise of its own in each picture."""
    ys, xs = np.mgrid[:96, :96]
    disc = 90 + 40 * np.tanh((20 - np.hypot(ys - 50, xs - 44)) / 1.5)
    one, other = (
        np.clip(disc + rng.normal(0, 1.5, disc.shape), 0, 255).astype(np.uint8)
        for rng in map(np.random.default_rng, (0, 1))
    )
    found = align(view_of_grey(one[16:80, 16:80]), region_of(other), placed(49, 47, 64, 64))
    assert found.agreement > 0.55


def test_places_that_were_painted_over_dont_agree(seen):
    """And are counted: of about 64 of a square, those of one half."""
    photo = seen["astronaut"].mean(2).astype(np.uint8)
    pixels = photo[60:188, 150:278].copy()
    whole = align(view_of_grey(pixels), region_of(photo), placed(214, 124, 128, 128))
    rng = np.random.default_rng(0)
    noise = gaussian(rng.uniform(0, 255, (128, 64)), 1.5, preserve_range=True)
    pixels[:, 64:] = np.clip((noise - 127) * 4 + 127, 0, 255)
    half = align(view_of_grey(pixels), region_of(photo), placed(214, 124, 128, 128))
    assert whole.places > 0.7 * CELLS**2
    assert whole.places / 4 < half.places < whole.places / 2 + 4
    assert half.agreement < whole.agreement - 0.2


def test_what_lies_beyond_the_region_is_left_out(seen):
    photo, side = seen["chelsea"], 64
    over_the_edge = placed(250, 290, side, side)  # a third of it is beyond
    view = view_of(cut(photo, over_the_edge, side, side))
    found = align(view, region_of(photo), over_the_edge)
    assert found.agreement > 0.9
    assert farthest(found.to_region, over_the_edge, side, side) < 1
    more = placed(250, 310, side, side)
    assert align(view_of(cut(photo, more, side, side)), region_of(photo), more) is None


@pytest.mark.parametrize("scale", [0.1, 0.01, 9, 100])
def test_what_is_much_larger_or_smaller_is_no_place(seen, scale):
    view = view_of(seen["coffee"][:64, :64])
    assert align(view, region_of(seen["coffee"]), placed(300, 200, 64, 64, scale=scale)) is None


def test_texture_is_the_contrast_of_details():
    rng = np.random.default_rng(0)
    noise = rng.normal(128, 10, (64, 64))
    assert measure_texture(view_of_grey(noise.astype(np.uint8))) == pytest.approx(10, rel=0.1)
    assert measure_texture(view_of_grey(np.full((64, 64), 128, np.uint8))) == 0
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 3, (64, 1))
    assert measure_texture(view_of_grey(ramp)) < 1
    # Of a large view those that are left when it is compared.
    fine = view_of_grey(rng.normal(128, 10, (640, 640)).astype(np.uint8))
    assert measure_texture(fine) < 2


shapes = st.sampled_from([(1, 1), (1, 2), (1, 300), (300, 1), (2, 2), (3, 384), (40, 30)])
CONTENTS = {
    "noise": lambda rng, shape: rng.integers(0, 256, shape, np.uint8),
    "constant": lambda rng, shape: np.full(shape, rng.integers(0, 256), np.uint8),
    "line": lambda rng, shape: np.tile(
        rng.integers(0, 256, shape[1]).astype(np.uint8), (shape[0], 1)
    ),
}
contents = st.sampled_from(sorted(CONTENTS))


@settings(max_examples=examples(60))
@given(
    shapes,
    shapes,
    contents,
    contents,
    st.lists(st.floats(-3, 3), min_size=6, max_size=6),
    st.booleans(),
    st.integers(0, 99),
)
def test_no_view_no_region_and_no_map_is_an_error(one, other, what, where, rows, perspective, seed):
    rng = np.random.default_rng(seed)
    view = view_of_grey(CONTENTS[what](rng, one))
    proposed = np.array([*rows, 0, 0, 1]).reshape(3, 3)
    if abs(np.linalg.det(proposed)) < 1e-6:
        return
    found = align(view, region_of(CONTENTS[where](rng, other)), proposed, perspective=perspective)
    assert np.isfinite(measure_texture(view))
    if found is not None:
        assert np.isfinite(found.to_region).all()
        assert -1.001 <= found.agreement <= 1.001
        assert 0 <= found.places <= 2 * CELLS**2


def test_a_small_view_is_not_enlarged_beyond_what_it_shows(seen):
    """What lies between its pixels would agree with nothing."""
    photo = seen["astronaut"].mean(2).astype(np.uint8)
    small = resize(photo[60:188, 150:278], 20, 20)
    to_region = placed(214, 124, 20, 20, scale=6.4)
    found = align(view_of_grey(small), region_of(photo), to_region)
    assert found.side == 32
    assert found.agreement > 0.8
