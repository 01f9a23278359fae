"""Cameras' raw files: the largest JPEG in them."""

import struct

import numpy as np
import pytest

from deployments.errors import BrokenImage
from tests.unit.decoding.files import encoded, exif, in_jpeg, read, texture

PHOTO = texture(1, 320, 240)
PREVIEW, SMALL = encoded(PHOTO, "JPEG", quality=95), encoded(texture(2, 160, 120), "JPEG")
SENSOR = (262, 4, 1, 32803)


def directory(place, entries, following=0):
    """A directory at a place, with values of up to four bytes."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return struct.pack("<H", len(entries)) + body + struct.pack("<I", following)


def raw(magic=b"II*\0", inner=(), outer=(), turned=6):
    """A raw file: a small preview, the sensor's values, and a large preview among them."""
    place = 1000
    values = [(330, 4, 1, 500), (274, 3, 1, turned), (513, 4, 1, place), (514, 4, 1, len(SMALL))]
    first = magic + struct.pack("<I", 16) + bytes(8) + directory(16, [*values, *outer], 700)
    sensor = directory(500, [SENSOR, (256, 4, 1, 4000), (257, 4, 1, 3000), *inner])
    large = [(273, 4, 1, place + len(SMALL)), (279, 4, 1, len(PREVIEW)), (259, 4, 1, 7)]
    head = (first.ljust(500, b"\0") + sensor).ljust(700, b"\0") + directory(700, large)
    return head.ljust(place, b"\0") + SMALL + PREVIEW


def is_photo(pixels, turned=True):
    wanted = np.rot90(np.asarray(PHOTO), -1) if turned else np.asarray(PHOTO)
    return pixels.shape == wanted.shape and np.abs(pixels.astype(int) - wanted).mean() < 6


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (raw(), "image/x-dcraw"),
        (raw(outer=[(0xC612, 4, 1, 0x00000401)]), "image/x-adobe-dng"),
        (raw(magic=b"IIRO"), "image/x-dcraw"),
        (raw(magic=b"IIU\0"), "image/x-dcraw"),
    ],
)
def test_the_largest_preview_turned(data, media_type):
    image = read(data)
    assert is_photo(image.pixels)
    assert (image.media_type, image.animated, image.skipped) == (media_type, False, 1)


def test_what_the_camera_says_comes_from_the_raw_file():
    image = read(raw(outer=[(271, 2, 4, int.from_bytes(b"Acm\0", "little"))]))
    assert image.facts["camera"] == "Acm"


def test_a_raf():
    turned = in_jpeg(PREVIEW, 0xE1, b"Exif\0\0" + exif((0x0112, 3, 1, b"\6\0\0\0")))
    head = b"FUJIFILMCCD-RAW 0201".ljust(84, b"\0") + struct.pack(">II", 100, len(turned))
    image = read(head.ljust(100, b"\0") + turned + bytes(500))
    assert is_photo(image.pixels)
    assert image.media_type == "image/x-fuji-raf"


def box(kind, body):
    return struct.pack(">I4s", 8 + len(body), kind) + body


def test_a_cr3():
    block = exif((0x0112, 3, 1, b"\6\0\0\0"))
    canon = box(b"uuid", bytes(16) + box(b"CMT1", block))

    def movie(place):
        sizes = box(b"stsz", struct.pack(">IIII", 0, 0, 1, len(PREVIEW)))
        places = box(b"co64", struct.pack(">IIQ", 0, 1, place))
        table = box(b"mdia", box(b"minf", box(b"stbl", sizes + places)))
        return box(b"moov", canon + box(b"trak", table))

    start = box(b"ftyp", b"crx \0\0\0\1crx isom")
    data = start + movie(len(start) + len(movie(0)) + 8) + box(b"mdat", PREVIEW)
    image = read(data)
    assert is_photo(image.pixels)
    assert image.media_type == "image/x-canon-cr3"


def test_without_a_preview_the_answer_says_so():
    data = raw().replace(PREVIEW, bytes(len(PREVIEW))).replace(SMALL, bytes(len(SMALL)))
    with pytest.raises(BrokenImage, match=r"no picture but the sensor's values.*JPEG"):
        read(data)


def test_a_sensors_lossless_jpeg_is_no_picture():
    lossless = PREVIEW.replace(b"\xff\xc0", b"\xff\xc3", 1)
    image = read(raw().replace(PREVIEW, lossless))
    assert image.pixels.shape == (160, 120, 3)
    assert image.skipped == 0


def test_a_tiff_is_no_raw_file():
    assert read(encoded(PHOTO, "TIFF")).media_type == "image/tiff"
