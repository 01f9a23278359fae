"""Parts of photos as somebody else might have saved them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from evaluation.distortions import Distortion, cut
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.support.photos.pictures import pixels

BOX = (30, 40, 130, 110)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return pixels("distorted", 240, 180)


def levels(a: Image.Image, b: Image.Image) -> float:
    """Largest difference of two pictures of one size, grey levels."""
    assert a.size == b.size
    return np.abs(np.asarray(a).astype(int) - np.asarray(b)).max()


@pytest.mark.parametrize("degrees", [-15, 15])
def test_a_turned_window_is_that_of_the_turned_photo(photo, degrees):
    centre = ((BOX[0] + BOX[2]) / 2, (BOX[1] + BOX[3]) / 2)
    whole = photo.rotate(-degrees, Image.Resampling.BICUBIC, center=centre)
    assert levels(cut(photo, BOX, degrees), whole.crop(BOX)) <= 1
    assert levels(cut(photo, BOX, degrees), photo.crop(BOX)) > 50


@given(box=st.tuples(*[st.integers(0, 40)] * 2, *[st.integers(41, 80)] * 2), side=st.booleans())
def test_nothing_black_comes_in_from_outside_of_the_photo(box, side):
    white = Image.new("RGB", (80, 80), "white")
    part = cut(white, box, 15 if side else -15)
    assert part.size == (box[2] - box[0], box[3] - box[1])
    assert np.asarray(part).min() == 255


def test_undistorted_it_is_the_part_itself(photo):
    view = Distortion().view(photo, BOX)
    assert levels(view.picture, photo.crop(BOX)) == 0
    assert view.quad == ((30, 40), (130, 40), (130, 110), (30, 110))


def test_each_distortion_does_what_it_says(photo):
    part = photo.crop(BOX)

    def changed(**what: float) -> Image.Image:
        return Distortion(**what).view(photo, BOX).picture

    assert changed(scale=0.5).size == (50, 35)
    assert changed(scale=0.001).size == (1, 1)
    mirrored = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert levels(changed(mirrored=True), mirrored) == 0
    assert np.asarray(changed(brightness=0.75)).mean() == pytest.approx(
        0.75 * np.asarray(part).mean(), abs=1
    )
    colourless = np.asarray(changed(colour=0))
    assert (colourless == colourless[..., :1]).all()
    small, large = (Distortion(quality=quality).save(part) for quality in (40, 80))
    assert len(small) < len(large)
    assert Image.open(io.BytesIO(small)).format == "JPEG"


def test_what_is_drawn_stays_in_its_range_and_follows_from_the_seed():
    def draw(turned: bool) -> list[Distortion]:
        rng = np.random.default_rng(5)
        return [Distortion.draw(rng, turned) for _ in range(300)]

    straight, turned = draw(False), draw(True)
    assert straight == draw(False)
    assert {(one.degrees, one.mirrored) for one in straight} == {(0, False)}
    assert {(one.degrees, one.mirrored) for one in turned} == {(-15, True), (15, True)}
    for one in straight + turned:
        assert 0.5 <= one.scale <= 1.3
        assert 0.75 <= one.brightness <= 1.3
        assert 0.6 <= one.colour <= 1.4
        assert 40 <= one.quality <= 80
