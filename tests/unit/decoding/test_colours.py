"""Colours: what ICC profiles say."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from deployments.decoding.colours import to_srgb
from tests.unit.decoding.files import encoded, in_png, png_chunk, read, texture

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def profile(
    space=b"RGB ", gamma=2.2, colorants=((0.5, 0.25, 0), (0.3, 0.7, 0.04), (0.16, 0.05, 0.78))
):
    """A made-up ICC profile."""

    def xyz(*values):
        return b"XYZ \0\0\0\0" + b"".join(
            struct.pack(">i", round(65536 * value)) for value in values
        )

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"a\0" + bytes(80)
    tags = [(b"desc", text.ljust(96, b"\0")), (b"wtpt", xyz(0.9642, 1, 0.8249))]
    if space == b"GRAY":
        tags += [(b"kTRC", curve)]
    else:
        tags += zip(
            (b"rXYZ", b"gXYZ", b"bXYZ"), [xyz(*colour) for colour in colorants], strict=True
        )
        tags += [(kind, curve) for kind in (b"rTRC", b"gTRC", b"bTRC")]
    table, body, place = b"", b"", 132 + 12 * len(tags)
    for kind, content in tags:
        table += kind + struct.pack(">II", place + len(body), len(content))
        body += content
    head = struct.pack(">I4sI4s4s4s", place + len(body), b"", 0x02100000, b"mntr", space, b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + xyz(0.9642, 1, 0.8249)[8:]
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


PROPHOTO = profile(
    gamma=1.8,
    colorants=((0.79767, 0.28804, 0.0), (0.13519, 0.71187, 0.0), (0.03135, 0.00009, 0.82521)),
)


def wide(image):
    target = ImageCms.ImageCmsProfile(io.BytesIO(PROPHOTO))
    return ImageCms.profileToProfile(image, SRGB, target)


def off(pixels, image):
    return np.abs(pixels.astype(int) - np.asarray(image.convert("RGB"), int)).mean()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "JPEG2000"])
def test_a_profile_is_applied(kind):
    right = texture(1)
    stored = wide(right)
    options = {"icc_profile": PROPHOTO, "quality": 95}
    if kind == "JPEG2000":
        content = encoded(stored, kind, irreversible=False)
        colour = content.index(b"colr") - 4
        own = struct.pack(">I4sBBB", 11 + len(PROPHOTO), b"colr", 2, 0, 0) + PROPHOTO
        content = content[:colour] + own + content[colour + 15 :]
        head = content.index(b"jp2h") - 4
        (length,) = struct.unpack_from(">I", content, head)
        length += len(own) - 15
        content = content[:head] + struct.pack(">I", length) + content[head + 4 :]
    else:
        options |= {"lossless": True} if kind == "WEBP" else {}
        content = encoded(stored, kind, **options)
    assert off(np.asarray(stored), right) > 15
    assert off(read(content).pixels, right) < 5


def test_a_profile_of_a_picture_with_transparency_or_a_palette():
    right = texture(1).quantize(32).convert("RGB")
    stored = wide(right)
    stored.putalpha(255)
    assert off(read(encoded(stored, "PNG", icc_profile=PROPHOTO)).pixels, right) < 3
    palette = wide(right).quantize(32)
    assert off(read(encoded(palette, "PNG", icc_profile=PROPHOTO)).pixels, right) < 3


def test_a_profile_of_grey():
    grey = Image.new("L", (4, 4), 128)
    linear = read(encoded(grey, "PNG", icc_profile=profile(b"GRAY", 1.0)))
    assert linear.pixels[0, 0] == pytest.approx([188] * 3, abs=2)
    transparent = read(encoded(grey.convert("LA"), "PNG", icc_profile=profile(b"GRAY", 1.0)))
    assert transparent.pixels[0, 0] == pytest.approx([188] * 3, abs=2)


def test_what_changes_nothing_is_left_out():
    assert to_srgb(SRGB.tobytes(), "RGB") is None
    assert to_srgb(PROPHOTO, "RGB") is not None


@pytest.mark.parametrize(
    "block",
    [b"x", b"\xff" * 500, PROPHOTO[:200], profile(b"GRAY"), profile(b"CMYK"), PROPHOTO[:128]],
)
def test_a_profile_that_is_broken_or_of_other_pictures_is_ignored(block):
    for kind in ("PNG", "TIFF"):
        image = read(encoded(texture(), kind, icc_profile=block))
        np.testing.assert_array_equal(image.pixels, np.asarray(texture()))


def test_a_profile_that_is_too_large_is_ignored():
    chunk = png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(9 * 2**20)))
    image = read(in_png(encoded(texture(), "PNG"), chunk))
    np.testing.assert_array_equal(image.pixels, np.asarray(texture()))


def test_lab():
    lab = ImageCms.profileToProfile(
        texture(), SRGB, ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert off(read(encoded(lab, "TIFF")).pixels, texture()) < 3


def test_cmyk_without_a_profile_and_with_a_wrong_one():
    cmyk = texture().convert("CMYK")
    for options in ({}, {"icc_profile": PROPHOTO}):
        image = read(encoded(cmyk, "TIFF", **options))
        np.testing.assert_array_equal(image.pixels, np.asarray(cmyk.convert("RGB")))
