"""Read the headers by which a client asks for less than the whole (RFC 9110, 13 and 14)."""

from __future__ import annotations

import re

# What HTTP allows in an entity tag, in Latin-1. A comma is allowed as well, so that a list of tags
# can't be split at commas.
_TAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_TAGS = re.compile(rf"[ \t,]*{_TAG}(?:[ \t]*,[ \t,]*{_TAG})*[ \t,]*")
# A number of more digits is none: no photo has as many bytes, and Python would not read it.
_RANGE = re.compile(r"bytes=[ \t]*([0-9]{0,100})-([0-9]{0,100})[ \t]*", re.IGNORECASE)


def has_tag(if_none_match: str, tag: str) -> bool:
    """Return whether `If-None-Match` names what the client would get.

    Args:
        if_none_match: the header; what is malformed names nothing.
        tag: the entity tag of the answer, without `W/`, which makes no difference here.
    """
    if if_none_match.strip(" \t") == "*":
        return True
    if not _TAGS.fullmatch(if_none_match):
        return False
    return tag in (found.removeprefix("W/") for found in re.findall(_TAG, if_none_match))


class Unsatisfiable(Exception):
    """There is nothing in this range."""


def read_range(header: str, if_range: str | None, tag: str, size: int) -> range | None:
    """Return the bytes that `Range` asks for; None for all of them.

    Several ranges, other units and what is malformed are answered by the whole, as HTTP allows.

    Args:
        if_range: the header `If-Range`: the range is asked for only if this is the tag. There are
            no dates to compare with.
        tag: the entity tag of the whole.
        size: of the whole, bytes.

    Raises:
        Unsatisfiable
    """
    found = _RANGE.fullmatch(header)
    if found is None or (if_range is not None and if_range.strip(" \t") != tag):
        return None
    first, last = (int(digits) if digits else None for digits in found.groups())
    if first is None:
        if last is None:
            return None
        asked = range(max(0, size - last), size)
    elif last is not None and last < first:
        return None
    else:
        asked = range(first, size if last is None else min(last + 1, size))
    if not asked:
        raise Unsatisfiable
    return asked
