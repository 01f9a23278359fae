"""Thumbnails: of any picture a small one, that fits and looks like it."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from deployments.limits import THUMBNAIL_BYTES, THUMBNAIL_SIDE, THUMBNAIL_TYPE
from deployments.segmenter import thumbnails
from deployments.segmenter.thumbnails import make_thumbnail
from tests.support.running.examples import examples


def opened(thumbnail):
    image = Image.open(io.BytesIO(thumbnail))
    image.load()
    assert image.get_format_mimetype() == THUMBNAIL_TYPE
    assert image.mode == "RGB"
    return image


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "rocket", "retina"])
def test_it_looks_like_the_photo(name):
    photo = getattr(data, name)()
    height, width = photo.shape[:2]
    thumbnail = make_thumbnail(photo)
    small = opened(thumbnail)
    assert len(thumbnail) <= THUMBNAIL_BYTES
    assert max(small.size) == THUMBNAIL_SIDE
    assert small.width / small.height == pytest.approx(width / height, rel=0.01)
    expected = np.asarray(Image.fromarray(photo).resize(small.size, Image.Resampling.LANCZOS))
    assert np.abs(np.asarray(small).astype(int) - expected).mean() < 5


@pytest.mark.parametrize("size", [(1, 1), (20, 30), (320, 1), (320, 240), (3, 320)])
def test_a_small_photo_keeps_its_size(size):
    photo = np.asarray(Image.fromarray(data.coffee()).resize(size))
    assert opened(make_thumbnail(photo)).size == size


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((321, 320), (320, 319)),
        ((5000, 1), (320, 1)),
        ((1, 5000), (1, 320)),
        ((400_000, 3), (320, 1)),
        ((3, 400_000), (1, 320)),
        ((640, 2), (320, 1)),
    ],
)
def test_extreme_shapes(size, expected):
    width, height = size
    small = opened(make_thumbnail(np.full((height, width, 3), 99, np.uint8)))
    assert small.size == expected
    assert np.abs(np.asarray(small).astype(int) - 99).max() <= 2


sides = st.integers(1, 900) | st.sampled_from([1, 2, 319, 320, 321, 640, 5000])
# Nothing is larger in JPEG than noise, of all frequencies or of the highest.
CONTENTS = {
    "noise": noise,
    "dots": lambda width, height, seed: noise(width, height, seed) // 128 * 255,
    "grey": lambda width, height, seed: noise(width, height, seed)[..., :1].repeat(3, 2),
}


@settings(max_examples=examples(60))
@given(sides, sides, st.sampled_from(sorted(CONTENTS)), st.integers(0, 2**32 - 1))
def test_whatever_the_photo_it_fits(width, height, content, seed):
    if width * height > 2_000_000:
        width, height = width, 2_000_000 // width
    thumbnail = make_thumbnail(CONTENTS[content](width, height, seed))
    small = opened(thumbnail)
    assert len(thumbnail) <= THUMBNAIL_BYTES
    assert max(small.size) <= min(THUMBNAIL_SIDE, max(width, height))
    # In the proportions of the photo, as far as whole pixels can.
    scale = max(small.size) / max(width, height)
    assert abs(small.width - max(1, width * scale)) <= 1
    assert abs(small.height - max(1, height * scale)) <= 1


def test_what_is_too_large_loses_quality_first_and_then_size(monkeypatch):
    photo = data.astronaut()
    best = make_thumbnail(photo)
    monkeypatch.setattr(thumbnails, "THUMBNAIL_BYTES", len(best) - 1)
    worse = make_thumbnail(photo)
    assert len(worse) < len(best)
    assert opened(worse).size == opened(best).size
    monkeypatch.setattr(thumbnails, "THUMBNAIL_BYTES", 2000)
    smaller = make_thumbnail(photo)
    assert len(smaller) <= 2000
    assert 50 < opened(smaller).width < opened(best).width


def test_the_same_photo_makes_the_same_thumbnail():
    """So its ETag stays, though it be made again."""
    assert make_thumbnail(data.coffee()) == make_thumbnail(data.coffee().copy())
