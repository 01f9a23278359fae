"""JPEG: also with further pictures behind the photo, as cameras and phones write them (MPO)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

from deployments.decoding.containers.found import MAX_METADATA, Found, cut, xmp_orientation
from deployments.errors import BrokenImage

START: Final = b"\xff\xd8\xff"
END: Final = b"\xff\xd9"
FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
PROGRESSIVE: Final = {0xC2, 0xC6, 0xCA, 0xCE}
LOSSLESS: Final = {0xC3, 0xC7, 0xCB, 0xCF}
SCAN: Final = 0xDA
EXIF: Final = b"Exif\0\0"
XMP: Final = b"http://ns.adobe.com/xap/1.0/\0"
ICC: Final = b"ICC_PROFILE\0"
MAX_SEGMENTS: Final = 100_000
MAX_TRIES: Final = 64  # of finding a picture behind the photo


@dataclass(slots=True)
class Head:
    """What stands before the pixels of a picture. `scan` is where they start."""

    kept: list[bytes] = field(default_factory=lambda: [START[:2]])
    scan: int = 0
    frame: int = 0
    width: int = 0
    height: int = 0
    components: tuple[int, ...] = ()
    in_scans: bool = False
    exif: bytes = b""
    xmp: bytes = b""
    profile: dict[int, bytes] = field(default_factory=dict)
    profile_parts: int = 0


def find(data: bytes) -> Found:
    """Find the largest picture, the first of equals, and count the others."""
    main = _head(data, 0)
    others, tries, place = 0, 0, _end(data, main)
    while place >= 0 and tries < MAX_TRIES:
        place, tries = data.find(START, place), tries + 1
        if place < 0:
            break
        try:
            head = _head(data, place)
        except BrokenImage:
            place += 1
            continue
        others += 1
        if head.width * head.height > main.width * main.height:
            head.exif = head.exif or main.exif
            main = head
        place = _end(data, head)
    profile = b"".join(main.profile[number] for number in sorted(main.profile))
    if main.profile_parts != len(main.profile) or len(profile) > MAX_METADATA:
        profile = b""
    return Found(
        b"".join([*main.kept, memoryview(data)[main.scan :]]),
        main.width,
        main.height,
        # The decoder keeps the coefficients, two bytes each, if they come in several scans.
        samples=2 * len(main.components) if main.in_scans else 0,
        exif=main.exif,
        orientation=xmp_orientation(main.xmp),
        profile=profile,
        skipped=others,
        ended=_end(data, main) >= 0,
    )


def _head(data: bytes, place: int) -> Head:
    head, place = Head(), place + 2
    for _ in range(MAX_SEGMENTS):
        place = data.find(b"\xff", place)
        while place >= 0 and data[place + 1 : place + 2] == b"\xff":
            place += 1
        if place < 0 or place + 4 > len(data):
            break
        marker = data[place + 1]
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD7:
            place += 2
            continue
        if marker in (0xD8, 0xD9):
            break
        (length,) = struct.unpack_from(">H", data, place + 2)
        body = data[place + 4 : place + 2 + length]
        if length < 2 or len(body) < length - 2:
            break
        if marker == SCAN:
            if not head.frame or not body:
                break
            head.scan = place
            head.in_scans = head.frame in PROGRESSIVE or body[0] < len(head.components)
            return head
        if 0xE0 <= marker <= 0xFE and marker != 0xF8:
            _note(head, marker, body)
        if marker in FRAMES and not head.frame:
            if len(body) < 6 or len(body) < 6 + 3 * body[5]:
                break
            head.frame = marker
            head.height, head.width = struct.unpack_from(">HH", body, 1)
            head.components = tuple(body[6 : 6 + 3 * body[5] : 3])
        if not 0xE0 <= marker <= 0xFE or _matters(marker, body):
            head.kept.append(data[place : place + 2 + length])
        place += 2 + length
    raise cut("the JPEG has no pixels, or is cut before them")


def _matters(marker: int, body: bytes) -> bool:
    """Return whether the decoder needs an application's segment to know the colours."""
    return (marker == 0xE0 and body.startswith(b"JFIF\0") and len(body) >= 14) or (
        marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12
    )


def _note(head: Head, marker: int, body: bytes) -> None:
    if marker == 0xE1 and body.startswith(EXIF):
        head.exif = head.exif or body[len(EXIF) :]
    elif marker == 0xE1 and body.startswith(XMP):
        head.xmp = head.xmp or body
    elif marker == 0xE2 and body.startswith(ICC) and len(body) > 14:
        head.profile.setdefault(body[12], body[14:])
        head.profile_parts = body[13]


def _end(data: bytes, head: Head) -> int:
    """Return where the picture ends; -1 if it has no end marker."""
    place = data.find(END, head.scan)
    return place + 2 if place >= 0 else -1


def is_lossless(data: bytes) -> bool:
    """Return whether a JPEG is of the lossless kind, which cameras use for a sensor's values."""
    return _head(data, 0).frame in LOSSLESS


def has_all_scans(data: bytes) -> bool:
    """Return whether each coefficient of a JPEG was sent to its last bit.

    Without its end marker, a file that is cut between two scans looks whole.
    """
    head = _head(data, 0)
    progressive = head.frame in PROGRESSIVE
    missing = {(part, n) for part in head.components for n in range(64 if progressive else 1)}
    place = head.scan
    while place >= 0:
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        body = data[place + 4 : place + 2 + length]
        if len(body) < 4 or len(body) < 4 + 2 * body[0]:
            return False
        first, last, bits = body[1 + 2 * body[0] : 4 + 2 * body[0]]
        if not progressive:
            first, last, bits = 0, 0, 0
        if bits & 15 == 0:
            parts = body[1 : 1 + 2 * body[0] : 2]
            missing -= {(part, n) for part in parts for n in range(first, last + 1)}
        place = data.find(bytes((0xFF, SCAN)), place + 2 + length)
    return not missing
