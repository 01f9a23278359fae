"""HEIC and JPEG XL, where their packages are installed."""

import base64

import numpy as np
import pytest
from PIL import Image

from deployments.decoding.image import decode, open_image
from deployments.errors import BrokenImage, TooLarge
from deployments.limits import ImageLimits
from tests.unit.decoding.files import LIMITS, exif, read, texture

# 48 x 64 pixels, stored lying on their side: red, green, blue and black, of a "Maker". HEVC takes
# an encoder under the GPL, so the file is here as it is.
HEIC = base64.b85decode(
    "0000SW^{RQXk}?*00000ZE0pPXk}?*ZE0a<0005VZDn*}000000000XXk=`10000000000aA{+7000000000000000"
    "00000G-+&aV*mgE07O6l0ssL300001>;M4(00000003+N0ssI200LM50RR9100000HUIzsIB98aW&i*H00062000$f"
    "Zf0cy000000RRAKc4ILB0000LX>Mj^0ssI300IC2MR;ju000004sdC7Z2$lO00031009SSaB^?}008D`aAR)(004Gq"
    "c4I>U18@KU0FVFx0000U@BsY%`1k+-4+CHT0RR|40Sp2E{{wIU00RJ!0009300RIXx&lC90096hLID8-Z~y=U0FVFx"
    "0{{R603M(qfd!W8<fgf}2xu@M00096AOHXZ03l)k0RRR>0l{;?i2wiq6Ju{|a&BX6cmM$a4FCp!0000KX>)L800000"
    "0000$0000$0000eV{Bn?0000m000010000$00001|NsB+0000200000000020000GaA|mH000000|*ER00009X>xCL"
    "0{{R38EJ5BVE_OC000000RRC8fdT^sgoXeB02*m>Wo7^X0000001jhhb7KGk0096200020ZDe6|0001JC;_ht;N>Ws"
    "BY4`5|M&F&{-^fd<sbd=KzCvje)ZJTX0is8#QFU%SbcKrcmMT~WMvVUQik#5T%MxqffVLgjZ>72FaNbs0ml#D(=eEQ"
    "%9C6RvudyWv7`DjhoHkh@fq)d4SQd}00006MR;ju002!*04e|g00;mA0S^EI000060000c0TKWM0000100sa600000"
    "O<`+gasU"
)


def test_heic():
    pytest.importorskip("pi_heif", reason="reads HEIC; pip install '.[formats]'")
    image = read(HEIC)
    assert (image.media_type, image.animated, image.skipped) == ("image/heic", False, 0)
    assert image.pixels.shape == (48, 64, 3)
    corners = image.pixels[[5, 5, 40, 40], [5, 60, 5, 60]]
    np.testing.assert_allclose(corners, [[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0]], atol=9)
    assert image.facts["camera"] == "Maker"


def test_heic_that_is_cut_or_too_large():
    pytest.importorskip("pi_heif", reason="reads HEIC; pip install '.[formats]'")
    for part in (0.3, 0.6, 0.75):
        with pytest.raises(BrokenImage):
            read(HEIC[: int(len(HEIC) * part)])
    with pytest.raises(TooLarge):
        decode(HEIC, ImageLimits(max_pixels=1000))


def test_heic_with_broken_exif():
    pytest.importorskip("pi_heif", reason="reads HEIC; pip install '.[formats]'")
    broken = HEIC.replace(b"MM\0*\0\0\0\x08", b"XX\0*\xff\xff\xff\xff")
    assert broken != HEIC
    assert read(broken).pixels.shape == (48, 64, 3)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_jpeg_xl(mode):
    pylibjxl = pytest.importorskip("pylibjxl", reason="reads JPEG XL; pip install '.[formats]'")
    stored = texture().convert(mode)
    values = np.ascontiguousarray(np.asarray(stored).reshape(64, 96, -1))
    content = pylibjxl.encode(values, lossless=True, exif=exif((0x010F, 2, 4, b"Acm\0")))
    image = read(content)
    assert (image.media_type, image.animated, image.skipped) == ("image/jxl", False, 0)
    np.testing.assert_array_equal(image.pixels, np.asarray(stored.convert("RGB")))
    assert image.facts["camera"] == "Acm"


def test_jpeg_xl_that_is_cut_or_too_large():
    pylibjxl = pytest.importorskip("pylibjxl", reason="reads JPEG XL; pip install '.[formats]'")
    content = pylibjxl.encode(np.asarray(texture()))
    for part in (0.3, 0.95):
        with pytest.raises(BrokenImage):
            read(content[: int(len(content) * part)])
    with pytest.raises(TooLarge, match="96 x 64"):
        decode(content, ImageLimits(max_pixels=6000))


def test_the_picture_of_a_jpeg_xl_is_loaded_once():
    pylibjxl = pytest.importorskip("pylibjxl", reason="reads JPEG XL; pip install '.[formats]'")
    image = open_image(pylibjxl.encode(np.asarray(texture())), LIMITS).image
    image.load()
    first = image.getpixel((0, 0))
    image.load()
    assert isinstance(image, Image.Image)
    assert image.getpixel((0, 0)) == first
