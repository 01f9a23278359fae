"""The answer to a search, as lines of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

WHOLE = 0.95  # from this share on it counts as all of the query
TURNED = 5  # degrees; less is not worth a word
LARGER = 1.25  # and a scale within this factor isn't, either

Size = tuple[int, int]  # width and height, pixels


def list_answer(answer: dict[str, Any], among: str, size: Size | None = None) -> str:
    """Lay out an answer as lines of text: what was found, and what looks alike.

    Args:
        answer: as `/search` answers it.
        among: what was searched, for example `628 photos`.
        size: of the query, if it is known.
    """
    found = [match for match in answer["matches"] if match["verified"]]
    others = [match for match in answer["matches"] if not match["verified"]]
    text = ""
    if found:
        text = f"Found in {count(count_found(answer), 'photo')}:\n{list_found(found, size)}\n"
    elif answer["texture"]:
        text = f"The picture is {answer['texture']}. "
    elif answer["found"] is False:
        text = f"Not found among {among}. "
    if others:
        text += "These look alike:\n" if text else ""
        text += list_matches(others, 1 + len(found))
    return text.rstrip() or "No photo matches."


def count_found(answer: dict[str, Any]) -> int:
    """Return in how many photos of an answer the query was found, copies among them."""
    return sum(1 + len(match["copies"]) for match in answer["matches"] if match["verified"])


def list_found(matches: Sequence[dict[str, Any]], size: Size | None = None) -> str:
    """Lay out matches that were verified as lines of text; copies stand below their match.

    Args:
        matches: as `/search` answers them.
        size: of the query, if it is known.
    """
    lines = [f"{'':>3} {'agreeing':>8}  {'corners':<31} {'noticed':<34} photo"]
    for rank, match in enumerate(matches, 1):
        corners = " ".join(f"{x:.0f},{y:.0f}" for x, y in match["quad"])
        noticed = ", ".join(notice(match, size))
        lines.append(f"{rank:>3} {match['inliers']:>8}  {corners:<31} {noticed:<34} {_name(match)}")
        lines += [f"{'':>3} {'':>8}  {'':<31} {'a copy':<34} {_name(c)}" for c in match["copies"]]
    return "\n".join(lines)


def list_matches(matches: Sequence[dict[str, Any]], first: int = 1) -> str:
    """Lay out matches that were not verified as lines of text.

    Args:
        matches: as `/search` answers them.
        first: rank of the first one.
    """
    lines = [f"{'':>3} {'distance':>8}  {'box':<24} {'what':<16} photo"]
    for rank, match in enumerate(matches, first):
        box = ",".join(map(str, match["box"]))
        lines.append(
            f"{rank:>3} {match['distance']:>8.3f}  {box:<24} {describe(match):<16} {_name(match)}"
        )
        lines += [f"{'':>3} {'':>8}  {'':<24} {'a copy':<16} {_name(c)}" for c in match["copies"]]
    return "\n".join(lines)


def _name(match: dict[str, Any]) -> str:
    return match["filename"] or match["id"]


def notice(match: dict[str, Any], size: Size | None = None) -> list[str]:
    """Return what was noticed about a match that was verified, in words: at least one.

    Args:
        match: as `/search` answers it.
        size: of the query, if it is known.
    """
    words = []
    share, scale = share_of(match, size), match["scale"]
    if share < WHOLE:
        words.append("half of it" if abs(share - 0.5) < 0.05 else f"{max(share, 0.01):.0%} of it")
    if match["mirrored"]:
        words.append("mirrored")
    if abs(match["rotation"]) > TURNED:
        words.append(f"turned by {degrees(match['rotation'])}°")
    if scale >= LARGER:
        words.append(f"{factor(scale)} x larger here")
    elif scale <= 1 / LARGER:
        words.append(f"{factor(1 / scale)} x smaller here")
    return words or ["all of it"]


def share_of(match: dict[str, Any], size: Size | None) -> float:
    """Return the share of the query that is in the photo, 0 to 1.

    Args:
        match: as `/search` answers it; it was verified.
        size: of the query; None if it is not known: then of the part that was found.
    """
    if size is None:
        return match["coverage"]
    x1, y1, x2, y2 = match["part"]
    return match["coverage"] * min(1, (x2 - x1) * (y2 - y1) / (size[0] * size[1]))


def degrees(rotation: float) -> int:
    """Return how much something is turned: a right angle where it is nearly one."""
    turned = abs(rotation)
    right = 90 * round(turned / 90)
    return right if abs(turned - right) <= 2 else round(turned)


def factor(scale: float) -> str:
    """Return a scale with two digits or more."""
    return f"{scale:.2g}" if scale < 10 else f"{scale:.0f}"


def count(number: int, noun: str) -> str:
    """Return a number with its noun: `1 photo`, `1,234 photos`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def describe(match: dict[str, Any]) -> str:
    """Return what the nearest chunk of a match is, in a word or two."""
    return match["label"] or {"tile": "part", "whole": "whole picture"}[match["source"]]
