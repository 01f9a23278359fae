"""What a photo says of itself: when, with what and where it was taken.

All of it comes from EXIF, which anybody may have written. A fact that is missing or makes no sense
is left out, and nothing here raises an exception.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from math import isfinite
from numbers import Real

from PIL import Image
from PIL.ExifTags import GPS, IFD, Base

FACTS = ("date_taken", "camera", "lens", "latitude", "longitude")
LOCATION = frozenset({"latitude", "longitude"})

MAX_TEXT = 200  # characters
# Cameras write a few thousand bytes. Pillow takes 0.3 s to read a megabyte that is built to hurt.
MAX_EXIF_BYTES = 2**20

# What dates a photo, best first, and the tag that says in which time zone.
_DATES = (
    (Base.DateTimeOriginal, Base.OffsetTimeOriginal),
    (Base.DateTimeDigitized, Base.OffsetTimeDigitized),
    (Base.DateTime, Base.OffsetTime),
)
# Where no photo can be from: software that knows no date writes the year 1.
_FIRST_YEAR = 1800

# The standard has `2024:05:17 10:12:33`, and spaces for what is unknown. Others are common.
_DATE = re.compile(
    r"(\d{4})([:/.-])(\d\d)\2(\d\d)"
    r"(?:[T ](\d\d):(\d\d):(\d\d)(?:[.,]\d*)? ?(Z|[+-]\d\d:?\d\d)?|[T :]*)",
    re.ASCII,
)
_OFFSET = re.compile(r"([+-])(\d\d):?(\d\d)", re.ASCII)
_MAX_OFFSET_HOURS = 14


def read_facts(exif: Image.Exif) -> dict[str, str | float]:
    """Return what EXIF says of a photo, as far as it makes sense: some of `FACTS`.

    - `date_taken`: ISO 8601 by the camera's clock, `2024-05-17T10:12:33`, with `+02:00` behind it
      if the camera wrote its time zone, or `2024-05-17` if it wrote no time. The clock comes first
      and its places are fixed, so ranges work on it as text.
    - `camera`: make and model. `lens`: its model.
    - `latitude`, `longitude`: degrees, north and east positive, rounded to 6 places. Always both.
      0, 0 is left out: it is what cameras write that don't know where they are.

    Texts have at most 200 printable characters, in Unicode's form NFC.
    """
    details, place = _directory(exif, IFD.Exif), _directory(exif, IFD.GPSInfo)
    facts: dict[str, str | float] = {}
    if date := _date(exif, details):
        facts["date_taken"] = date
    if camera := _camera(_text(_value(exif, Base.Make)), _text(_value(exif, Base.Model))):
        facts["camera"] = camera
    if lens := _text(_either(exif, details, Base.LensModel)):
        facts["lens"] = lens
    latitude = _degrees(place, GPS.GPSLatitude, GPS.GPSLatitudeRef, "NS", 90)
    longitude = _degrees(place, GPS.GPSLongitude, GPS.GPSLongitudeRef, "EW", 180)
    if latitude is not None and longitude is not None and (latitude or longitude):
        facts |= {"latitude": latitude, "longitude": longitude}
    return facts


def _directory(exif: Image.Exif, number: int) -> Mapping[int, object]:
    try:
        return exif.get_ifd(number)
    except Exception:  # with hostile bytes, Pillow may raise anything
        return {}


def _value(directory: Mapping[int, object] | Image.Exif, tag: int) -> object:
    try:
        return directory.get(tag)
    except Exception:  # Pillow decodes a value when it is asked for it
        return None


def _either(exif: Image.Exif, details: Mapping[int, object], tag: int) -> object:
    """Return the value of a tag that belongs into `details`; some write it into the main list."""
    value = _value(details, tag)
    return _value(exif, tag) if value is None else value


def _text(value: object) -> str | None:
    """Return a text that people can read; None if there is none in it."""
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if not isinstance(value, str):
        return None
    text = value.partition("\0")[0][: 4 * MAX_TEXT]
    # EXIF is ASCII by the standard, and Pillow reads it as Latin-1. What is in it is often UTF-8.
    with suppress(UnicodeError):
        text = text.encode("latin-1").decode()
    text = _printable(unicodedata.normalize("NFC", _printable(text)))[:MAX_TEXT].rstrip()
    return text if any(map(str.isalnum, text)) else None


def _printable(text: str) -> str:
    """Replace what can't be printed by spaces, and each run of spaces by one."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def _camera(make: str | None, model: str | None) -> str | None:
    """Join make and model. Most models begin with the make, or with a word of it."""
    if make is None or model is None:
        return make or model
    makes, whole = make.casefold().split(), model.casefold()
    if whole.startswith(make.casefold()) or whole.split()[0] in makes:
        return model
    return f"{make} {model}"[:MAX_TEXT].rstrip()


def _date(exif: Image.Exif, details: Mapping[int, object]) -> str | None:
    for tag, offset_tag in _DATES:
        text = _text(_either(exif, details, tag))
        parts = text and _DATE.fullmatch(text)
        if not parts:
            continue
        year, _, month, day, hour, minute, second, zone = parts.groups()
        day_parts = int(year), int(month), int(day)
        try:
            date = datetime(*day_parts, int(hour or 0), int(minute or 0), int(second or 0))
        except ValueError:  # 0000:00:00 is common, and means that nobody knows
            continue
        if date.year < _FIRST_YEAR:
            continue
        if hour is None:
            return date.date().isoformat()
        return date.isoformat() + _offset(zone or _text(_either(exif, details, offset_tag)))
    return None


def _offset(text: str | None) -> str:
    """Return a time zone as `+02:00`; nothing if it makes no sense."""
    if text == "Z":
        return "+00:00"
    parts = text and _OFFSET.fullmatch(text)
    if not parts:
        return ""
    sign, hours, minutes = parts.groups()
    if int(minutes) > 59 or int(hours) * 60 + int(minutes) > _MAX_OFFSET_HOURS * 60:
        return ""
    return f"{sign if int(hours) or int(minutes) else '+'}{hours}:{minutes}"


def _degrees(
    place: Mapping[int, object], tag: int, reference_tag: int, directions: str, most: float
) -> float | None:
    """Return a coordinate, given as degrees, minutes and seconds, or as the first of these."""
    reference = _text(_value(place, reference_tag))
    direction = reference[0].upper() if reference else ""
    value = _value(place, tag)
    numbers = list(_numbers(value if isinstance(value, tuple) else (value,)))
    if not direction or direction not in directions or not 1 <= len(numbers) <= 3:
        return None
    if not all(isfinite(number) and number >= 0 for number in numbers):
        return None
    if any(number > 60 for number in numbers[1:]):
        return None
    degrees = sum(number / 60**power for power, number in enumerate(numbers))
    if degrees > most:
        return None
    rounded = round(degrees, 6)
    return -rounded if rounded and direction == directions[1] else rounded


def _numbers(values: tuple[object, ...]) -> Iterator[float]:
    """Yield values as floats; what is no number is not a number."""
    for value in values[:4]:
        try:
            yield float(value) if isinstance(value, Real) else float("nan")
        except (ArithmeticError, ValueError):
            yield float("nan")
