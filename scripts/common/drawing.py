"""A picture of an answer: the query, and the best photos with their boxes drawn on them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from deployments.records import Box

TILE = 300
MARGIN = 16
CAPTION = 44
BOXES = 5  # of a photo; it has some forty chunks
BEST, OTHER, QUERY = "#e8590c", "#ffc078", "#1971c2"
PAPER, INK = "white", "#212529"


def draw_answer(
    query: Image.Image, matches: list[dict[str, Any]], fetch: Callable[[str], bytes], most: int = 5
) -> Image.Image:
    """Lay the query and its matches out in a row.

    Args:
        query: the picture that was searched.
        matches: as `/search` answers them.
        fetch: returns the original bytes for a match's `url`.
        most: how many matches to draw.
    """
    tiles = [draw_photo(query, [], "query", f"{query.width} x {query.height}", QUERY)]
    for rank, match in enumerate(matches[:most], 1):
        photo = ImageOps.exif_transpose(Image.open(io.BytesIO(fetch(match["url"])))).convert("RGB")
        boxes = [chunk["box"] for chunk in match["chunks"][:BOXES]]
        title = f"{rank}. {match['filename'] or match['id'][:16]}"
        caption = f"distance {match['distance']:.3f}, {describe(match)}"
        tiles.append(draw_photo(photo, boxes, title, caption, BEST))
    sheet = Image.new(
        "RGB",
        (MARGIN + len(tiles) * (TILE + MARGIN), 2 * MARGIN + TILE + CAPTION),
        PAPER,
    )
    for column, tile in enumerate(tiles):
        sheet.paste(tile, (MARGIN + column * (TILE + MARGIN), MARGIN))
    return sheet


def describe(match: dict[str, Any]) -> str:
    """Say what the nearest chunk of a match is, in a word or two."""
    return match["label"] or {"tile": "part", "whole": "whole picture"}[match["source"]]


def draw_photo(
    photo: Image.Image, boxes: Sequence[Box], title: str, caption: str, colour: str
) -> Image.Image:
    """Draw a photo with boxes, the first one strong, and two lines of text below it."""
    tile = Image.new("RGB", (TILE, TILE + CAPTION), PAPER)
    scale = min(TILE / photo.width, TILE / photo.height)
    small = photo.resize((max(1, round(photo.width * scale)), max(1, round(photo.height * scale))))
    draw = ImageDraw.Draw(small)
    # The nearest chunk comes first in the answer; drawn last it lies on top.
    for rank, box in reversed(list(enumerate(boxes))):
        x1, y1, x2, y2 = (side * scale for side in box)
        corners = (x1, y1, max(x1, x2 - 1), max(y1, y2 - 1))
        draw.rectangle(corners, outline=OTHER if rank else colour, width=1 if rank else 4)
    tile.paste(small, (0, TILE - small.height))
    draw = ImageDraw.Draw(tile)
    font = ImageFont.load_default(15)
    draw.text((0, TILE + 4), _fitted(title, font), fill=colour, font=font)
    draw.text((0, TILE + 24), _fitted(caption, font), fill=INK, font=font)
    return tile


def _fitted(text: str, font: ImageFont.FreeTypeFont) -> str:
    if font.getlength(text) <= TILE:
        return text
    while font.getlength(text + "…") > TILE:
        text = text[:-1]
    return text + "…"
