"""Previews: of any photo a small grey picture, that fits and looks like it."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from deployments.compute import previews
from deployments.compute.jpegs import scale_down
from deployments.compute.previews import make_preview
from deployments.limits import PREVIEW_BYTES, PREVIEW_SIDE
from tests.support.running.examples import examples


def opened(preview):
    image = Image.open(io.BytesIO(preview))
    image.load()
    assert image.format == "JPEG"
    assert image.mode == "L"
    assert not image.getexif()
    return image


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def grey(photo, size):
    small = Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS)
    return np.asarray(small.convert("L")).astype(int)


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "rocket", "retina"])
def test_it_looks_like_the_photo(name):
    photo = getattr(data, name)()
    height, width = photo.shape[:2]
    preview = make_preview(photo)
    small = opened(preview)
    assert len(preview) <= PREVIEW_BYTES
    assert max(small.size) == min(PREVIEW_SIDE, max(width, height))
    assert small.width / small.height == pytest.approx(width / height, rel=0.01)
    assert np.abs(np.asarray(small) - grey(photo, small.size)).mean() < 4


@pytest.mark.parametrize("size", [(1, 1), (20, 30), (640, 1), (640, 480), (3, 640)])
def test_a_small_photo_keeps_its_size(size):
    photo = np.asarray(Image.fromarray(data.coffee()).resize(size))
    assert opened(make_preview(photo)).size == size


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((641, 640), (640, 639)),
        ((20_000, 1), (640, 1)),
        ((1, 20_000), (1, 640)),
        ((400_000, 3), (640, 1)),
        ((1280, 2), (640, 1)),
    ],
)
def test_extreme_shapes(size, expected):
    width, height = size
    small = opened(make_preview(np.full((height, width, 3), 99, np.uint8)))
    assert small.size == expected
    assert np.abs(np.asarray(small).astype(int) - 99).max() <= 2


def test_a_large_photo_is_antialiased():
    """Lines that are finer than its pixels become grey, and no pattern that isn't there."""
    lines = np.zeros((1200, 1600, 3), np.uint8)
    lines[:, ::2] = 254
    small = np.asarray(opened(make_preview(lines))).astype(int)
    assert np.abs(small[:, 8:-8] - 127).max() < 12


sides = st.integers(1, 900) | st.sampled_from([1, 2, 639, 640, 641, 1280, 5000])
# Nothing is larger in JPEG than noise, of all frequencies or of the highest.
CONTENTS = {
    "noise": noise,
    "dots": lambda width, height, seed: noise(width, height, seed) // 128 * 255,
    "grey dots": lambda *args: noise(*args)[..., :1].repeat(3, 2) // 128 * 255,
}


@settings(max_examples=examples(60))
@given(sides, sides, st.sampled_from(sorted(CONTENTS)), st.integers(0, 2**32 - 1))
def test_whatever_the_photo_it_fits(width, height, content, seed):
    if width * height > 2_000_000:
        width, height = width, 2_000_000 // width
    photo = CONTENTS[content](width, height, seed)
    preview = make_preview(photo)
    small = opened(preview)
    assert len(preview) <= PREVIEW_BYTES
    assert max(small.size) <= min(PREVIEW_SIDE, max(width, height))
    # In the proportions of the photo, as far as whole pixels can.
    scale = max(small.size) / max(width, height)
    assert abs(small.width - max(1, width * scale)) <= 1
    assert abs(small.height - max(1, height * scale)) <= 1
    # It may be made of the scaled photo as well.
    assert make_preview(scale_down(photo, PREVIEW_SIDE)) == preview


def test_what_is_too_large_loses_quality_first_and_then_size(monkeypatch):
    photo = data.astronaut()
    best = make_preview(photo)
    monkeypatch.setattr(previews, "PREVIEW_BYTES", len(best) - 1)
    worse = make_preview(photo)
    assert len(worse) < len(best)
    assert opened(worse).size == opened(best).size
    monkeypatch.setattr(previews, "PREVIEW_BYTES", 2000)
    smaller = make_preview(photo)
    assert len(smaller) <= 2000
    assert 50 < opened(smaller).width < opened(best).width
