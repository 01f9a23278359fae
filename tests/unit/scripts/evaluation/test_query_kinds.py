"""The kinds of queries of scripts/evaluate.py: each knows where in the photo its pixels are."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from evaluation.distortions import Distortion
from evaluation.geometry import apply, bounds, corners, distance, homography, pose
from evaluation.kinds import ABSENT, ALL_KINDS, KINDS, NARROW, SCREEN
from evaluation.queries import EvaluationFailed, Place, Query, find_photos, make_queries, read_photo
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from scipy import ndimage
from skimage.transform import ProjectiveTransform, warp

from tests.support.photos.pictures import encode

PHOTOS = [f"{number}.png" for number in range(5)]
PER_KIND = 6
MOVED = 0.06  # of a query's sides
# What is scaled down a lot, out of focus or behind stripes, agrees less.
LEAST = dict.fromkeys(ALL_KINDS, 0.9) | {"32-pixels": 0.85, "perspective": 0.85}


def textured(name: str, width: int, height: int) -> Image.Image:
    """Return a picture with something to see in each part."""
    rng = np.random.default_rng(list(name.encode()))
    small = rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Photos with the box of an object in each, and photos that are `foreign`."""
    folder = tmp_path_factory.mktemp("kinds")
    for name in ("images", "labels", "foreign"):
        (folder / name).mkdir()
    for name in PHOTOS:
        (folder / "images" / name).write_bytes(encode(textured(name, 480, 320)))
        (folder / "labels" / name).with_suffix(".txt").write_text("0 0.4 0.5 0.4 0.6\n")
    for number in range(3):
        picture = encode(textured(f"foreign {number}", 400, 400))
        (folder / "foreign" / f"{number}.png").write_bytes(picture)
    return folder


def make(folder: Path, limit: int | None = None, **options) -> list[Query]:
    photos = find_photos(folder / "images", limit)
    absent = find_photos(folder / "foreign")
    given = {"kinds": ALL_KINDS, "per_kind": PER_KIND, "absent": absent, "absent_queries": 10}
    return make_queries(photos, folder / "labels", options.pop("seed", 0), **given | options)


@pytest.fixture(scope="module")
def queries(folder) -> list[Query]:
    return make(folder)


@pytest.fixture(scope="module")
def photos(folder) -> dict[str, Image.Image]:
    return {photo.id: read_photo(photo) for photo in find_photos(folder / "images")}


def opened(query: Query) -> Image.Image:
    return Image.open(io.BytesIO(query.data))


def agreement(query: Image.Image, place: Place, photo: Image.Image, moved=(0.0, 0.0)) -> float:
    """Return the correlation of a query's content with the photo's pixels under the quad.

    skimage warps the photo, which Pillow had cut.

    Args:
        moved: by which share of its sides the content is moved against the quad.
    """
    xs, ys = zip(*place.content, strict=True)
    by = (moved[0] * (max(xs) - min(xs)), moved[1] * (max(ys) - min(ys)))
    content = tuple((x + by[0], y + by[1]) for x, y in place.content)
    to_photo = homography(content, place.quad)
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # skimage's pixels begin at -0.5
    scale = np.sqrt(abs(np.linalg.det(to_photo[:2, :2])))
    grey = ndimage.gaussian_filter(np.asarray(photo.convert("L"), float), max(0.5, scale / 2))
    inverse = ProjectiveTransform(np.linalg.inv(half) @ to_photo @ half)
    expected = warp(grey, inverse, output_shape=query.size[::-1], order=1, mode="edge")
    mask = Image.new("L", query.size)
    ImageDraw.Draw(mask).polygon(place.content, fill=255)
    # The edges of the content are blended with what is around it.
    inside = ndimage.binary_erosion(np.asarray(mask) > 0, iterations=2, border_value=1)
    seen = np.asarray(query.convert("L"), float)
    return float(np.corrcoef(expected[inside], seen[inside])[0, 1])


@pytest.mark.parametrize("kind", [kind for kind in ALL_KINDS if kind != ABSENT])
def test_the_photo_under_the_true_quad_looks_like_the_query(kind, queries, photos):
    some = [query for query in queries if query.kind == kind]
    assert len(some) >= 5
    for query in some:
        picture = opened(query)
        assert picture.format == "JPEG"
        for place in query.places:
            photo = photos[place.photo]
            as_it_is = agreement(picture, place, photo)
            assert as_it_is > LEAST[kind], query.name
            for moved in ((MOVED, 0), (-MOVED, 0), (0, MOVED), (0, -MOVED)):
                assert agreement(picture, place, photo, moved) < as_it_is, (query.name, moved)
            assert place.box == bounds(place.quad, *photo.size)
            whole = apply(homography(place.content, place.quad), corners(*picture.size))
            assert distance(whole, place.whole) < 1e-6
            part = (1, 2, picture.width - 3, picture.height - 4)
            assert place.of_part((0, 0, *picture.size)) == pytest.approx(np.array(whole))
            assert place.of_part(part) != place.of_part((0, 0, *picture.size))


def test_queries_are_what_their_kind_says(queries):
    by_kind = {kind: [query for query in queries if query.kind == kind] for kind in ALL_KINDS}
    for kind, degrees in {"turned-90": 90, "turned-180": 180, "turned-270": -90}.items():
        for query in by_kind[kind]:
            mirrored, rotation = pose(query.places[0].whole)
            assert (mirrored, abs(rotation - degrees) % 360) == (False, pytest.approx(0))
    for query in by_kind["mirrored"]:
        assert pose(query.places[0].whole) == (True, pytest.approx(0))
    for query in by_kind["patch"]:
        mirrored, rotation = pose(query.places[0].whole)
        assert (mirrored, round(abs(rotation))) == ((True, 15) if query.turned else (False, 0))

    whole = {kind for kind in KINDS if kind.startswith("turned")} | {"mirrored", "32-pixels"}
    for query in queries:
        for place in query.places:
            if query.kind in whole:
                assert place.content == pytest.approx(np.array(corners(*opened(query).size)))
    assert {opened(query).size for query in by_kind["bars"]} == {SCREEN}
    assert {opened(query).width for query in by_kind["32-pixels"]} == {NARROW}
    for query in by_kind["half-covered"]:
        (x1, y1), _, (x2, y2), _ = query.places[0].content
        size = np.array(opened(query).size)
        assert (x2 - x1) * (y2 - y1) == pytest.approx(size.prod() / 2, abs=max(size) / 2)
        assert len(query.also) == 1
        assert query.places[0].photo not in query.also
    for query in by_kind["collage"]:
        assert len({place.photo for place in query.places}) == 4
        assert query.places[0].name == query.name
    assert all(query.places == query.also == () for query in by_kind[ABSENT])
    assert {query.turned for query in by_kind[ABSENT]} == {False, True}
    surrounded = {
        np.isclose(query.places[0].content, corners(*opened(query).size)).all()
        for query in by_kind["perspective"]
    }
    assert surrounded == {False, True}


def test_queries_follow_from_the_seed_and_their_own_photo(folder, queries):
    assert make(folder) == queries
    assert len({query.data for query in queries}) == len(queries)
    per_kind = {kind: sum(query.kind == kind for query in queries) for kind in ALL_KINDS}
    assert per_kind == dict.fromkeys(KINDS, PER_KIND) | {"object": 5, "patch": 15, ABSENT: 10}

    fewer = make(folder, per_kind=2, absent_queries=4)
    assert [query for query in queries if query in fewer] == fewer
    assert make(folder, kinds=["bars"]) == [query for query in queries if query.kind == "bars"]
    # Without some of the photos, what is left of all parts is the same.
    alone = ["object", "patch", "mirrored", "caption", ABSENT]
    everything = make(folder, kinds=alone, per_kind=1000, absent_queries=1000)
    names = {photo.name for photo in find_photos(folder / "images", 2)}
    some = make(folder, limit=2, kinds=alone, per_kind=1000, absent_queries=1000)
    assert some == [q for q in everything if q.name in names or q.kind == ABSENT]
    other = make(folder, seed=1, kinds=alone)
    assert not {query.data for query in other} & {query.data for query in queries}


def test_a_kind_that_needs_more_photos_says_so(folder):
    with pytest.raises(EvaluationFailed, match="collage has parts of 4 different photos"):
        make(folder, limit=3)


coordinates = st.floats(-100, 100)


@given(
    source=st.tuples(*[st.tuples(coordinates, coordinates)] * 4),
    factors=st.tuples(*[st.floats(-3, 3)] * 4),
    move=st.tuples(coordinates, coordinates),
    slant=st.tuples(*[st.floats(-0.001, 0.001)] * 2),
)
def test_a_homography_is_found_again_from_four_points(source, factors, move, slant):
    a, b, c, d = factors
    matrix = np.array([[a, b, move[0]], [c, d, move[1]], [*slant, 1]])
    assume(abs(np.linalg.det(matrix)) > 0.1)
    # No three of the corners in a line.
    ones = np.column_stack([source, np.ones(4)])
    areas = [np.linalg.det(np.delete(ones, corner, axis=0)) for corner in range(4)]
    assume(min(map(abs, areas)) > 100)
    found = homography(source, apply(matrix, source))
    np.testing.assert_allclose(found, matrix, atol=1e-5, rtol=1e-5)


@given(
    degrees=st.floats(-179, 179),
    mirrored=st.booleans(),
    scale=st.floats(0.2, 3),
    size=st.tuples(*[st.integers(20, 90)] * 2),
)
def test_the_pose_of_a_quad_is_that_of_the_distortion(degrees, mirrored, scale, size):
    photo = Image.new("RGB", (300, 300))
    distortion = Distortion(degrees=degrees, mirrored=mirrored, scale=scale)
    found = pose(distortion.view(photo, (100, 100, 100 + size[0], 100 + size[1])).quad)
    assert found == (mirrored, pytest.approx(degrees, abs=0.01))


def test_the_box_of_a_quad_lies_inside_the_photo():
    quad = ((-5.0, 3.2), (20.0, 1.0000001), (12.0, 9.0), (4.0, 7.9999999))
    assert bounds(quad, 16, 30) == (0, 1, 16, 9)
