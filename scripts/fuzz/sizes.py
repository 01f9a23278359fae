"""Files that are cut, that lie about their size, and that are as large as may be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from fuzz.good_files import (
    ABSURD,
    BROKEN,
    COSTLY,
    DOUBTFUL,
    GOOD,
    HIGH,
    LARGE,
    OTHER,
    REFUSED,
    SIDE,
    WIDE,
    Case,
    Expected,
    good_files,
    rle_rows,
)
from fuzz.writers.gif import gif, gif_frame, gif_head
from fuzz.writers.iso_media import avif, jpeg_2000
from fuzz.writers.jpeg import jpeg, jpeg_frame
from fuzz.writers.others import bmp, patched
from fuzz.writers.png import GREY, PNG_MAGIC, deflated_zeros, png, png_head
from fuzz.writers.tiff import HEIGHT, LONG, WIDTH, tiff, tiff_fields
from fuzz.writers.webp import riff, riff_chunk, webp, webp_canvas, webp_pixels


def cut() -> Iterator[Case]:
    """Files that end too early."""
    for name, data in good_files().items():
        lenient = name.startswith("jp2")  # what is there of it is a coarser picture
        yield f"{name}-to-1", data[:1], OTHER | BROKEN
        yield f"{name}-to-12", data[:12], OTHER | BROKEN
        for percent in (20, 50, 90):
            expected = DOUBTFUL if lenient else BROKEN
            if name in HAVE_MORE_BEHIND:
                expected = DOUBTFUL
            yield f"{name}-to-{percent}-percent", data[: len(data) * percent // 100], expected
        yield f"{name}-by-1", data[:-1], DOUBTFUL
    # An interrupted copy that has all its pixels.
    yield "jpeg-without-its-end", good_files()["jpeg"][:-2], GOOD
    yield "jpeg-progressive-without-its-end", good_files()["jpeg-progressive"][:-2], GOOD
    start, frame = gif_head(WIDE, HIGH) + gif_frame(WIDE, HIGH), gif_frame(WIDE, HIGH)
    control = b"!\xf9\4\0\0\0\0\0"
    for place in (1, 5, 9, 18, 20, 30):
        second = (control + frame)[:place]
        yield f"gif-in-its-second-frame-{place}", start + second, DOUBTFUL
    first = good_files()["webp-animated"]
    yield "webp-in-its-second-frame", first[: first.index(b"ANMF", 60) + 100], DOUBTFUL


# Pictures or directories that the main one can do without.
HAVE_MORE_BEHIND = {
    "jpeg-mpo",
    "png-animated",
    "webp-animated",
    "gif-animated",
    "tiff-pages",
    "avif-alpha",
    "avif-grid",
    "tiff-tiles",
    "bmp-rle",
}


def resized() -> Mapping[str, Callable[[int, int], bytes]]:
    """Return, by container, how its good file is made to say another width and height."""
    files = good_files()
    frame = files["jpeg"].index(b"\xff\xc0")
    vp8 = files["webp"].index(b"\x9d\x01\x2a")
    ispe = files["avif"].index(b"ispe")
    ihdr = files["jp2"].index(b"ihdr")
    siz = files["jp2"].index(b"\xff\x4f\xff\x51")
    image = files["gif"].index(b",", 13 + 3 * 16)
    fields = tiff_fields(files["tiff"])

    def png_says(width: int, height: int) -> bytes:
        return PNG_MAGIC + png_head(width, height) + files["png"][33:]

    def jpeg_says(width: int, height: int) -> bytes:
        return patched(files["jpeg"], (frame + 5, ">H", height), (frame + 7, ">H", width))

    def gif_says(width: int, height: int) -> bytes:
        return patched(
            files["gif"],
            (6, "<H", width),
            (8, "<H", height),
            (image + 5, "<H", width),
            (image + 7, "<H", height),
        )

    def tiff_says(width: int, height: int) -> bytes:
        return patched(
            files["tiff"],
            (fields[WIDTH], "<H", LONG),
            (fields[WIDTH] + 6, "<I", width),
            (fields[HEIGHT], "<H", LONG),
            (fields[HEIGHT] + 6, "<I", height),
        )

    def bmp_says(width: int, height: int) -> bytes:
        return patched(files["bmp"], (18, "<I", width), (22, "<I", height))

    def webp_says(width: int, height: int) -> bytes:
        return patched(
            files["webp"], (vp8 + 3, "<H", width & 0x3FFF), (vp8 + 5, "<H", height & 0x3FFF)
        )

    def avif_says(width: int, height: int) -> bytes:
        return patched(files["avif"], (ispe + 8, ">I", width), (ispe + 12, ">I", height))

    def container_says(width: int, height: int) -> bytes:
        return patched(files["jp2"], (ihdr + 4, ">I", height), (ihdr + 8, ">I", width))

    def codestream_says(width: int, height: int) -> bytes:
        return patched(
            container_says(width, height), (siz + 8, ">I", width), (siz + 12, ">I", height)
        )

    return {
        "jpeg": jpeg_says,
        "png": png_says,
        "gif": gif_says,
        "tiff": tiff_says,
        "bmp": bmp_says,
        "webp": webp_says,
        "avif": avif_says,
        "jp2-container": container_says,
        "jp2": codestream_says,
    }


def wrong_size() -> Iterator[Case]:
    """Heads that say another size than the pixels have."""
    whole = {"bmp"}  # it has no other end than its last pixel
    for name, says in resized().items():
        if name == "jp2-container":  # its codestream has the size, whatever the box says
            for side in (0, 60_000, 2**31 - 1):
                yield f"{name}-{side}", says(side, side), REFUSED | GOOD
            continue
        yield f"{name}-smaller", says(WIDE // 2, HIGH // 2), DOUBTFUL
        yield f"{name}-narrower", says(WIDE // 2, HIGH), DOUBTFUL
        larger = BROKEN if name in whole else DOUBTFUL
        yield f"{name}-larger", says(2 * WIDE, 2 * HIGH), larger
        yield f"{name}-higher", says(WIDE, 8 * HIGH), larger
        yield f"{name}-zero-wide", says(0, HIGH), REFUSED
        yield f"{name}-zero-high", says(WIDE, 0), REFUSED
        yield f"{name}-zero", says(0, 0), REFUSED
        if name == "webp":  # the largest that its 14 bits can say
            yield f"{name}-absurd", says(16_383, 16_383), ABSURD
            continue
        # What fits a small picture's numbers, and is yet too much.
        yield f"{name}-60000", says(60_000, 60_000), ABSURD
        if name in ("jpeg", "gif"):
            yield f"{name}-absurd", says(65_535, 65_535), ABSURD
            continue
        yield f"{name}-absurd", says(2**31 - 1, 2**31 - 1), ABSURD
        yield f"{name}-absurdly-wide", says(2**31 - 1, 1), ABSURD
        yield f"{name}-negative", says(2**32 - 1, 2**32 - 1), ABSURD | GOOD
    plain = good_files()["bmp"]
    yield "bmp-upside-down", patched(plain, (22, "<i", -HIGH)), GOOD
    yield "bmp-most-negative", patched(plain, (22, "<i", -(2**31))), ABSURD
    yield "gif-tiny-canvas", gif_head(1, 1) + gif_frame(WIDE, HIGH) + b";", DOUBTFUL
    yield "gif-vast-canvas", gif_head(65_535, 65_535) + gif_frame(1, 1) + b";", LARGE
    outside = gif_head(10, 10) + gif_frame(WIDE, HIGH, 60_000, 60_000) + b";"
    yield "gif-frame-far-outside", outside, COSTLY
    vast = riff(webp_canvas(2**24, 255), (b"VP8L", webp_pixels(1, 1)))
    yield "webp-vast-canvas", vast, ABSURD | GOOD  # a still picture has its own size
    small = riff(webp_canvas(10, 10), (b"VP8L", webp_pixels(SIDE, SIDE)))
    yield "webp-small-canvas", small, COSTLY
    frame = bytes(6) + bytes([9, 0, 0, 9, 0, 0, 1, 0, 0, 0])
    pixels = riff_chunk(b"VP8L", webp_pixels(SIDE, SIDE))
    liar = riff(webp_canvas(10, 10, 0b10), (b"ANIM", bytes(6)), (b"ANMF", frame + pixels))
    yield "webp-small-frame", liar, COSTLY
    yield "avif-says-10x10", avif(8, 8, 1000, declared=(10, 10)), COSTLY
    yield "jp2-says-10x10", jpeg_2000(SIDE, SIDE, declared=(10, 10)), COSTLY
    yield "jp2-says-10x10-beyond", jpeg_2000(60_000, 60_000, declared=(10, 10)), ABSURD
    yield "jpeg-of-two-frames", two_frames(), COSTLY
    yield "png-of-two-heads", png(10, 10, before=png_head(SIDE, SIDE)), COSTLY


def two_frames() -> bytes:
    """Return a JPEG that says its size twice, the second time with more."""
    small, large = jpeg(16, 16), jpeg_frame(60_000, 60_000)
    place = small.index(b"\xff\xda")
    return small[:place] + large + small[place:]


def at_the_limit() -> Iterator[Case]:
    """Files of 64,000,000 pixels, of a little fewer, and of more."""
    writers: dict[str, tuple[Callable[[int, int], bytes], Expected]] = {
        "png": (lambda w, h: png(w, h, 8, GREY), GOOD),
        "jpeg": (jpeg, GOOD),
        "gif": (gif, GOOD),
        "tiff": (lambda w, h: tiff(w, h, deflated_zeros(w * h), 8), GOOD),
        "bmp": (lambda w, h: bmp(w, h, rle_rows(w, h), compression=1), COSTLY),
        "webp": (lambda w, h: webp(w, h, alpha=False), GOOD),
        # Its tiles are the same bytes, which may be refused for that alone.
        "avif": (lambda w, h: avif(8, 8 if h <= SIDE else 9, 1000, (w, h)), DOUBTFUL),
        "jp2": (jpeg_2000, COSTLY),
    }
    for name, (write, expected) in writers.items():
        yield f"{name}-below", write(SIDE, SIDE - 2), expected
        yield f"{name}-at", write(SIDE, SIDE), expected
        yield f"{name}-above", write(SIDE, SIDE + 2), ABSURD if name == "avif" else LARGE
    # 64,000,001 = 23 x 2,782,609 is one pixel more.
    yield "png-one-pixel-above", png(23, 2_782_609, 8, GREY), LARGE
    yield "tiff-one-pixel-above", tiff(23, 2_782_609, deflated_zeros(64_000_001), 8), LARGE
