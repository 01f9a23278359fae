"""What photos say of themselves, and what they had better not have said."""

from __future__ import annotations

import struct
import unicodedata
from datetime import datetime
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.ExifTags import GPS, Base

from deployments.decoding.facts import FACTS, MAX_EXIF_BYTES, MAX_TEXT, read_facts
from deployments.decoding.image import decode
from deployments.limits import ImageLimits
from tests.support.photos.exif import SAID, exif_of, of_a_phone, reread
from tests.support.photos.pictures import encode, pixels
from tests.support.running.examples import examples

FORMATS = ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "MPO"]


def said(main=None, details=None, place=None):
    return read_facts(reread(exif_of(main, details, place)))


def place_of(latitude, longitude, north="N", east="E"):
    place = {
        GPS.GPSLatitudeRef: north,
        GPS.GPSLatitude: latitude,
        GPS.GPSLongitudeRef: east,
        GPS.GPSLongitude: longitude,
    }
    return read_facts(exif_of(place=place))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_photo_of_any_format_says_all_of_it(kind, orientation):
    exif = of_a_phone(Orientation=orientation)
    image = decode(encode(pixels("facts"), kind, exif=exif), ImageLimits())
    assert image.facts == SAID
    assert tuple(image.facts) == FACTS


def test_a_photo_without_exif_says_nothing():
    assert decode(encode(pixels("facts"), "JPEG"), ImageLimits()).facts == {}
    assert read_facts(Image.Exif()) == {}


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("2024:05:17 10:12:33", "2024-05-17T10:12:33"),
        ("2024:05:17 10:12:33.456", "2024-05-17T10:12:33"),
        ("2024-05-17T10:12:33", "2024-05-17T10:12:33"),
        ("2024-05-17T10:12:33+05:30", "2024-05-17T10:12:33+05:30"),
        ("2024-05-17T10:12:33Z", "2024-05-17T10:12:33+00:00"),
        ("2024/05/17 10:12:33\0\0", "2024-05-17T10:12:33"),
        ("  2024:05:17 10:12:33  ", "2024-05-17T10:12:33"),
        ("2024:05:17", "2024-05-17"),
        ("2024:05:17   :  :  ", "2024-05-17"),
        ("1890:01:01 00:00:00", "1890-01-01T00:00:00"),
        ("0000:00:00 00:00:00", None),
        ("0001:01:01 00:00:00", None),
        ("    :  :     :  :  ", None),
        ("2024:13:17 10:12:33", None),
        ("2023:02:29 10:12:33", None),
        ("2024:05:17 25:12:33", None),
        ("2024:05-17 10:12:33", None),
        ("17.05.2024 10:12", None),
        ("\u0662\u0660\u0662\u0664:05:17 10:12:33", None),
        ("yesterday", None),
        ("", None),
    ],
)
def test_dates(written, read):
    details = {Base.DateTimeOriginal: written.encode()}
    assert read_facts(exif_of({}, details)).get("date_taken") == read


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("+02:00", "+02:00"),
        ("-0930", "-09:30"),
        ("-00:00", "+00:00"),
        ("Z", "+00:00"),
        ("+14:00", "+14:00"),
        ("+14:30", ""),
        ("+02:60", ""),
        ("02:00", ""),
        ("   :  ", ""),
        ("CEST", ""),
    ],
)
def test_time_zones(written, read):
    details = {Base.DateTimeOriginal: "2024:05:17 10:12:33", Base.OffsetTimeOriginal: written}
    assert said({}, details)["date_taken"] == "2024-05-17T10:12:33" + read


def test_the_best_date_that_makes_sense():
    dates = {
        Base.DateTimeOriginal: "2001:01:01 00:00:00",
        Base.DateTimeDigitized: "2002:02:02 00:00:00",
    }
    offsets = {Base.OffsetTimeOriginal: "+01:00", Base.OffsetTime: "+03:00"}
    main = {Base.DateTime: "2003:03:03 00:00:00"}
    assert said(main, dates | offsets)["date_taken"] == "2001-01-01T00:00:00+01:00"
    dates[Base.DateTimeOriginal] = "0000:00:00 00:00:00"
    assert said(main, dates | offsets)["date_taken"] == "2002-02-02T00:00:00"
    dates[Base.DateTimeDigitized] = "?"
    assert said(main, dates | offsets)["date_taken"] == "2003-03-03T00:00:00+03:00"
    # Some write into the main list what belongs elsewhere.
    assert said({Base.DateTimeOriginal: "2001:01:01 00:00:00"})["date_taken"][:4] == "2001"


@settings(max_examples=examples(100))
@given(st.lists(st.tuples(st.datetimes(datetime(1800, 1, 1)), st.sampled_from(["", "+14:00"]))))
def test_dates_are_ordered_as_text_by_their_clock(moments):
    """Whether or not the time zone is known."""
    texts = []
    for moment, offset in moments:
        details = {
            Base.DateTimeOriginal: moment.strftime("%Y:%m:%d %H:%M:%S"),
            Base.OffsetTimeOriginal: offset,
        }
        texts.append(
            (moment.replace(microsecond=0), read_facts(exif_of({}, details))["date_taken"])
        )
    for one, first in texts:
        assert first >= f"{one:%Y-%m-%d}"
        assert first < f"{one.year}-{one.month + 1:02}"
        assert all((first < second) == (one < two) for two, second in texts if one != two)


@pytest.mark.parametrize(
    ("make", "model", "camera"),
    [
        ("Canon", "Canon EOS 5D", "Canon EOS 5D"),
        ("NIKON CORPORATION", "NIKON D90", "NIKON D90"),
        ("EASTMAN KODAK COMPANY", "KODAK DX6490", "KODAK DX6490"),
        ("Apple", "iPhone 12", "Apple iPhone 12"),
        ("samsung", "SM-G991B", "samsung SM-G991B"),
        ("SONY", "sonydsc", "sonydsc"),
        ("Canon\0\0rest", "  EOS\n5D ", "Canon EOS 5D"),
        ("FUJIFILM", None, "FUJIFILM"),
        (None, "X-T3", "X-T3"),
        ("", "   ", None),
        ("----", "\x01\x02", None),
        ("Ö" * 300, "model", "Ö" * 200),
    ],
)
def test_cameras(make, model, camera):
    main = {Base.Make: make, Base.Model: model}
    exif = exif_of({tag: text for tag, text in main.items() if text is not None})
    assert read_facts(exif).get("camera") == camera


def test_texts_are_read_in_the_encoding_that_they_are_in():
    """The standard says ASCII, cameras write UTF-8, and old ones Latin-1."""
    for written in ("Objektiv für Größen".encode(), "Objektiv für Größen".encode("latin-1")):
        # Pillow would write a text as ASCII.
        assert read_facts(with_lens(written))["lens"] == "Objektiv für Größen"
    decomposed = unicodedata.normalize("NFD", "für").encode()
    assert read_facts(with_lens(decomposed))["lens"] == "für"
    assert "lens" not in read_facts(with_lens(b"\xff\xfe\x80\x81"[2:]))


def with_lens(text: bytes) -> Image.Exif:
    """EXIF with a lens as ASCII, whatever its bytes are."""
    text = text.ljust(5, b" ")
    main = struct.pack("<HHHLLL", 1, 0x8769, 4, 1, 26, 0)
    details = struct.pack("<HHHLLL", 1, Base.LensModel, 2, len(text), 44, 0)
    exif = Image.Exif()
    exif.load(b"Exif\0\0II*\0\x08\0\0\0" + main + details + text)
    return exif


@pytest.mark.parametrize(
    ("latitude", "longitude", "references", "place"),
    [
        ((48, 8, 14), (11, 34, 31.8), "NE", (48.137222, 11.5755)),
        ((48, 8, 14), (11, 34, 31.8), "SW", (-48.137222, -11.5755)),
        ((48, Fraction(825, 100)), (11.5,), "NE", (48.1375, 11.5)),
        ((90, 0, 0), (180, 0, 0), "SW", (-90, -180)),
        ((0, 0, 0), (11, 0, 0), "SE", (0, 11)),
        ((48, 0, 0), (0, 0, 0.0001), "NW", (48, 0)),
        ((0, 0, 0), (0, 0, 0), "NE", None),  # what cameras write that don't know
        ((90, 0, 1), (11, 0, 0), "NE", None),
        ((48, 0, 0), (180, 1, 0), "NE", None),
        ((48, 61, 0), (11, 0, 0), "NE", None),
        ((48, 0, 0), (11, 0, 0), "EN", None),
        ((48, 0, 0), (11, 0, 0), "  ", None),
        ((48, 0, 0, 0), (11, 0, 0), "NE", None),
        ("48.137154", (11, 0, 0), "NE", None),
        ((48, 0, 0), "11,34.5E", "NE", None),
    ],
)
def test_places(latitude, longitude, references, place):
    facts = place_of(latitude, longitude, *references)
    assert (facts.get("latitude"), facts.get("longitude")) == (place or (None, None))
    if place:
        assert "-0.0" not in map(str, facts.values())


def test_a_zero_below_the_line():
    nothing = struct.pack("<LLLLLL", 48, 0, 0, 0, 0, 0)
    details = struct.pack("<HHHL4s", 4, 1, 2, 2, b"N\0\0\0") + b"".join(
        (
            struct.pack("<HHLL", 2, 5, 3, 80),
            struct.pack("<HHL4s", 3, 2, 2, b"E\0\0\0"),
            struct.pack("<HHLL", 4, 5, 3, 80),
            bytes(4),
        )
    )
    main = struct.pack("<HHHLLL", 1, 0x8825, 4, 1, 26, 0)
    exif = Image.Exif()
    exif.load((b"II*\0\x08\0\0\0" + main + details).ljust(80, b"\0") + nothing)
    assert len(exif.get_ifd(0x8825)[2]) == 3
    assert read_facts(exif) == {}


def test_exif_that_is_built_to_hurt_is_not_read():
    comment = {Base.UserComment: bytes(MAX_EXIF_BYTES)}
    exif = exif_of({Base.Make: "Canon"}, comment)
    assert decode(encode(pixels("large"), "PNG", exif=exif), ImageLimits()).facts == {}
    exif = exif_of({Base.Make: "Canon"}, {Base.UserComment: bytes(MAX_EXIF_BYTES - 1000)})
    image = decode(encode(pixels("large"), "PNG", exif=exif), ImageLimits())
    assert image.facts == {"camera": "Canon"}


def assert_fit(facts):
    assert set(facts) <= set(FACTS)
    for name, fact in facts.items():
        if name in ("latitude", "longitude"):
            assert type(fact) is float
            assert -180 <= fact <= 180
            assert fact == round(fact, 6)
        else:
            assert type(fact) is str
            assert fact == fact.strip()
            assert 0 < len(fact) <= MAX_TEXT
            assert fact.isprintable()
            assert unicodedata.is_normalized("NFC", fact)
    assert ("latitude" in facts) == ("longitude" in facts)


TAGS = [
    *(Base.Make, Base.Model, Base.DateTime, Base.DateTimeOriginal, Base.OffsetTimeOriginal),
    *(Base.LensModel, 0x8769, 0x8825, 1, 2, 3, 4),
]
ENTRIES = st.lists(
    st.builds(
        lambda tag, kind, count, value: struct.pack("<HHL", tag, kind, count) + value,
        st.sampled_from(TAGS),
        st.integers(0, 13),
        st.integers(0, 5) | st.integers(0, 2**32 - 1),
        st.integers(0, 300).map(lambda offset: struct.pack("<L", offset))
        | st.binary(min_size=4, max_size=4)
        | st.sampled_from([b"N\0\0\0", b"W\0\0\0"]),
    ),
    max_size=12,
)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=examples(300))
@given(ENTRIES, ENTRIES, st.binary(max_size=300))
def test_no_bytes_are_too_odd(main, details, rest):
    data = b"II*\0\x08\0\0\0"
    for entries in (main, details):
        data += struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    exif = Image.Exif()
    exif.load(b"Exif\0\0" + data + rest)
    assert_fit(read_facts(exif))


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=examples(200))
@given(st.binary(max_size=500), st.data())
def test_no_change_to_a_phones_exif_is_too_odd(noise, data):
    """Bytes of genuine EXIF are written over, wherever."""
    whole = bytearray(of_a_phone().tobytes())
    for byte in noise[:20]:
        whole[data.draw(st.integers(14, len(whole) - 1))] = byte
    image = decode(encode(pixels("odd"), "PNG", exif=bytes(whole)), ImageLimits())
    assert_fit(image.facts)


@settings(max_examples=examples(200))
@given(
    st.dictionaries(
        st.sampled_from(TAGS),
        st.from_type(object)
        | st.text()
        | st.tuples(st.floats() | st.integers() | st.none(), st.floats()),
    )
)
def test_no_value_is_too_odd(values):
    """Whatever Pillow may make of a tag."""
    exif = Image.Exif()
    for tag, value in values.items():
        exif[tag] = value
    assert_fit(read_facts(exif))
    inside = {tag: value for tag, value in values.items() if tag not in (0x8769, 0x8825)}
    assert_fit(read_facts(exif_of(inside, inside, inside)))
