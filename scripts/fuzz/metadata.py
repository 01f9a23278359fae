"""Files of which the hostile part is not the pixels."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Iterator, Mapping
from functools import cache

from PIL import ImageCms

from fuzz.good_files import (
    BROKEN,
    DOUBTFUL,
    GIGABYTE,
    GOOD,
    HIGH,
    OTHER,
    WIDE,
    Case,
    encoded,
    good_files,
    picture,
)
from fuzz.writers.gif import gif_frame, gif_head
from fuzz.writers.iso_media import box
from fuzz.writers.jpeg import mpo, segment
from fuzz.writers.others import patched
from fuzz.writers.png import PNG_END, PNG_MAGIC, RGB, deflated_zeros, png, png_chunk, png_head
from fuzz.writers.tiff import (
    BITS,
    EXIF_IFD,
    GPS_IFD,
    HEIGHT,
    LONG,
    ORIENTATION,
    ROWS_PER_STRIP,
    SAMPLES,
    SHORT,
    STRIP_SIZES,
    STRIPS,
    SUB_IFDS,
    WIDTH,
    Field,
    directory,
    exif,
    tiff,
)
from fuzz.writers.webp import riff_chunk, webp_animation, webp_canvas


def metadata() -> Iterator[Case]:
    """Good pixels with hostile metadata: that is never a reason to refuse them."""
    yield from png_metadata()
    yield from profiles()
    yield from exif_blocks()
    plain = good_files()["jpeg"]

    def with_segments(segments: bytes) -> bytes:
        return plain[:2] + segments + plain[2:]

    yield "jpeg-10000-segments", with_segments(10_000 * segment(0xE5, b"")), GOOD
    yield "jpeg-10000-exif-blocks", with_segments(10_000 * segment(0xE1, b"Exif\0\0")), GOOD
    yield "jpeg-50-full-comments", with_segments(50 * segment(0xFE, b"x" * 65_000)), GOOD
    yield "jpeg-filled-with-ff", plain[:2] + b"\xff" * 100_000 + plain[2:], GOOD
    nested = b"<x:xmpmeta>" + b"<a>" * 20_000
    xmp = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + nested)
    yield "jpeg-xmp-deep", with_segments(xmp), GOOD
    photoshop = b"Photoshop 3.0\08BIM\x04\x04\0\0\xff\xff\xff\xff"
    yield "jpeg-photoshop-lies", with_segments(segment(0xED, photoshop)), GOOD
    yield "jpeg-adobe-cut", with_segments(segment(0xEE, b"Adobe")), GOOD
    yield "jpeg-jfif-cut", with_segments(segment(0xE0, b"JFIF")), GOOD
    density = b"JFIF\0\1\1\1" + bytes(6)
    yield "jpeg-density-of-zero", with_segments(segment(0xE0, density)), GOOD
    megabytes = b"<x:xmpmeta>" + b"<a>" * 1_000_000
    alpha = good_files()["webp-lossless"][12:]
    extended = webp_canvas(WIDE, HIGH, 0b0001_1100)
    body = b"WEBP" + riff_chunk(*extended) + alpha + riff_chunk(b"XMP ", megabytes)
    yield "webp-xmp-of-megabytes", b"RIFF" + struct.pack("<I", len(body)) + body, GOOD
    first, second = good_files()["jpeg"], good_files()["jpeg-grey"]
    yield "mpo-65535-pictures", mpo([first, second], count=65_535), GOOD
    yield "mpo-no-pictures", mpo([first, second], count=0), GOOD
    yield "mpo-picture-behind-its-end", mpo([first, second], offset=2**32 - 1), GOOD
    yield "mpo-picture-is-itself", mpo([first, second], offset=0), GOOD
    gif_comment = b"!\xfe" + 15_000 * (b"\xff" + b"x" * 255) + b"\0"
    frame = gif_frame(WIDE, HIGH) + b";"
    yield "gif-comment-of-megabytes", gif_head(WIDE, HIGH) + gif_comment + frame, GOOD
    xmp = b"!\xff\x0bXMP DataXMP" + b"<a>" * 300_000 + b"\1" + bytes(range(255, -1, -1)) + b"\0"
    yield "gif-xmp-of-a-megabyte", gif_head(WIDE, HIGH) + xmp + frame, DOUBTFUL
    padded = good_files()["avif"] + box(b"free", bytes(3_000_000))
    yield "avif-megabytes-behind-it", padded, GOOD
    uuid = box(b"uuid", bytes(16), megabytes)
    jp2 = good_files()["jp2"]
    place = jp2.index(b"jp2c") - 4
    yield "jp2-xmp-of-megabytes", jp2[:place] + uuid + jp2[place:], GOOD
    yield "jp2-10000-boxes", jp2[:place] + 10_000 * box(b"free") + jp2[place:], GOOD
    deep = b""
    for _ in range(1000):
        deep = box(b"jp2h", deep)
    yield "jp2-boxes-in-boxes", jp2[:place] + deep + jp2[place:], DOUBTFUL
    yield (
        "tiff-xmp-of-megabytes",
        tiff(WIDE, HIGH, bytes(WIDE * HIGH), fields={700: (1, megabytes)}),
        GOOD,
    )


def png_metadata() -> Iterator[Case]:
    """PNG chunks: texts that inflate to a gigabyte, and checksums that are wrong."""
    gigabyte = deflated_zeros(GIGABYTE)
    chunks: dict[str, tuple[bytes, bytes]] = {
        "ztxt-of-a-gigabyte": (b"zTXt", b"Comment\0\0" + gigabyte),
        "itxt-of-a-gigabyte": (b"iTXt", b"Comment\0\1\0\0\0" + gigabyte),
        "xmp-of-a-gigabyte": (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + gigabyte),
        "profile-of-a-gigabyte": (b"iCCP", b"profile\0\0" + gigabyte),
        "ztxt-cut": (b"zTXt", b"Comment\0\0" + gigabyte[:1000]),
        "ztxt-of-noise": (b"zTXt", b"Comment\0\0" + random.Random(1).randbytes(5000)),
        "itxt-without-a-name": (b"iTXt", b""),
        "text-of-megabytes": (b"tEXt", b"Comment\0" + bytes([65]) * 3_500_000),
        "xmp-of-megabytes": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"<a>" * 1_000_000),
        "profile-name-alone": (b"iCCP", b"profile"),
        "profile-packed-otherwise": (b"iCCP", b"profile\0\x09" + gigabyte[:100]),
        "density-cut": (b"pHYs", b"\0\0"),
        "gamma-of-zero": (b"gAMA", bytes(4)),
        "white-point-cut": (b"cHRM", bytes(5)),
        "exif-without-a-head": (b"eXIf", random.Random(2).randbytes(5000)),
        "transparency-cut": (b"tRNS", b"\0"),
        "unknown": (b"abCd", b"?" * 3_000_000),
    }
    for name, (kind, body) in chunks.items():
        yield f"png-{name}", png(WIDE, HIGH, before=png_chunk(kind, body)), GOOD
        if len(body) < 10_000:
            wrong = png_chunk(kind, body, right=False)
            yield f"png-{name}-wrong-sum", png(WIDE, HIGH, before=wrong), GOOD
            yield (
                f"png-{name}-behind-its-pixels",
                png(WIDE, HIGH, after=png_chunk(kind, body)),
                GOOD,
            )
    texts = 50_000 * png_chunk(b"tEXt", b"a\0b")
    yield "png-50000-texts", png(WIDE, HIGH, before=texts), GOOD
    frames = png_chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))
    yield "png-two-thousand-million-frames", png(WIDE, HIGH, before=frames), GOOD
    none = png_chunk(b"acTL", bytes(8))
    yield "png-animation-without-frames", png(WIDE, HIGH, before=none), GOOD
    control = struct.pack(">IIIIIHHBB", 0, 2**31 - 1, 2**31 - 1, 9, 9, 1, 1, 0, 0)
    vast = frames + png_chunk(b"fcTL", control)
    yield "png-frame-beyond-the-picture", png(WIDE, HIGH, before=vast), DOUBTFUL
    # Critical chunks: what they hold isn't sure any more.
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", WIDE, HIGH, 8, RGB, 0, 0, 0), right=False)
    good_png = good_files()["png"]
    yield "png-head-with-a-wrong-sum", PNG_MAGIC + head + good_png[33:], DOUBTFUL | OTHER
    data = png_chunk(b"IDAT", deflated_zeros(HIGH * (1 + 3 * WIDE)), right=False)
    wrong = PNG_MAGIC + png_head(WIDE, HIGH) + data + PNG_END
    yield "png-pixels-with-a-wrong-sum", wrong, DOUBTFUL
    stream = deflated_zeros(HIGH * (1 + 3 * WIDE))
    yield "png-stream-with-a-wrong-sum", png(WIDE, HIGH, pixels=stream[:-1] + b"?"), DOUBTFUL
    yield "png-without-a-palette", png(WIDE, HIGH, 8, RGB)[:33] + PNG_END, BROKEN
    yield (
        "png-chunk-of-four-gigabytes",
        png(WIDE, HIGH, before=b"\xff\xff\xff\xfftEXt" + bytes(100)),
        BROKEN,
    )


@cache
def srgb() -> bytes:
    """Return the usual profile, without the day on which it was made."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = bytes(12)
    return bytes(profile)


def profiles() -> Iterator[Case]:
    """Colour profiles that are huge, broken, or of another kind of picture."""
    right = srgb()
    many = right[:128] + struct.pack(">I", 2**32 - 1) + right[132:]
    tags = struct.unpack_from(">I", right, 128)[0]
    everywhere = bytearray(right)
    for number in range(tags):
        struct.pack_into(">II", everywhere, 132 + 12 * number + 4, 2**32 - 100, 2**32 - 1)
    table = b"mft2" + bytes(4) + bytes([15, 15, 255, 0]) + bytes(200)
    lookup = (
        struct.pack(">I4sI4s4s4s", 500, bytes(4), 0x04000000, b"prtr", b"RGB ", b"Lab ")
        + bytes(12)
        + b"acsp"
        + bytes(88)
        + struct.pack(">I4sII", 1, b"A2B0", 144, len(table))
        + table
    )
    contents = {
        "right": right,
        "empty": b"",
        "noise": random.Random(3).randbytes(5000),
        "cut": right[:200],
        "says-less": struct.pack(">I", 10) + right[4:],
        "says-more": struct.pack(">I", 2**32 - 1) + right[4:],
        "many-tags": many,
        "tags-outside": bytes(everywhere),
        "table-of-255-to-the-15th": lookup,
        "of-cmyk": right[:16] + b"CMYK" + right[20:],
        "of-grey": right[:16] + b"GRAY" + right[20:],
        "of-megabytes": right + random.Random(4).randbytes(2_000_000),
    }
    image = picture(8)
    for name, profile in contents.items():
        packed = b"profile\0\0" + zlib.compress(profile)
        yield f"png-profile-{name}", png(WIDE, HIGH, before=png_chunk(b"iCCP", packed)), GOOD
        if profile:
            yield f"jpeg-profile-{name}", encoded(image, "JPEG", icc_profile=profile), GOOD
            yield f"tiff-profile-{name}", encoded(image, "TIFF", icc_profile=profile), GOOD
    yield "webp-profile-noise", encoded(image, "WEBP", icc_profile=contents["noise"]), GOOD
    pieces = b"".join(
        segment(0xE2, b"ICC_PROFILE\0" + bytes([number, 255]) + b"?" * 60_000)
        for number in (9, 9, 0)
    )
    jpeg_file = good_files()["jpeg"]
    yield "jpeg-profile-in-wrong-pieces", jpeg_file[:2] + pieces + jpeg_file[2:], GOOD


def exif_blocks() -> Iterator[Case]:
    """EXIF that loops, is endless, or points outside."""
    turn: dict[int, Field] = {ORIENTATION: (SHORT, [6])}
    many = {tag: (SHORT, [1]) for tag in range(4000)}
    text = exif({271: (2, b"camera\0")})
    contents = {
        "next-is-itself": exif(turn, following=8),
        "exif-is-itself": exif(turn | {EXIF_IFD: (LONG, [8])}),
        "gps-is-itself": exif(turn | {GPS_IFD: (LONG, [8])}),
        "directories-in-a-ring": exif(
            turn | {EXIF_IFD: (LONG, [38])}, following=38, rest=directory({}, 38, 8)
        ),
        "outside": exif(turn | {EXIF_IFD: (LONG, [2**32 - 1]), GPS_IFD: (LONG, [2**31])}),
        "4000-tags": exif(many),
        "65535-tags-said": b"II*\0\x08\0\0\0\xff\xff" + bytes(100),
        "value-of-four-gigabytes": patched(text, (14, "<I", 2**32 - 1)),
        "value-outside": patched(text, (18, "<I", 2**32 - 1)),
        "type-unknown": patched(text, (12, "<H", 65_535)),
        "fraction-of-zero": exif({282: (5, bytes(8)), 283: (5, bytes(8))}),
        "orientation-9": exif({ORIENTATION: (SHORT, [9])}),
        "orientation-is-text": exif({ORIENTATION: (2, b"six\0")}),
        "orientation-of-many": exif({ORIENTATION: (SHORT, [6] * 1000)}),
        "position-of-zeros": exif(
            {GPS_IFD: (LONG, [26])}, rest=directory({2: (5, bytes(24)), 4: (5, bytes(24))}, 26)
        ),
        "head-cut": b"II*\0",
        "head-wrong": b"??*\0\x08\0\0\0",
        "noise": b"II*\0\x08\0\0\0" + random.Random(5).randbytes(2000),
        "empty": b"",
    }
    jpeg_file = good_files()["jpeg"]
    lossless = good_files()["webp-lossless"][12:]
    for name, block in contents.items():
        head = segment(0xE1, b"Exif\0\0" + block)
        yield f"jpeg-exif-{name}", jpeg_file[:2] + head + jpeg_file[2:], GOOD
        yield f"png-exif-{name}", png(WIDE, HIGH, before=png_chunk(b"eXIf", block)), GOOD
        extended = webp_canvas(WIDE, HIGH, 0b0001_1000)
        body = b"WEBP" + riff_chunk(*extended) + lossless + riff_chunk(b"EXIF", block)
        yield f"webp-exif-{name}", b"RIFF" + struct.pack("<I", len(body)) + body, GOOD


def sequences() -> Iterator[Case]:
    """Files of very many pictures, or of pictures that never end."""
    pixels = bytes(WIDE * HIGH)
    start = 8 + len(pixels)
    yield "tiff-next-is-itself", tiff(WIDE, HIGH, pixels, following=start), GOOD
    size = len(tiff(WIDE, HIGH, pixels)) - start
    second = directory(page_fields(), start + size, start)
    ring = tiff(WIDE, HIGH, pixels, following=start + size) + second
    yield "tiff-pages-in-a-ring", ring, GOOD
    yield (
        "tiff-sub-page-is-itself",
        tiff(WIDE, HIGH, pixels, fields={SUB_IFDS: (LONG, [start])}),
        GOOD,
    )
    yield "tiff-next-outside", tiff(WIDE, HIGH, pixels, following=2**32 - 2), GOOD
    yield "tiff-65535-pages", chain(65_535, {}), GOOD
    yield "tiff-20000-pages", chain(20_000, page_fields()), GOOD
    yield "tiff-65535-tags-said", b"II*\0\x08\0\0\0\xff\xff" + bytes(200), BROKEN | OTHER
    yield "tiff-directory-outside", b"II*\0\xff\xff\xff\x7f" + bytes(200), BROKEN | OTHER
    yield "tiff-without-a-directory", b"II*\0" + bytes(200), BROKEN | OTHER
    yield "tiff-big-outside", b"II+\0\x08\0\0\0" + b"\xff" * 7 + b"\x7f" + bytes(99), BROKEN | OTHER
    one = gif_frame(1, 1)
    yield "gif-100000-frames", gif_head(WIDE, HIGH) + 100_000 * one + b";", GOOD
    control = b"!\xf9\4\x0c\0\0\0\0"  # each frame is taken away again
    large = gif_head(4000, 4000) + 10_000 * (control + one) + b";"
    yield "gif-10000-frames-on-a-large-canvas", large, GOOD
    yield "gif-extensions-without-end", gif_head(9, 9) + 500_000 * b"!\xfe\0", BROKEN
    yield "gif-without-a-frame", gif_head(9, 9) + b";", BROKEN
    yield "webp-10000-frames", webp_animation(WIDE, HIGH, 10_000), GOOD
    yield "mpo-200-pictures", mpo([good_files()["jpeg"]] * 200), GOOD
    # Each frame of an APNG, in full, a great many times.
    frames = b""
    for number in range(10_000):
        control = struct.pack(">IIIIIHHBB", 2 * number + 1, 1, 1, 0, 0, 1, 1, 0, 0)
        body = struct.pack(">I", 2 * number + 2) + deflated_zeros(4)
        frames += png_chunk(b"fcTL", control) + png_chunk(b"fdAT", body)
    count = png_chunk(b"acTL", struct.pack(">II", 10_000, 0))
    yield "png-10000-frames", png(WIDE, HIGH, before=count, after=frames), GOOD


def page_fields() -> dict[int, Field]:
    """Return the fields of a grey page whose pixels are the first bytes of the file."""
    return {
        WIDTH: (LONG, [WIDE]),
        HEIGHT: (LONG, [HIGH]),
        BITS: (SHORT, [8]),
        259: (SHORT, [1]),
        262: (SHORT, [1]),
        STRIPS: (LONG, [8]),
        SAMPLES: (SHORT, [1]),
        ROWS_PER_STRIP: (LONG, [HIGH]),
        STRIP_SIZES: (LONG, [WIDE * HIGH]),
    }


def chain(pages: int, fields: Mapping[int, Field]) -> bytes:
    """Return a TIFF of one good page and so many more, one behind the other."""
    pixels = bytes(WIDE * HIGH)
    end = len(tiff(WIDE, HIGH, pixels))
    size = len(directory(fields, 0))
    following = [end + size * (number + 1) for number in range(pages - 1)] + [0]
    # Only the last four bytes differ: short values stand in the entries themselves.
    entries = directory(fields, 0)[:-4]
    rest = b"".join(entries + struct.pack("<I", place) for place in following)
    return tiff(WIDE, HIGH, pixels, following=end) + rest
