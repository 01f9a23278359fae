"""Colours of 16 bits, written by an encoder that Pillow lacks."""

import cv2
import numpy as np
import pytest

from deployments.decoding.image import decode, open_image
from deployments.limits import ImageLimits

LIMITS = ImageLimits()
WIDTH, HEIGHT = 90, 60


def colours(bits):
    ys, xs = np.mgrid[:HEIGHT, :WIDTH]
    red, green = xs / (WIDTH - 1), ys / (HEIGHT - 1)
    shares = np.stack([red, green, (1 - red) * green], axis=2)
    return np.rint(shares * (2**bits - 1)).astype(np.uint16), shares


def encoded(values, kind):
    order = [2, 1, 0, 3][: values.shape[2]]
    return cv2.imencode(kind, values[..., order])[1].tobytes()


@pytest.mark.parametrize("kind", [".png", ".tiff"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_few_bits_in_16_become_the_whole_range(kind, bits):
    values, shares = colours(bits)
    image = decode(encoded(values, kind), LIMITS)
    assert abs(image.pixels - 255 * shares).max() < 1.2


@pytest.mark.parametrize("kind", [".png", ".tiff"])
def test_the_full_range_stays_as_it_is(kind):
    values, _ = colours(16)
    assert (decode(encoded(values, kind), LIMITS).pixels == values >> 8).all()
    dark = values // 3
    assert (decode(encoded(dark, kind), LIMITS).pixels == dark >> 8).all()


def test_a_hot_pixel_decides_nothing():
    values, shares = colours(10)
    values[7, 9] = 65_535
    image = decode(encoded(values, ".png"), LIMITS)
    assert (image.pixels[7, 9] == 255).all()
    assert abs(image.pixels[20:] - 255 * shares[20:]).max() < 1.2


def test_opacity_is_not_scaled():
    values, shares = colours(10)
    opacity = np.full((HEIGHT, WIDTH, 1), 65_535, np.uint16)
    opacity[:, :30] = 0
    image = decode(encoded(np.concatenate([values, opacity], axis=2), ".png"), LIMITS)
    assert (image.pixels[:, :30] == 255).all()  # the white ground
    assert abs(image.pixels[:, 30:] - 255 * shares[:, 30:]).max() < 1.2


def test_both_bytes_cost_memory():
    deep, plain = colours(12)[0], colours(8)[0].astype(np.uint8)
    costs = [open_image(encoded(values, ".png"), LIMITS).cost for values in (deep, plain)]
    assert costs[0] >= costs[1] + 4 * WIDTH * HEIGHT
