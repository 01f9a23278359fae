"""The list of formats: what is read, and what no decoder ever sees."""

import importlib
import io
import json
import struct
import subprocess
import sys

import pytest
from PIL import Image

from deployments.decoding import formats
from deployments.decoding.image import decode
from deployments.errors import NotAnImage, TooLarge
from tests.unit.decoding.files import LIMITS, encoded, read, texture

NOT_READ = ["PPM", "TGA", "ICO", "ICNS", "EPS", "PCX", "SGI", "IM", "DDS", "PDF", "SPIDER", "MSP"]


def iptc(inner, width, height):
    """An IPTC file that says a size, and holds another picture."""

    def field(record, number, body):
        return bytes([0x1C, record, number]) + struct.pack(">H", len(body)) + body

    head = field(3, 60, b"\1\0") + field(3, 20, struct.pack(">H", width))
    return head + field(3, 30, struct.pack(">H", height)) + field(8, 10, inner)


@pytest.mark.parametrize("kind", NOT_READ)
def test_what_else_pillow_reads_is_refused_unopened(kind, monkeypatch):
    mode = "1" if kind == "MSP" else "F" if kind == "SPIDER" else "RGB"
    content = encoded(Image.new(mode, (64, 64)), kind)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.__init__", lambda *_: pytest.fail("was opened"))
    with pytest.raises(NotAnImage, match=r"send JPEG, PNG, WebP, .* RAW"):
        read(content)


@pytest.mark.parametrize("kind", ["PNG", "EPS"])
def test_a_container_says_nothing_for_what_is_in_it(kind):
    with pytest.raises(NotAnImage):
        read(iptc(encoded(texture(), kind), 10, 10))


def box(kind, body):
    return struct.pack(">I", 8 + len(body)) + kind + body


HEIC = box(b"ftyp", b"heic\0\0\0\0mif1heic") + box(b"meta", bytes(200)) + box(b"mdat", bytes(99))
JXL = b"\0\0\0\x0cJXL \r\n\x87\n" + box(b"ftyp", b"jxl \0\0\0\0jxl ")


@pytest.mark.parametrize(
    ("data", "name"), [(HEIC, "HEIC"), (JXL, "JPEG XL"), (b"\xff\x0a1", "JPEG XL")]
)
def test_without_its_package_a_format_is_named_with_the_way_out(data, name, monkeypatch):
    def missing(module):
        raise ImportError(module)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(NotAnImage, match=rf"{name}.*JPEG.*pip install '\.\[formats\]'"):
        read(data)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (box(b"ftyp", b"mif1\0\0\0\0mif1avif"), formats.AVIF),
        (box(b"ftyp", b"mif1\0\0\0\0mif1heic"), formats.HEIC),
        (box(b"ftyp", b"msf1\0\0\0\0msf1hevc"), formats.HEIC),
        (box(b"ftyp", b"avis\0\0\0\0"), formats.AVIF),
        (box(b"ftyp", b"crx \0\0\0\0"), formats.RAW),
        (b"FUJIFILMCCD-RAW 0201", formats.RAW),
    ],
)
def test_which_format_the_first_bytes_say(data, kind):
    assert formats.recognise(data) is kind


def test_a_film_is_no_photo():
    with pytest.raises(NotAnImage):
        read(box(b"ftyp", b"isom\0\0\0\0isommp42"))


def test_only_the_plugin_that_is_needed_is_loaded():
    code = (
        "import io, json, sys; from PIL import Image;"
        "from deployments.decoding.image import decode; from deployments.limits import ImageLimits;"
        "data = sys.stdin.buffer.read(); decode(data, ImageLimits());"
        "print(json.dumps([name for name in sys.modules if name.endswith('ImagePlugin')]))"
    )
    content = encoded(texture(), "PNG")
    done = subprocess.run(
        [sys.executable, "-c", code], input=content, capture_output=True, check=True
    )
    assert json.loads(done.stdout) == ["PIL.PngImagePlugin"]


def test_what_ran_out_of_memory_is_too_large(monkeypatch):
    def full(self):
        raise MemoryError

    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.load", full)
    with pytest.raises(TooLarge, match="96 x 64 pixels takes more memory"):
        decode(encoded(texture(), "JPEG"), LIMITS)
    buffer = io.BytesIO()
    texture().save(buffer, "PNG")
    assert decode(buffer.getvalue(), LIMITS).pixels.shape == (64, 96, 3)
