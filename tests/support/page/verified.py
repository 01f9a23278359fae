"""Answers in which photos are verified, made up for a query that was cut out of one of them."""

from __future__ import annotations

from collections.abc import Callable
from math import hypot
from typing import Any

from playwright.sync_api import Page, Route

from deployments.records import Match, SearchAnswer

Corners = list[list[float]]
Matches = list[dict[str, Any]]


def quad_of(box: list[float], *, turns: int = 0, mirrored: bool = False) -> Corners:
    """Return where the corners of a query lie that was cut out of a photo.

    Args:
        box: the part of the photo.
        turns: by so many right angles the query was turned, clockwise.
        mirrored: it was mirrored before that.
    """
    x1, y1, x2, y2 = box
    quad = [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]
    if mirrored:
        quad = [quad[1], quad[0], quad[3], quad[2]]
    # What was at the bottom left is at the top left of a query that was turned clockwise.
    return quad[-turns:] + quad[:-turns] if turns else quad


def verify(
    match: dict[str, Any],
    quad: Corners,
    part: list[int],
    *,
    turns: int = 0,
    mirrored: bool = False,
    inliers: int = 40,
) -> dict[str, Any]:
    """Return a match as the verifier would answer it.

    Args:
        match: as it is without verification.
        quad: the place of the part.
        part: the part of the query that was found, in pixels of the whole picture that it is of.
    """
    width = hypot(quad[1][0] - quad[0][0], quad[1][1] - quad[0][1])
    xs, ys = zip(*quad, strict=True)
    bounds = [min(xs), min(ys), max(xs), max(ys)]
    limits = [match["width"], match["height"]] * 2
    box = [round(max(0, min(at, limit))) for at, limit in zip(bounds, limits, strict=True)]

    def area(box: list[float]) -> float:
        return (box[2] - box[0]) * (box[3] - box[1])

    verified = {
        "verified": True,
        "quad": quad,
        "part": part,
        "box": box,
        "mirrored": mirrored,
        # The photo is turned by so much, and then mirrored.
        "rotation": (90 * (-turns if mirrored else turns) + 180) % 360 - 180,
        "scale": width / (part[2] - part[0]),
        "inliers": inliers,
        "coverage": min(1, area(box) / area(bounds)),
    }
    return Match.model_validate(match | verified).model_dump(mode="json")


def answer_of(matches: Matches, found: bool | None, **more: Any) -> dict[str, Any]:
    """Return an answer to a search: verified matches first."""
    ordered = sorted(matches, key=lambda match: not match.get("verified"))
    answer = {"found": found, "matches": ordered, **more}
    return SearchAnswer.model_validate(answer).model_dump(mode="json")


def verify_cup(cup: list[float]) -> Callable[[Matches], dict[str, Any]]:
    """Return what finds a cut-out cup, two thirds as large, mirrored and turned, in coffee.png."""
    width, height = (round((cup[axis + 2] - cup[axis]) * 2 / 3) for axis in (0, 1))
    quad = quad_of(cup, turns=1, mirrored=True)
    return finding("coffee.png", quad, [0, 0, height, width], turns=1, mirrored=True)


def without_verdict(match: dict[str, Any]) -> dict[str, Any]:
    """Return a match as it is answered where nobody looked."""
    nearest = {key: match["chunks"][0][key] for key in ("box", "source", "label")}
    looked = ("verified", "quad", "part", "mirrored", "rotation", "scale", "inliers", "coverage")
    return match | nearest | dict.fromkeys(looked)


def looked_nowhere(matches: Matches) -> dict[str, Any]:
    return answer_of(matches, None)


def found_nowhere(matches: Matches) -> dict[str, Any]:
    return answer_of([match | {"verified": False} for match in matches], False)


def too_plain(matches: Matches) -> dict[str, Any]:
    return answer_of(matches, None, texture="too plain to verify")


def finding(
    filename: str, quad: Corners, part: list[int], **how: Any
) -> Callable[[Matches], dict[str, Any]]:
    """Return what makes an answer of which one photo is verified, see `verify`."""

    def find(matches: Matches) -> dict[str, Any]:
        return answer_of(
            [
                verify(match, quad, part, **how) if match["filename"] == filename else match
                for match in matches
            ],
            True,
        )

    return find


def answering(page: Page, make: Callable[[Matches], dict[str, Any]]) -> None:
    """Let searches of a page be answered by what a function makes of the service's matches."""

    def answer(route: Route) -> None:
        response = route.fetch()
        matches = map(without_verdict, response.json()["matches"])
        by_distance = sorted(matches, key=lambda match: match["distance"])
        route.fulfill(json=make(by_distance))

    page.unroute("**/search?*")
    page.route("**/search?*", answer)
