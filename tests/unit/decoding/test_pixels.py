"""From stored pixels to upright sRGB: turning, strips, and what lies behind transparency."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from deployments.decoding import pixels
from deployments.decoding.pixels import DARK, LIGHT, TURNS, upright_rgb
from tests.support.running.examples import examples
from tests.unit.decoding.files import encoded, read, texture


@settings(max_examples=examples(100))
@given(
    st.integers(1, 8), st.integers(1, 40), st.integers(1, 40), st.sampled_from(["RGB", "RGBA", "L"])
)
def test_turning_in_strips_is_turning(orientation, width, height, mode):
    image = texture(1, width, height).convert(mode)
    wanted = image.convert("RGB")
    if orientation in TURNS:
        wanted = wanted.transpose(TURNS[orientation])
    strip, pixels.STRIP = pixels.STRIP, 37
    try:
        found = upright_rgb(image, b"", orientation)
    finally:
        pixels.STRIP = strip
    np.testing.assert_array_equal(found, np.asarray(wanted))


def logo(colour, corners=5):
    """A star on nothing."""
    image = Image.new("RGBA", (100, 100), (*colour, 0))
    ImageDraw.Draw(image).regular_polygon((50, 50, 40), corners, fill=(*colour, 255))
    return image


@pytest.mark.parametrize(
    ("colour", "ground"),
    [
        ((255, 255, 255), DARK),
        ((255, 240, 200), DARK),
        ((255, 255, 0), DARK),
        ((0, 0, 0), LIGHT),
        ((200, 30, 30), LIGHT),
        ((128, 128, 128), LIGHT),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "GIF"])
def test_a_logo_lies_over_what_it_stands_out_from(colour, ground, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    image = read(encoded(logo(colour), kind, **options)).pixels
    assert image[0, 0].tolist() == list(ground)
    assert image[50, 50] == pytest.approx(colour, abs=3)


def test_white_logos_differ():
    star, square = (read(encoded(logo((255, 255, 255), n), "PNG")).pixels for n in (5, 4))
    assert np.abs(star.astype(int) - square).mean() > 10


def test_what_is_transparent_has_no_say():
    image = logo((0, 0, 0))
    hidden = Image.new("RGBA", image.size, (255, 255, 255, 0))
    hidden.paste(image, mask=image.getchannel("A"))
    assert read(encoded(hidden, "PNG")).pixels[0, 0].tolist() == list(LIGHT)
    nothing = Image.new("RGBA", (4, 4), (255, 255, 255, 0))
    assert (read(encoded(nothing, "PNG")).pixels == LIGHT).all()


def test_an_opaque_picture_stays_as_it_is():
    bright = Image.new("RGBA", (4, 4), (250, 251, 252, 255))
    assert (read(encoded(bright, "PNG")).pixels == [250, 251, 252]).all()
