"""EXIF as cameras write it, and as they should not."""

from __future__ import annotations

from fractions import Fraction

from PIL import Image
from PIL.ExifTags import GPS, IFD, Base

# What a phone writes, and what is to be read of it.
SAID = {
    "date_taken": "2024-05-17T10:12:33+02:00",
    "camera": "Canon EOS R5",
    "lens": "RF 50mm F1.2 L USM",
    "latitude": 48.137222,
    "longitude": -11.5755,
}


def exif_of(
    main: dict | None = None, details: dict | None = None, place: dict | None = None
) -> Image.Exif:
    """Return EXIF with these tags."""
    exif = Image.Exif()
    exif.update(main or {})
    if details:
        exif.get_ifd(IFD.Exif).update(details)
    if place:
        exif.get_ifd(IFD.GPSInfo).update(place)
    return exif


def reread(exif: Image.Exif) -> Image.Exif:
    """Return EXIF as it is read from a file that was written with it."""
    read = Image.Exif()
    read.load(exif.tobytes())
    return read


def of_a_phone(**others: object) -> Image.Exif:
    """Return EXIF that says `SAID`, with other values of some tags."""
    main = {Base.Make: "Canon", Base.Model: "Canon EOS R5", Base.DateTime: "2025:01:01 00:00:00"}
    details = {
        Base.DateTimeOriginal: "2024:05:17 10:12:33",
        Base.SubsecTimeOriginal: "123",
        Base.OffsetTimeOriginal: "+02:00",
        Base.LensModel: "RF 50mm F1.2 L USM",
    }
    place = {
        GPS.GPSLatitudeRef: "N",
        GPS.GPSLatitude: (48, 8, Fraction(14)),
        GPS.GPSLongitudeRef: "W",
        GPS.GPSLongitude: (11, 34, Fraction(318, 10)),
    }
    for name, value in others.items():
        target = details if Base[name] in details else main
        target[Base[name]] = value
    # Pillow writes the EXIF of a TIFF wholly only if it has read it.
    return reread(exif_of(main, details, place))
