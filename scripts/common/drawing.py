"""Show the answer to a search, as lines of text and as a picture."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
from PIL import Image, ImageDraw, ImageFont, ImageOps

from deployments.records import Box

TILE = 300  # side of a photo in a picture, pixels
MARGIN = 16
CAPTION = 44  # height of two lines of text
MOST_BOXES = 5  # of a photo, which has some forty chunks
BEST, OTHER, QUERY = "#e8590c", "#ffc078", "#1971c2"
PAPER, INK = "white", "#212529"


def list_matches(matches: Sequence[dict[str, Any]]) -> str:
    """Lay out matches as lines of text.

    Args:
        matches: as `/search` answers them.
    """
    lines = [f"{'':>3} {'distance':>8}  {'box':<24} {'what':<16} photo"]
    for rank, match in enumerate(matches, 1):
        box = ",".join(map(str, match["box"]))
        photo = match["filename"] or match["id"]
        lines.append(
            f"{rank:>3} {match['distance']:>8.3f}  {box:<24} {describe(match):<16} {photo}"
        )
    return "\n".join(lines)


def draw_answer(url: str, query: Path, matches: Sequence[dict[str, Any]], target: Path) -> None:
    """Write a picture of the query and its best matches.

    Args:
        url: of the service, which has the photos.
        query: file of the query.
        matches: as `/search` answers them.
        target: file to write; its suffix tells the format.
    """
    with Image.open(query) as image:
        picture = ImageOps.exif_transpose(image).convert("RGB")
    draw_matches(picture, matches, lambda path: httpx.get(url + path).content).save(target)


def draw_matches(
    query: Image.Image,
    matches: Sequence[dict[str, Any]],
    fetch: Callable[[str], bytes],
    most: int = 5,
) -> Image.Image:
    """Draw the query and the best matches in a row.

    Args:
        query: what was searched by.
        matches: as `/search` answers them.
        fetch: returns the original bytes for a match's `url`.
        most: most matches to draw.
    """
    tiles = [draw_photo(query, [], "query", f"{query.width} x {query.height}", QUERY)]
    for rank, match in enumerate(matches[:most], 1):
        photo = ImageOps.exif_transpose(Image.open(io.BytesIO(fetch(match["url"])))).convert("RGB")
        boxes = [chunk["box"] for chunk in match["chunks"][:MOST_BOXES]]
        title = f"{rank}. {match['filename'] or match['id'][:16]}"
        caption = f"distance {match['distance']:.3f}, {describe(match)}"
        tiles.append(draw_photo(photo, boxes, title, caption, BEST))
    size = (MARGIN + len(tiles) * (TILE + MARGIN), 2 * MARGIN + TILE + CAPTION)
    sheet = Image.new("RGB", size, PAPER)
    for column, tile in enumerate(tiles):
        sheet.paste(tile, (MARGIN + column * (TILE + MARGIN), MARGIN))
    return sheet


def describe(match: dict[str, Any]) -> str:
    """Return what the nearest chunk of a match is, in a word or two."""
    return match["label"] or {"tile": "part", "whole": "whole picture"}[match["source"]]


def draw_photo(
    photo: Image.Image, boxes: Sequence[Box], title: str, caption: str, colour: str
) -> Image.Image:
    """Draw a photo with boxes and two lines of text below it.

    Args:
        boxes: in pixels of the photo; the first one is drawn in `colour`, with thick lines.
        title: in `colour`.
    """
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


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    if font.getlength(text) <= TILE:
        return text
    while font.getlength(text + "…") > TILE:
        text = text[:-1]
    return text + "…"
