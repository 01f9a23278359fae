"""Files in formats that are not read, files that are no pictures, and odd BMP files."""

from __future__ import annotations

import io
import random
import struct
import zipfile
from collections.abc import Iterator

from fuzz.good_files import (
    BROKEN,
    DOUBTFUL,
    HIGH,
    NO_HEAD,
    OTHER,
    REFUSED,
    WIDE,
    Case,
    encoded,
    good_files,
    picture,
)
from fuzz.writers.iso_media import box, codestream
from fuzz.writers.others import bmp, icns, ico, iptc, psd
from fuzz.writers.png import GREY, PNG_MAGIC, RGBA, png


def other_formats() -> Iterator[Case]:
    """Pictures in formats that aren't read, some with a bomb inside."""
    bomb = png(13_000, 13_000, 8, GREY)
    small = good_files()["png"]
    yield "ico", ico(small), OTHER
    yield "ico-with-a-bomb", ico(png(13_000, 13_000, 8, RGBA)), OTHER
    yield "ico-255-pictures", struct.pack("<HHH", 0, 1, 65_535) + bytes(3000), OTHER
    yield "cur-with-a-bomb", ico(bomb, kind=2), OTHER
    yield "icns-with-a-bomb", icns(bomb), OTHER
    yield "icns-with-a-codestream", icns(codestream(60_000, 60_000)), OTHER
    yield "iptc-with-a-bomb", iptc(bomb, 10, 10), OTHER
    yield "iptc-with-postscript", iptc(postscript(), WIDE, HIGH), OTHER
    yield "iptc-with-iptc", iptc(iptc(small, 10, 10), 10, 10), OTHER
    yield "eps", postscript(), OTHER
    for name, count in {"none": 0, "odd": -32_768, "many": 32_767}.items():
        layers = struct.pack(">Ih", 1000, count) + random.Random(6).randbytes(1000)
        yield f"psd-layers-{name}", psd(WIDE, HIGH, layers), OTHER
    layer = struct.pack(">iiiiH", 0, 0, 2**31 - 1, 2**31 - 1, 65_535) + bytes(100)
    vast = struct.pack(">Ih", 2 + len(layer), 1) + layer
    yield "psd-layer-of-four-gigapixels", psd(WIDE, HIGH, vast), OTHER
    for name, text in {
        "im": b"Image type: RGB\r\nImage size (x*y): 8000*8000\r\nFile size (no of images): 9\r\n",
        "im-odd": b"Image type: L 32F image\r\nImage size (x*y): -5*8\r\nScale (x,y): a*b\r\n",
        "im-lut": b"Image type: P image\r\nImage size (x*y): 5*5\r\nLut: 1\r\n",
    }.items():
        yield name, text.ljust(511, b"\0") + b"\x1a" + bytes(3000), OTHER
    for kind in ("PPM", "TGA", "PCX", "SGI", "DDS", "QOI", "BLP"):
        image = picture(9, "P" if kind == "BLP" else "RGB")
        yield kind.lower(), encoded(image, kind), OTHER
    yield "ppm-bomb", b"P1 8000 8000 " + b"1" * 100, OTHER
    yield "pgm-of-gigapixels", b"P5 65000 65000 255 " + bytes(100), OTHER
    yield "xpm", b'/* XPM */\nstatic char *x[] = {\n"9999 9999 1 1",\n" c #000000",\n', OTHER
    yield "xbm", b"#define a_width 60000\n#define a_height 60000\n" + bytes(99), OTHER
    yield "fli", struct.pack("<IHHHHH", 200, 0xAF12, 9, 9999, 9999, 8) + bytes(200), OTHER
    yield "fits", b"SIMPLE  =                    T".ljust(2880), OTHER
    yield "spider", struct.pack(">27f", 1, 9999, 0, 0, 1, *[0] * 7, 9999, *[0] * 14) * 9, OTHER
    yield "wmf", b"\xd7\xcd\xc6\x9a" + bytes(200), OTHER
    yield "emf", b"\1\0\0\0" + bytes(36) + b" EMF" + bytes(99), OTHER
    yield "hdf5", b"\x89HDF\r\n\x1a\n" + bytes(99), OTHER
    yield "mpeg", b"\0\0\1\xb3" + bytes(99), OTHER
    yield "pcd", bytes(2048) + b"PCD_" + bytes(99), OTHER
    heic = box(b"ftyp", b"heic", bytes(4), b"mif1heic") + box(b"meta", bytes(200))
    yield "heic", heic + box(b"mdat", bytes(999)), NO_HEAD
    yield "jpeg-xl", b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99), NO_HEAD
    yield "jpeg-xl-codestream", b"\xff\x0a" + bytes(99), NO_HEAD
    yield "mp4", box(b"ftyp", b"isom", bytes(4)) + box(b"mdat", bytes(999)), NO_HEAD
    yield "svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', OTHER


def postscript() -> bytes:
    """Return a picture that is a program."""
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EndComments\n{} loop\n"


def no_pictures() -> Iterator[Case]:
    """What people send by mistake, and what a head alone makes of a file."""
    yield "empty", b"", BROKEN | frozenset({400})
    yield "byte", b"\0", NO_HEAD
    yield "zeros", bytes(100_000), OTHER
    yield "noise", random.Random(7).randbytes(100_000), NO_HEAD
    yield "text", b"This is not a picture.\n" * 100, OTHER
    yield "html", b"<!doctype html><script>alert(1)</script>", OTHER
    yield "json", b'{"a": ' * 10_000, OTHER
    laughs = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    yield "xml-that-grows", f"<!DOCTYPE x [{laughs}]><x>&a9;</x>".encode(), OTHER
    yield "pdf", b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n%%EOF", OTHER
    yield "elf", b"\x7fELF\2\1\1" + bytes(500), OTHER
    yield "exe", b"MZ" + bytes(500), OTHER
    yield "gzip", b"\x1f\x8b\x08" + bytes(500), OTHER
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("photo.jpg"), good_files()["jpeg"])
    yield "zip", file.getvalue(), OTHER
    heads = {
        "jpeg": b"\xff\xd8\xff",
        "png": PNG_MAGIC,
        "gif": b"GIF89a",
        "tiff": b"MM\0*",
        "bmp": b"BM",
        "webp": b"RIFF\xff\xff\xff\xffWEBPVP8 ",
        "avif": b"\0\0\0\x1cftypavif",
        "jp2": b"\0\0\0\x0cjP  \r\n\x87\n",
        "j2k": b"\xff\x4f\xff\x51",
    }
    rng = random.Random(8)
    for name, head in heads.items():
        yield f"{name}-head-alone", head, NO_HEAD
        yield f"{name}-head-and-zeros", head + bytes(5000), REFUSED
        yield f"{name}-head-and-ones", head + b"\xff" * 5000, REFUSED
        yield f"{name}-head-and-noise", head + rng.randbytes(5000), REFUSED
        yield f"{name}-head-twice", head + good_files()["png"], REFUSED


def bmp_oddities() -> Iterator[Case]:
    """BMP files with numbers that no encoder writes."""
    pixels = bytes(WIDE * HIGH)
    yield "palette-of-four-gigabytes", bmp(WIDE, HIGH, pixels, colours=2**32 - 1), DOUBTFUL
    yield "palette-of-none", bmp(WIDE, HIGH, pixels, palette=b"", offset=54), DOUBTFUL
    yield "no-bits", bmp(WIDE, HIGH, pixels, 0, palette=b""), BROKEN
    yield "77-bits", bmp(WIDE, HIGH, pixels, 77), BROKEN
    yield "head-of-four-gigabytes", bmp(WIDE, HIGH, pixels, head_size=2**32 - 1), NO_HEAD
    yield "head-of-nothing", bmp(WIDE, HIGH, pixels, head_size=0), NO_HEAD
    yield "pixels-in-the-head", bmp(WIDE, HIGH, pixels, offset=0), DOUBTFUL
    yield "pixels-behind-the-end", bmp(WIDE, HIGH, pixels, offset=2**32 - 1), BROKEN
    for number in (1, 2, 3, 4, 5, 11, 99):
        yield f"compression-{number}", bmp(WIDE, HIGH, pixels, compression=number), DOUBTFUL
