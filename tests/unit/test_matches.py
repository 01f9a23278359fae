"""Copies of a photo are listed under it; other photos are not."""

from __future__ import annotations

import pytest

from deployments.matches import Hit, arrange
from deployments.query import SearchOptions
from deployments.records import Chunk, RankedPhoto, Record, Sighting

WIDTH, HEIGHT = 400, 200


def hit(id: str, *, scale: int = 1, sha256: str | None = None) -> Hit:
    width, height = WIDTH * scale, HEIGHT * scale
    record = Record(
        id=id,
        filename=None,
        media_type="image/png",
        bytes=1,
        sha256=sha256 or id,
        width=width,
        height=height,
        animated=False,
        indexed_at="2026-01-01T00:00:00.000+00:00",
        sequence=1,
        chunks=[Chunk(box=(0, 0, width, height), source="whole")],
    )
    return Hit(RankedPhoto(id, 0.1, [(0, 0.1)]), record)


def sighting(
    *, scale: int = 1, x: int = 100, part: tuple[int, int, int, int] = (0, 0, 100, 50)
) -> Sighting:
    corners = [(x, 50), (x + 200, 50), (x + 200, 150), (x, 150)]
    quad = tuple((float(scale * at), float(scale * down)) for at, down in corners)
    return Sighting(quad, part, False, 0.0, 2.0 * scale, 40, 1.0, 0.9)


@pytest.mark.parametrize(
    ("other", "seen", "are_copies"),
    [
        (hit("b", scale=2), sighting(scale=2), True),
        (hit("b"), sighting(x=101, part=(0, 0, 99, 50)), True),
        (hit("b"), sighting(x=140), False),
        # Of a collage: another picture, at the same place of its photo.
        (hit("b"), sighting(part=(100, 0, 200, 50)), False),
        (hit("b"), None, False),
        (hit("b", sha256="a"), None, True),
    ],
)
def test_copies_show_the_same_part_of_the_query_at_the_same_place(other, seen, are_copies):
    hits, sightings = [hit("a"), other], {"a": sighting(), "b": seen}
    matches = arrange(hits, sightings, SearchOptions(group="copies"))
    ids = [(match.id, [copy.id for copy in match.copies]) for match in matches]
    assert ids == ([("a", ["b"])] if are_copies else [("a", []), ("b", [])])
    # Only where they are asked for.
    assert all(not match.copies for match in arrange(hits, sightings, SearchOptions()))
