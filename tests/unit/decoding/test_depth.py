"""Values of more than 8 bits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deployments.decoding.depth import scale_of
from tests.support.running.examples import examples
from tests.unit.decoding.files import encoded, read, texture

GREY = np.asarray(texture(3).convert("L"), np.uint16)


def levels(values, kind="TIFF"):
    return read(encoded(Image.fromarray(values), kind)).pixels[..., 0].astype(int)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_few_bits_in_16(bits, kind):
    top = 2**bits - 1
    values = (GREY.astype(np.uint32) * top // 255).astype(np.uint16)
    np.testing.assert_allclose(levels(values, kind), GREY, atol=1)


def test_a_hot_pixel_decides_nothing():
    values = GREY << 4
    values[0, 0] = 65535
    found = levels(values)
    assert found[0, 0] == 255
    found[0, 0] = GREY[0, 0]
    np.testing.assert_allclose(found, GREY, atol=1)


def test_32_bits():
    np.testing.assert_array_equal(levels(GREY.astype(np.int32)), GREY)
    np.testing.assert_allclose(levels(GREY.astype(np.int32) << 20), GREY, atol=1)
    signed = GREY.astype(np.int32) - 100
    low, high = np.percentile(signed, (0.1, 99.9))
    wanted = ((signed - low) / (high - low) * 255).clip(0, 255)
    np.testing.assert_allclose(levels(signed), wanted, atol=1)


def test_floats():
    np.testing.assert_allclose(levels(GREY.astype(np.float32) / 255), GREY, atol=1)
    half = GREY.astype(np.float32) / 510  # between 0 and 1, and stays dark
    np.testing.assert_allclose(levels(half), GREY / 2, atol=1)
    far = GREY.astype(np.float32) * 100 + 1e6
    far[0, 0], far[0, 1], far[0, 2] = np.nan, np.inf, -np.inf
    found = levels(far)
    assert found[0, :3].tolist() == [0, 255, 0]
    assert abs(np.corrcoef(found[1:].ravel(), GREY[1:].ravel())[0, 1]) > 0.999


def test_nothing_but_what_is_no_number():
    assert levels(np.full((4, 4), np.nan, np.float32)).max() == 0


@settings(max_examples=examples(100))
@given(
    st.sampled_from([np.uint16, np.int32, np.float32]), st.integers(0, 2**31), st.integers(1, 60)
)
def test_more_stays_more(dtype, seed, exponent):
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=(1, 200)) * 2.0 ** (exponent % 31)).clip(-(2**31), 2**31 - 1)
    values = np.sort(np.abs(values) if dtype is np.uint16 else values).clip(max=65535).astype(dtype)
    scaled = scale_of([values], values.size)(values)
    assert scaled.dtype == np.uint8
    assert (np.diff(scaled.astype(int)) >= 0).all()


def test_grey_of_16_bits_with_a_transparent_value():
    values = np.full((2, 2), 65535, np.uint16)
    values[0, 0] = 7
    image = read(encoded(Image.fromarray(values), "PNG", transparency=7))
    assert image.pixels[..., 0].tolist() == [[32, 255], [255, 255]]
