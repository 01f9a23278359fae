"""Proposals by correlation: near the place of the query, at the scales around the chunk's."""

from itertools import pairwise

import numpy as np
import pytest

from deployments.verification import Look
from deployments.verifier.correlation import SCALES, SIDE, propose_by_correlation
from deployments.verifier.regions import Region
from deployments.verifier.views import make_view
from tests.support.photos.cutting import apply, corners_of, cut, placed, sketch_of


def region_of(photo, box):
    grey = sketch_of(photo[:, :, :]).pixels if max(photo.shape) <= 384 else photo.mean(2)
    return Region(grey.astype(np.uint8), photo.shape[1], photo.shape[0], box)


def view_of(query):
    sketch = sketch_of(query)
    return make_view(sketch, Look(sketch.box))


def error(proposed, region, to_photo, width, height):
    """Mean distance of the corners from where they are, as a share of the diagonal there."""
    corners = corners_of((0, 0, width, height))
    expected = apply(to_photo, corners)
    found = apply(region.to_photo @ proposed, corners)
    diagonal = np.linalg.norm(expected[2] - expected[0])
    return np.linalg.norm(found - expected, axis=1).mean() / diagonal


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.4])
@pytest.mark.parametrize("chunk", [0.8, 1.0, 1.5])
def test_it_is_near_the_place_whatever_the_sizes(seen, scale, chunk):
    photo, width, height = seen["coffee"], 150, 130
    to_photo = placed(300, 180, width, height, scale=scale)
    # The chunk lies beside the query's place, and is smaller or larger.
    half = np.array([width, height]) * scale * chunk / 2
    box = (*(np.array([312, 170]) - half).astype(int), *(np.array([312, 170]) + half).astype(int))
    region = region_of(photo, box)
    proposed = propose_by_correlation(view_of(cut(photo, to_photo, width, height)), region)
    assert error(proposed, region, to_photo, width, height) < 0.05


@pytest.mark.parametrize("degrees", [15, -15])
def test_a_turned_query_is_looked_for_in_a_turned_region(seen, degrees):
    photo, width, height = seen["chelsea"], 120, 140
    to_photo = placed(200, 150, width, height, degrees=degrees)
    region = region_of(photo, (130, 70, 270, 230))
    view = view_of(cut(photo, to_photo, width, height))
    right, wrong = (
        error(propose_by_correlation(view, region, way), region, to_photo, width, height)
        for way in (degrees, -degrees)
    )
    assert right < 0.05 < wrong


def test_what_is_larger_than_the_region_has_no_place(seen):
    view = view_of(seen["coffee"][:20, :380])
    region = region_of(seen["coffee"], (0, 0, 10, 390))
    assert propose_by_correlation(view, region) is None


def test_the_scales_lie_around_the_chunks():
    """Each is near enough to the next for the alignment to do the rest."""
    assert max(SCALES) > 1 > min(SCALES)
    assert all(b / a < 1.2 for a, b in pairwise(SCALES))
    assert SIDE > 8
