"""Proposals by corners, at any angle and size, against scikit-image's RANSAC and estimates."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import ransac
from skimage.transform import AffineTransform, SimilarityTransform

from deployments.verification import Look
from deployments.verifier import features
from deployments.verifier.features import (
    TOLERANCE,
    Features,
    describe_region,
    describe_view,
    propose_by_features,
)
from deployments.verifier.regions import Region
from deployments.verifier.views import make_view
from tests.support.photos.cutting import apply, corners_of, cut, placed, sketch_of
from tests.support.running.examples import examples


def region_of(photo):
    height, width = photo.shape[:2]
    return Region(photo.mean(2).astype(np.uint8), width, height, (0, 0, width, height))


def view_of(query):
    sketch = sketch_of(query)
    return make_view(sketch, Look(sketch.box))


def farthest(one, other, width, height):
    corners = corners_of((0, 0, width, height))
    return np.linalg.norm(apply(one, corners) - apply(other, corners), axis=1).max()


@pytest.mark.parametrize(
    ("name", "degrees", "scale"),
    [
        ("coffee", 0, 1),
        ("coffee", 90, 1),
        ("chelsea", 180, 1),
        ("astronaut", -33, 1),
        ("astronaut", 140, 0.6),
        ("astronaut", 60, 1.5),
    ],
)
def test_a_query_is_found_at_any_angle_and_size(seen, name, degrees, scale):
    photo, width, height = seen[name], 200, 160
    to_photo = placed(photo.shape[1] / 2, 150, width, height, scale=scale, degrees=degrees)
    query = describe_view(view_of(cut(photo, to_photo, width, height)))
    proposed, corners = propose_by_features(query, describe_region(region_of(photo)))
    assert farthest(proposed, to_photo, width, height) < 3
    assert corners >= 8


def test_a_stretched_query_is_found(seen):
    """A similarity doesn't fit it."""
    photo, width, height = seen["astronaut"], 220, 160
    to_photo = placed(200, 150, width, height) @ np.diag([1.15, 0.9, 1])
    query = describe_view(view_of(cut(photo, to_photo, width, height)))
    proposed, _ = propose_by_features(query, describe_region(region_of(photo)))
    assert farthest(proposed, to_photo, width, height) < 5


def test_a_query_that_is_not_there_has_few_corners_in_common(seen):
    region = describe_region(region_of(seen["coffee"]))
    for name in ("chelsea", "rocket", "astronaut"):
        found = propose_by_features(describe_view(view_of(seen[name][50:200, 100:300])), region)
        assert found is None or found[1] < 8


def test_a_mirrored_query_is_not_found_unless_it_is_mirrored_back(seen):
    photo = seen["coffee"]
    region = describe_region(region_of(photo))
    view = view_of(np.ascontiguousarray(photo[60:260, 150:400][:, ::-1]))
    there = propose_by_features(describe_view(view), region)
    back = propose_by_features(describe_view(view.mirrored()), region)
    assert (0 if there is None else there[1]) < 8
    assert back[1] > 20


def of_points(points, descriptors):
    return Features(points.astype(np.float32), descriptors, np.eye(3))


def pairs_of_points(seed, to_region, right, wrong, noise):
    """Corners that look alike in pairs: of some the map is right, the others lie anywhere."""
    rng = np.random.default_rng(seed)
    source = rng.uniform(0, 200, (right + wrong, 2))
    target = apply(to_region, source) + rng.normal(0, noise, (right + wrong, 2))
    target[right:] = rng.uniform(0, 300, (wrong, 2))
    # Random descriptors are as far from each other as nothing that is alike.
    descriptors = rng.integers(0, 256, (right + wrong, 32), np.uint8)
    return source, target, of_points(source, descriptors), of_points(target, descriptors)


@settings(max_examples=examples(15))
@given(
    st.integers(0, 10**6),
    st.floats(0.4, 2.5),
    st.floats(-180, 180),
    st.integers(15, 60),
    st.floats(0, 0.6),
)
def test_the_map_is_that_of_scikit_images_ransac(seed, scale, degrees, right, share):
    to_region = placed(150, 150, 200, 200, scale=scale, degrees=degrees)
    wrong = int(right * share)
    source, target, view, region = pairs_of_points(seed, to_region, right, wrong, 0.5)
    proposed, count = propose_by_features(view, region)
    model, inliers = ransac(
        (source, target),
        SimilarityTransform,
        min_samples=2,
        residual_threshold=TOLERANCE,
        max_trials=300,
        rng=seed,
    )
    assert inliers[:right].sum() >= 0.9 * right
    # The mean error of some points' noise, and of what else lies within the tolerance by chance.
    assert farthest(proposed, model.params, 200, 200) < 2.5
    assert farthest(proposed, to_region, 200, 200) < 2.5
    assert count >= 0.7 * right


def test_an_affine_map_is_that_of_scikit_images_estimate():
    to_region = np.array([[1.3, 0.2, 20], [-0.1, 0.8, 30], [0, 0, 1]])
    source, target, view, region = pairs_of_points(1, to_region, 60, 0, 0.3)
    proposed, count = propose_by_features(view, region)
    estimated = AffineTransform.from_estimate(source, target)
    assert farthest(proposed, estimated.params, 200, 200) < 0.5
    assert count >= 50


@pytest.mark.parametrize(
    "matrix",
    [
        [[-1, 0, 200], [0, 1, 0], [0, 0, 1]],  # mirrored
        [[0.01, 0, 50], [0, 0.01, 50], [0, 0, 1]],  # all in one place
        [[20, 0, 0], [0, 20, 0], [0, 0, 1]],
        [[2, 0, 0], [0, 0.5, 0], [0, 0, 1]],  # stretched more than any picture
    ],
)
def test_a_map_that_no_picture_has_is_not_proposed(matrix):
    _, _, view, region = pairs_of_points(2, np.array(matrix, float), 40, 0, 0)
    found = propose_by_features(view, region)
    assert found is None or found[1] < 40 / 2


def test_corners_in_one_place_count_once():
    """A repeated one is no more evidence."""
    spots = np.array([(10.0, 10), (100, 20), (30, 150), (120, 130), (60, 70)])
    source = np.repeat(spots, 6, axis=0) + np.tile(np.linspace(0, 0.5, 6), 5)[:, None]
    descriptors = np.random.default_rng(3).integers(0, 256, (30, 32), np.uint8)
    _, count = propose_by_features(of_points(source, descriptors), of_points(source, descriptors))
    assert count <= 10


def test_an_ambiguous_corner_is_no_evidence():
    """What looks like two corners of the region could be either."""
    rng = np.random.default_rng(4)
    source = rng.uniform(0, 200, (20, 2))
    descriptors = rng.integers(0, 256, (20, 32), np.uint8)
    twice = of_points(np.vstack([source, source + 40]), np.vstack([descriptors] * 2))
    assert propose_by_features(of_points(source, descriptors), twice) is None
    once = of_points(source, descriptors)
    assert propose_by_features(once, once)[1] == 20


def test_corners_are_in_pixels_of_the_picture_that_was_described():
    """Bright squares on a dark ground: their corners, wherever the picture is scaled to."""
    picture = np.zeros((120, 160), np.uint8)
    picture[40:80, 50:110] = 200
    for described in (
        features._describe(picture, 1, 500),
        features._describe(picture, 2, 500),
    ):
        own = apply(np.linalg.inv(described.scale), described.points)
        to_corners = np.array([(50, 40), (110, 40), (110, 80), (50, 80)])
        away = np.linalg.norm(own[:, None] - to_corners, axis=2)
        assert (away.min(0) < 2.5).all()  # each corner is found
        assert np.abs(own[away.argmin(0)].mean(0) - (80, 60)).max() < 0.45


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (3, 20000), (16, 16), (200, 200)])
def test_what_has_no_corners_has_none(shape):
    view = view_of(np.full((*shape, 3), 99, np.uint8))
    found = describe_view(view)
    assert (found.points.shape, found.descriptors.shape) == ((0, 2), (0, 32))
    assert np.isfinite(found.scale).all()
    assert propose_by_features(found, found) is None
