"""Sizes before decoders, the right picture of several, and metadata that is out of joint."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deployments.decoding.containers import directories, jpeg
from deployments.decoding.image import decode, open_image
from deployments.errors import BrokenImage, NotAnImage, TooLarge
from deployments.limits import ImageLimits
from tests.support.running.examples import examples
from tests.unit.decoding.files import (
    LIMITS,
    TURNED,
    encoded,
    exif,
    in_jpeg,
    in_png,
    in_webp,
    png_chunk,
    read,
    texture,
)

# ---------------------------------------------------------------- sizes


def tiff(entries, behind=b""):
    """A TIFF of one directory: (tag, type, count, value)."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4) + behind


def no_plugin(monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.__init__", lambda *_: pytest.fail("was opened"))


def test_a_tile_counts_with_all_of_its_pixels(monkeypatch):
    sides = [(256, 3, 1, 16), (257, 3, 1, 16), (322, 4, 1, 46_000), (323, 4, 1, 46_000)]
    content = tiff([*sides, (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (324, 4, 1, 200)])
    no_plugin(monkeypatch)
    with pytest.raises(TooLarge, match="16 x 16 pixels, but takes 2,116,000,000"):
        read(content)


def test_a_tiff_of_too_many_pieces_is_refused():
    sides = [(256, 4, 1, 8), (257, 4, 1, 1_000_000), (278, 4, 1, 1), (273, 4, 1, 8)]
    with pytest.raises(BrokenImage, match="1,000,000 pieces"):
        read(tiff(sides))


def test_a_canvas_of_webp_is_measured_before_it_is_made(monkeypatch):
    bits = (9000 - 1) | (9000 - 1) << 14
    body = struct.pack("<BI", 0x2F, bits) + bytes(5)
    content = b"WEBP" + struct.pack("<4sI", b"VP8L", len(body)) + body
    no_plugin(monkeypatch)
    with pytest.raises(TooLarge, match="9,000 x 9,000"):
        read(struct.pack("<4sI", b"RIFF", len(content)) + content)


def test_a_frame_of_webp_is_measured_too():
    frames = [texture(1), texture(2)]
    content = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    place = content.index(b"VP8L") + 9
    bits = (16000 - 1) | (16000 - 1) << 14
    with pytest.raises(TooLarge, match="takes 256,000,000"):
        read(content[:place] + struct.pack("<I", bits) + content[place + 4 :])


def test_a_frame_of_gif_may_be_larger_than_its_screen():
    content = bytearray(encoded(texture(), "GIF"))
    struct.pack_into("<HH", content, 6, 10, 10)
    assert read(bytes(content)).pixels.shape == (64, 96, 3)
    place = content.index(b",\0\0\0\0\x60\0\x40\0")
    struct.pack_into("<HH", content, place + 5, 60_000, 60_000)
    with pytest.raises(TooLarge, match="60,000 x 60,000"):
        read(bytes(content))


def test_channels_of_jpeg_2000_are_counted(monkeypatch):
    content = bytearray(encoded(texture(), "JPEG2000", no_jp2=True))
    struct.pack_into(">H", content, 40, 16_000)
    no_plugin(monkeypatch)
    with pytest.raises(BrokenImage, match="16,000 channels"):
        read(bytes(content))


def test_a_codestream_of_jpeg_2000_says_the_size_and_not_its_box():
    content = encoded(texture(), "JPEG2000")
    place = content.index(b"ihdr") + 4
    content = content[:place] + struct.pack(">II", 8, 8) + content[place + 8 :]
    assert read(content).pixels.shape == (64, 96, 3)


def test_an_avif_that_declares_too_much_is_refused_unopened(monkeypatch):
    content = encoded(texture(), "AVIF")
    place = content.index(b"ispe") + 8
    no_plugin(monkeypatch)
    with pytest.raises(TooLarge, match="16,000 x 16,000"):
        read(content[:place] + struct.pack(">II", 16_000, 16_000) + content[place + 8 :])


@pytest.mark.parametrize("alpha", [False, True])
def test_an_avif_is_as_large_as_its_pixels_say(monkeypatch, alpha):
    image = texture(0, 400, 300)
    if alpha:
        image.putalpha(77)
    content = encoded(image, "AVIF")
    declared = struct.pack(">II", 400, 300)
    assert declared in content
    small = content.replace(declared, struct.pack(">II", 16, 16))
    no_plugin(monkeypatch)
    with pytest.raises(TooLarge, match="400 x 300"):
        decode(small, ImageLimits(max_pixels=119_999))


def test_items_of_an_avif_that_lie_over_each_other_are_refused():
    content = encoded(texture(), "AVIF")
    place = content.index(b"iloc") + 4
    (offset,) = struct.unpack_from(">I", content, place + 14)
    # Ten thousand parts, each the rest of the file.
    parts = struct.pack(">H", 10_000) + struct.pack(">II", offset, len(content)) * 10_000
    box = content[place - 4 : place + 12] + parts
    body = content[: place - 8] + struct.pack(">I", 4 + len(box)) + box + content[place + 22 :]
    meta = body.index(b"meta") - 4
    (length,) = struct.unpack_from(">I", body, meta)
    body = body[:meta] + struct.pack(">I", length + len(body) - len(content)) + body[meta + 4 :]
    with pytest.raises(BrokenImage, match="over each other"):
        read(body)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "JPEG2000"])
def test_limits_hold_for_every_format(kind):
    content = encoded(texture(), kind)
    assert decode(content, ImageLimits(max_pixels=96 * 64)).pixels.shape == (64, 96, 3)
    with pytest.raises(TooLarge, match="at most 6,143"):
        decode(content, ImageLimits(max_pixels=96 * 64 - 1))


# ---------------------------------------------------------------- several pictures


def is_like(pixels, image):
    return np.abs(pixels.astype(int) - np.asarray(image.convert("RGB"))).mean() < 12


@pytest.mark.parametrize("order", [1, -1])
def test_a_jpeg_with_a_preview_is_a_jpeg(order):
    photo = texture(3, 320, 240)
    pair = [photo, photo.resize((80, 60))][::order]
    image = read(encoded(pair[0], "MPO", save_all=True, append_images=pair[1:]))
    assert (image.media_type, image.animated, image.skipped) == ("image/jpeg", False, 1)
    assert is_like(image.pixels, photo)


def test_of_equal_pictures_the_first():
    content = encoded(texture(1), "MPO", save_all=True, append_images=[texture(2), texture(3)])
    image = read(content)
    assert image.skipped == 2
    assert is_like(image.pixels, texture(1))


def test_a_thumbnail_in_exif_is_no_second_picture():
    thumbnail = encoded(texture(1, 32, 32), "JPEG")
    content = in_jpeg(encoded(texture(2), "JPEG"), 0xE1, b"Exif\0\0" + exif(TURNED) + thumbnail)
    image = read(content)
    assert image.skipped == 0
    assert image.pixels.shape == (96, 64, 3)


@pytest.mark.parametrize("order", [1, -1])
def test_the_largest_page_of_a_tiff(order):
    pages = [texture(4, 120, 90), texture(5, 40, 30)][::order]
    image = read(encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    assert (image.animated, image.skipped) == (False, 1)
    np.testing.assert_array_equal(image.pixels, np.asarray(texture(4, 120, 90)))


def test_a_big_tiff():
    image = read(encoded(texture(), "TIFF", big_tiff=True))
    np.testing.assert_array_equal(image.pixels, np.asarray(texture()))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF"])
def test_an_animation_that_is_cut_is_its_first_frame_or_broken(kind):
    frames = [texture(n) for n in (1, 2, 3)]
    options = {"quality": 95} if kind == "AVIF" else {"lossless": True} if kind == "WEBP" else {}
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    whole = read(content)
    assert (whole.animated, whole.skipped) == (True, 2)
    accepted = 0
    for end in range(len(content) // 3, len(content), max(1, len(content) // 97)):
        with contextlib.suppress(BrokenImage):
            np.testing.assert_array_equal(read(content[:end]).pixels, whole.pixels)
            accepted += 1
    assert accepted or kind == "AVIF"


# ---------------------------------------------------------------- the end of a JPEG


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_a_jpeg_may_lack_its_end_marker_but_no_pixels(options):
    content = encoded(texture(6, 300, 200), "JPEG", quality=88, **options)
    whole = read(content).pixels
    for lacking in (1, 2):
        np.testing.assert_array_equal(read(content[:-lacking]).pixels, whole)
    for part in (0.4, 0.7, 0.9, 0.99):
        with pytest.raises(BrokenImage, match="cut"):
            read(content[: int(len(content) * part)])


def test_a_progressive_jpeg_that_is_cut_between_two_scans_is_broken():
    content = encoded(texture(6, 300, 200), "JPEG", progressive=True)
    place = content.rindex(b"\xff\xda")
    while content[place - 2 : place] != b"\xff\xc4":  # the scan's own tables
        place -= 1
    assert not jpeg.has_all_scans(content[: place - 2])
    with pytest.raises(BrokenImage, match="cut"):
        read(content[: place - 2])


# ---------------------------------------------------------------- metadata

ODD_EXIF = {
    "no block at all": b"Exif\0\0",
    "garbage": b"Exif\0\0" + b"\xff" * 50,
    "a directory out of reach": b"Exif\0\0II*\0\xff\xff\xff\xff",
    "a directory in a circle": b"Exif\0\0" + exif(TURNED)[:-4] + b"\x08\0\0\0",
    "resolution as text": b"Exif\0\0" + exif((0x011A, 2, 3, b"72\0\0"), (0x0128, 2, 2, b"2\0\0\0")),
    "orientation as text": b"Exif\0\0" + exif((0x0112, 2, 2, b"6\0\0\0")),
    "orientation out of range": b"Exif\0\0" + exif((0x0112, 3, 1, b"\x63\0\0\0")),
    "orientation elsewhere": b"Exif\0\0" + exif((0x0112, 3, 100, b"\xff\xff\xff\x7f")),
}


@pytest.mark.parametrize("block", ODD_EXIF.values(), ids=list(ODD_EXIF))
def test_odd_exif_is_no_reason_to_refuse(block):
    jpeg_, png = encoded(texture(), "JPEG"), encoded(texture(), "PNG")
    webp = encoded(texture(), "WEBP", lossless=True)
    for content in (
        in_jpeg(jpeg_, 0xE1, block),
        in_png(png, png_chunk(b"eXIf", block[6:])),
        in_webp(webp, b"EXIF", block[6:]),
    ):
        assert decode(content, LIMITS).pixels.shape in {(64, 96, 3), (96, 64, 3)}


@pytest.mark.parametrize("kind", [1, 3, 4])
def test_orientation_in_any_whole_number(kind):
    content = in_jpeg(
        encoded(texture(), "JPEG"), 0xE1, b"Exif\0\0" + exif((0x0112, kind, 1, b"\6\0\0\0"))
    )
    assert read(content).pixels.shape == (96, 64, 3)


def test_orientation_by_xmp_and_by_imagemagick():
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'
    assert read(in_jpeg(encoded(texture(), "JPEG"), 0xE1, xmp)).pixels.shape == (96, 64, 3)
    block = b"Exif\0\0" + exif(TURNED)
    text = b"\nexif\n%8d\n" % len(block) + block.hex().encode() + b"\n"
    raw = b"Raw profile type exif\0\0" + zlib.compress(text)
    assert read(in_png(encoded(texture(), "PNG"), png_chunk(b"zTXt", raw))).pixels.shape == (
        96,
        64,
        3,
    )


def test_exif_is_handed_on():
    block = b"Exif\0\0" + exif(TURNED, (0x010F, 2, 4, b"Acm\0"))
    content = in_jpeg(encoded(texture(), "JPEG"), 0xE1, block)
    assert decode(content, LIMITS).facts["camera"] == "Acm"


ODD_CHUNKS = {
    "a megabyte and more of text": png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**21))),
    "text that is no zlib": png_chunk(b"zTXt", b"a\0\0xxxx"),
    "text in an unknown way": png_chunk(b"zTXt", b"a\0\x07xxxx"),
    "a wrong checksum": png_chunk(b"tEXt", b"a\0b", wrong=True),
    "a short gamma": png_chunk(b"gAMA", b"\0"),
    "short colours": png_chunk(b"cHRM", b"\0" * 3),
    "a short resolution": png_chunk(b"pHYs", b"\0"),
    "a short intent": png_chunk(b"sRGB", b""),
    "short transparency": png_chunk(b"tRNS", b"\0"),
    "transparency with a wrong checksum": png_chunk(b"tRNS", bytes(6), wrong=True),
    "a profile in an unknown way": png_chunk(b"iCCP", b"a\0\x07xxxx"),
    "a profile of nothing": png_chunk(b"iCCP", b""),
    "a profile that is no zlib": png_chunk(b"iCCP", b"a\0\0xxxx"),
    "an animation of nothing": png_chunk(b"acTL", b"\0"),
    "a frame of nothing": png_chunk(b"fcTL", b"\0"),
    "a frame out of order": png_chunk(b"acTL", bytes(8)) + png_chunk(b"fcTL", b"\xff" * 26),
}


@pytest.mark.parametrize("chunk", ODD_CHUNKS.values(), ids=list(ODD_CHUNKS))
def test_odd_chunks_are_no_reason_to_refuse(chunk):
    content = in_png(encoded(texture(), "PNG"), chunk)
    np.testing.assert_array_equal(read(content).pixels, np.asarray(texture()))


def test_much_text_in_a_png():
    chunk = png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**20 - 9)))
    content = in_png(encoded(texture(), "PNG"), chunk * 80)
    assert read(content).pixels.shape == (64, 96, 3)


def test_a_png_without_its_end():
    content = encoded(texture(), "PNG")
    assert read(content[:-12]).pixels.shape == (64, 96, 3)


ODD_SEGMENTS = {
    "a broken list of pictures": (0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff"),
    "a list of pictures elsewhere": (0xE2, b"MPF\0" + exif((0xB001, 4, 1, b"\x09\0\0\0"))),
    "a short JFIF": (0xE0, b"JFIF\0"),
    "a short Adobe": (0xEE, b"Adobe"),
    "a broken Photoshop": (0xED, b"Photoshop 3.0\x008BIM"),
    "an empty one": (0xE1, b""),
    "half of a profile": (0xE2, b"ICC_PROFILE\0\x01\x02half"),
    "a profile without a number": (0xE2, b"ICC_PROFILE\0"),
    "a comment": (0xFE, b"\xff\xd8\xff\xd9" * 9),
}


@pytest.mark.parametrize("segment", ODD_SEGMENTS.values(), ids=list(ODD_SEGMENTS))
def test_odd_segments_are_no_reason_to_refuse(segment):
    content = encoded(texture(), "JPEG")
    image = read(in_jpeg(content, *segment))
    np.testing.assert_array_equal(image.pixels, read(content).pixels)
    assert image.skipped == 0


@pytest.mark.parametrize("kind", [b"EXIF", b"ICCP", b"XMP "])
def test_odd_chunks_of_webp(kind):
    content = encoded(texture(), "WEBP", lossless=True)
    for body in (b"", b"x", b"\xff" * 99):
        np.testing.assert_array_equal(
            read(in_webp(content, kind, body)).pixels, np.asarray(texture())
        )
    if kind != b"ICCP":  # the photo comes first, and is whole
        cut = in_webp(content, kind, b"x" * 99)[:-50]
        np.testing.assert_array_equal(read(cut).pixels, np.asarray(texture()))


@pytest.mark.parametrize(
    ("tag", "kind", "value"),
    [
        (282, 2, b"72\0\0"),
        (296, 2, b"2\0\0\0"),
        (700, 4, b"\xff" * 4),
        (34675, 7, b"x\0\0\0"),
        (34377, 3, b"\1\0\0\0"),
        (0x8769, 4, b"\xff" * 4),
        (315, 99, b"\0" * 4),
    ],
)
def test_odd_tags_of_tiff(tag, kind, value):
    image = Image.new("RGB", (5, 4), (9, 8, 7))
    content = bytearray(encoded(image, "TIFF"))
    first = next(directories.all_of(bytes(content)))
    (start,) = struct.unpack_from("<I", content, 4)
    # In place of a tag that nobody needs: the compression of nothing.
    place = next(
        start + 2 + 12 * n
        for n in range(len(first.entries))
        if struct.unpack_from("<H", content, start + 2 + 12 * n)[0] == 284
    )
    struct.pack_into("<HHI4s", content, place, tag, kind, 1, value)
    assert (read(bytes(content)).pixels == [9, 8, 7]).all()


def test_exif_of_an_avif_that_is_broken():
    content = encoded(texture(), "AVIF", exif=b"Exif\0\0" + exif((0x010F, 2, 4, b"Acm\0")))
    broken = content.replace(exif((0x010F, 2, 4, b"Acm\0"))[:8], b"XX*\0\xff\0\0\0")
    assert broken != content
    assert read(broken).pixels.shape == (64, 96, 3)


# ---------------------------------------------------------------- anything


SEEDS = {
    kind: encoded(texture(0, 24, 16), kind)
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000")
}
SEEDS["MPO"] = encoded(texture(), "MPO", save_all=True, append_images=[texture(1, 24, 16)])
SEEDS["APNG"] = encoded(texture(), "PNG", save_all=True, append_images=[texture(1)])


@settings(max_examples=examples(600))
@given(st.sampled_from(sorted(SEEDS)), st.data())
def test_any_damage_is_an_error_of_ours_or_a_picture(kind, draw):
    content = bytearray(SEEDS[kind])
    for _ in range(draw.draw(st.integers(1, 4))):
        place = draw.draw(st.integers(0, len(content) - 1))
        content[place : place + 1] = draw.draw(st.binary(max_size=6))
        if not content:
            break
    with contextlib.suppress(BrokenImage, NotAnImage, TooLarge):
        opened = open_image(bytes(content), ImageLimits(max_pixels=10_000))
        assert opened.read().pixels.size == 3 * opened.pixels_declared


def test_room_for_the_pixels_may_be_given():
    rooms = []

    def allocate(shape):
        rooms.append(np.zeros(shape, np.uint8))
        return rooms[-1]

    opened = open_image(encoded(texture(), "PNG"), LIMITS)
    assert opened.read(allocate).pixels is rooms[0]
    np.testing.assert_array_equal(
        rooms[0], np.asarray(Image.open(io.BytesIO(encoded(texture(), "PNG"))))
    )
