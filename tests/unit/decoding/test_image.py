"""Decoding: every kind of picture, and every kind of damage."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from deployments.decoding.image import decode
from deployments.errors import BrokenImage, NotAnImage, TooLarge
from deployments.limits import ImageLimits
from tests.support.running.examples import examples

LIMITS = ImageLimits()


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(image, kind, **options):
    return decode(encoded(image, kind, **options), LIMITS)


def corners():
    """A picture whose four corners tell how it lies: 40 wide, 20 high."""
    image = Image.new("RGB", (40, 20), "black")
    image.paste("red", (0, 0, 20, 10))
    image.paste("lime", (20, 0, 40, 10))
    image.paste("blue", (0, 10, 20, 20))
    return image


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "JPEG2000"])
def test_lossless_formats(kind):
    options = {"irreversible": False} if kind == "JPEG2000" else {}
    image = decoded(corners(), kind, **options)
    np.testing.assert_array_equal(image.pixels, np.array(corners()))
    assert image.pixels.dtype == np.uint8
    assert image.media_type.startswith("image/")
    assert not image.animated


@pytest.mark.parametrize(
    ("kind", "media_type"), [("JPEG", "image/jpeg"), ("WEBP", "image/webp"), ("AVIF", "image/avif")]
)
def test_lossy_formats(kind, media_type):
    image = decoded(corners(), kind, quality=95)
    assert image.media_type == media_type
    np.testing.assert_allclose(image.pixels[4, 8], [255, 0, 0], atol=12)


# EXIF: which stored corner becomes the upper left one.
@pytest.mark.parametrize(
    ("orientation", "undo"),
    [
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (4, Image.Transpose.FLIP_TOP_BOTTOM),
        (5, Image.Transpose.TRANSPOSE),
        (6, Image.Transpose.ROTATE_90),
        (7, Image.Transpose.TRANSVERSE),
        (8, Image.Transpose.ROTATE_270),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation(orientation, undo, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    image = decoded(corners().transpose(undo), kind, exif=exif, **options)
    np.testing.assert_array_equal(image.pixels, np.array(corners()))


def test_cmyk():
    image = decoded(corners().convert("CMYK"), "TIFF")
    np.testing.assert_array_equal(image.pixels, np.array(corners()))


def test_palette():
    image = decoded(corners().convert("P", palette=Image.Palette.ADAPTIVE), "PNG")
    np.testing.assert_array_equal(image.pixels, np.array(corners()))


def test_transparency_lies_over_white():
    image = Image.new("RGBA", (2, 1))
    image.putpixel((0, 0), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    assert decoded(image, "PNG").pixels.tolist() == [[[255, 0, 0], [255, 255, 255]]]
    grey = Image.new("LA", (1, 1), (0, 128))
    assert decoded(grey, "PNG").pixels[0, 0] == pytest.approx([127] * 3, abs=1)
    palette = image.quantize(4)
    assert palette.mode == "P"
    assert decoded(palette, "PNG").pixels.tolist() == [[[255, 0, 0], [255, 255, 255]]]
    assert decoded(image, "GIF").pixels.tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_16_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    for kind in ("PNG", "TIFF"):
        image = decoded(Image.fromarray(values), kind)
        assert image.pixels[0, :, 0].tolist() == [0, 1, 128, 255]


def test_float_tiff():
    values = np.array([[-1.0, 0.0, 1.0, np.nan]], np.float32)
    image = decoded(Image.fromarray(values), "TIFF")
    assert image.pixels[0, :, 0].tolist() == [0, 127, 255, 0]
    flat = decoded(Image.fromarray(np.full((2, 2), 0.3, np.float32)), "TIFF")
    assert flat.pixels.shape == (2, 2, 3)


def test_one_bit_and_grey():
    assert decoded(Image.new("1", (3, 2), 1), "PNG").pixels.min() == 255
    assert decoded(Image.new("L", (3, 2), 77), "PNG").pixels.tolist() == [[[77] * 3] * 3] * 2


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    image = decoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert image.animated
    assert (image.pixels == [255, 0, 0]).all()


@pytest.mark.parametrize("size", [(1, 1), (20000, 10), (10, 20000)])
def test_extreme_sizes(size):
    assert decoded(Image.new("RGB", size), "PNG").pixels.shape == (size[1], size[0], 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000"])
@pytest.mark.parametrize("part", [0.3, 0.9])
def test_a_truncated_image_is_broken(kind, part):
    whole = encoded(Image.fromarray(data.coffee()), kind)
    with pytest.raises(BrokenImage):
        decode(whole[: int(len(whole) * part)], LIMITS)


def test_no_bytes_and_garbage():
    with pytest.raises(BrokenImage, match="no bytes"):
        decode(b"", LIMITS)
    for garbage in (
        b"hello",
        b"\x00" * 1000,
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF",
    ):
        with pytest.raises(NotAnImage):
            decode(garbage, LIMITS)


def png_header(width, height):
    """A PNG that claims a size and has next to no pixels."""

    def chunk(kind, body):
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(9_000, 9_000), (60_000, 60_000)])
def test_a_pixel_bomb_is_refused_before_it_is_decoded(monkeypatch, size):
    bomb = png_header(*size)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("was decoded"))
    with pytest.raises(TooLarge, match="pixels"):
        decode(bomb, LIMITS)


def test_limits_are_inclusive():
    content = encoded(Image.new("RGB", (20, 10)), "PNG")
    assert decode(content, ImageLimits(max_bytes=len(content), max_pixels=200)).pixels.size == 600
    with pytest.raises(TooLarge, match="200 pixels; at most 199"):
        decode(content, ImageLimits(max_pixels=199))
    with pytest.raises(TooLarge, match="bytes"):
        decode(content, ImageLimits(max_bytes=len(content) - 1))


@settings(max_examples=examples(200))
@given(st.binary(max_size=60), st.integers(0, 400))
def test_any_damage_is_an_error_of_ours_or_none(noise, place):
    content = bytearray(encoded(corners(), "PNG"))
    content[place : place + len(noise)] = noise
    with contextlib.suppress(BrokenImage, NotAnImage, TooLarge):
        assert decode(bytes(content), LIMITS).pixels.shape[2] == 3
