"""The report of scripts/evaluate.py: tables, answers for JSON, and a picture of the misses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from common.drawing import CAPTION, MARGIN, PAPER, QUERY, TILE, draw_photo
from common.tables import Columns, cells, markdown, titles
from PIL import Image, ImageDraw

from deployments.records import Quad
from evaluation.figures import GROUPS, OVERLAPS, Found, Judged, Outcome
from evaluation.geometry import corners
from evaluation.queries import Photo, Place, open_picture, read_photo

NAMES = ["encoder", "segmenter"]
MOST_MISSES = 24
RIGHT, WRONG = "#2f9e44", "#e03131"

FOUND = {
    "queries": ("number", "{}"),
    "recall@1": ("recall@1", "{:.3f}"),
    "recall@5": ("@5", "{:.3f}"),
    "recall@10": ("@10", "{:.3f}"),
    "parts": ("of its photos", "{:.3f}"),
    "box_iou": ("box IoU", "{:.3f}"),
    "covered": ("covered", "{:.3f}"),
    "recall@1_covered": ("recall@1 of the covered", "{:.3f}"),
    "verified": ("verified", "{:.3f}"),
    "wrongly_verified": ("wrongly verified", "{}"),
    "ms_p50": ("p50, ms", "{:.0f}"),
    "ms_p95": ("p95, ms", "{:.0f}"),
}
PLACED = {
    "box_iou": ("box IoU", "{:.3f}"),
    **{f"box_iou>{least}": (f"IoU > {least}", "{:.3f}") for least in OVERLAPS},
    "corner_error": ("corner error, pixels", "{:.1f}"),
    "corner_share": ("of the diagonal", "{:.3f}"),
    "pose": ("turned and mirrored as it is", "{:.3f}"),
}
COSTS = {
    "dimension": ("dimension", "{}"),
    "chunks_per_photo": ("chunks/photo", "{:.1f}"),
    "index_bytes_per_photo": ("index, B/photo", "{:,.0f}"),
    "photos_per_second": ("photos/s", "{:.1f}"),
}
# Speed depends on the machine and its load: in documents it stands with the benchmarks.
LASTING_COSTS = {key: column for key, column in COSTS.items() if key != "photos_per_second"}


def table(rows: Sequence[dict[str, Any]], costs: Columns = COSTS) -> str:
    """Lay the figures of all rows out as Markdown tables: what was found, where, and costs.

    Columns that would be empty or the same in each line are left out, and the places where nothing
    was verified.
    """
    several = len(rows) > 1
    lines = [
        ([*(_names(row) if several else []), group], row[group])
        for group in GROUPS
        for row in rows
        if group in row
    ]
    placed = [line for line in lines if line[1]["corner_error"] is not None]
    head = [*(NAMES if several else []), "queries"]
    tables = [_table(head, lines, FOUND)]
    if placed:
        tables.append(_table(head, placed, PLACED))
    return "\n\n".join([*tables, _table(NAMES, [(_names(row), row) for row in rows], costs)])


def _names(row: Mapping[str, Any]) -> list[str]:
    return [row[name] for name in NAMES]


def _table(
    head: Sequence[str], lines: Sequence[tuple[list[str], dict[str, Any]]], columns: Columns
) -> str:
    """Lay out names and figures, without the columns that are empty in every line."""
    used = {
        key: column
        for key, column in columns.items()
        if any(figures[key] is not None for _, figures in lines)
    }
    rows = [[*names, *cells(figures, used)] for names, figures in lines]
    return markdown([*head, *titles(used)], rows)


def list_answers(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """Return each query, its answer and what that is worth, for JSON."""
    return [
        {
            "kind": query.kind,
            "name": query.name,
            "places": [asdict(place) for place in query.places],
            **asdict(outcome),
            "found": [_without_none(asdict(found)) for found in answer.found],
        }
        for query, answer, outcome in judged
    ]


def _without_none(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


def draw_misses(missed: Sequence[Judged], photos: Mapping[str, Photo]) -> Image.Image:
    """Draw misses, two in a line: the query, the right photo, and what was answered.

    The place of a query is drawn as a quad, or as a box where only that is known; both the true and
    the answered one where that is of the same photo.

    Args:
        missed: of more than `MOST_MISSES` an even selection is drawn.
        photos: by their ids; an answered photo that isn't among them is not drawn.
    """
    places = np.linspace(0, len(missed) - 1, min(len(missed), MOST_MISSES)).astype(int)
    strips = [_draw_miss(missed[place], photos) for place in places]
    width, height = 3 * (TILE + MARGIN), TILE + CAPTION + MARGIN
    lines = max(1, (len(strips) + 1) // 2)
    sheet = Image.new("RGB", (2 * (width + MARGIN), lines * height + MARGIN), PAPER)
    for number, strip in enumerate(strips):
        sheet.paste(strip, (MARGIN + number % 2 * (width + MARGIN), MARGIN + number // 2 * height))
    return sheet


def _draw_miss(miss: Judged, photos: Mapping[str, Photo]) -> Image.Image:
    query, answer, outcome = miss
    kind = f"{query.kind}{', turned' if query.turned else ''}"
    tiles = [draw_photo(open_picture(query.data), [], "query", kind, QUERY)]
    answered = [found.photo for found in answer.found]
    # Of several right photos the one that came first, otherwise the one that the query is named by.
    right = min(query.places, key=lambda place: _turn(place.photo, answered), default=None)
    if right:
        place = f"place {outcome.rank}" if outcome.rank else f"not among {len(answer.found)}"
        picture = with_quad(read_photo(photos[right.photo]), right.quad, RIGHT)
        tiles.append(draw_photo(picture, [], right.name, f"the right photo: {place}", RIGHT))
    first = answer.found[0] if answer.found else None
    if first and first.photo in photos:
        photo = photos[first.photo]
        picture = with_answer(read_photo(photo), first, query.places)
        tiles.append(draw_photo(picture, [], photo.name, describe(first, outcome), WRONG))
    strip = Image.new("RGB", (3 * (TILE + MARGIN) - MARGIN, TILE + CAPTION), PAPER)
    for column, tile in enumerate(tiles):
        strip.paste(tile, (column * (TILE + MARGIN), 0))
    return strip


def _turn(photo: str, answered: Sequence[str]) -> int:
    return answered.index(photo) if photo in answered else len(answered)


def describe(first: Found, outcome: Outcome) -> str:
    """Return what is known of the photo that came first, in a few words."""
    words = ["came first"]
    if first.verified is not None:
        words.append(f"verified, {first.inliers} inliers" if first.verified else "not verified")
    if outcome.rank == 1 and outcome.box_iou is not None:
        words.append(f"IoU {outcome.box_iou:.2f}")
    return ", ".join(words)


def with_answer(photo: Image.Image, found: Found, places: Sequence[Place]) -> Image.Image:
    """Draw the answered place into a photo, over the true one if it is in that photo."""
    for place in places:
        if place.photo == found.photo:
            photo = with_quad(photo, place.quad, RIGHT)
    x1, y1, x2, y2 = found.box
    return with_quad(photo, found.quad or corners(x2 - x1, y2 - y1, x1, y1), WRONG)


def with_quad(photo: Image.Image, quad: Quad, colour: str) -> Image.Image:
    """Return a photo with a polygon, and a dot at the corner that is the query's top left one."""
    drawn = photo.copy()
    draw = ImageDraw.Draw(drawn)
    width = max(1, round(4 * max(photo.size) / TILE))
    draw.polygon(quad, outline=colour, width=width)
    draw.circle(quad[0], 2 * width, fill=colour)
    return drawn
