"""The answer to a search, as a picture."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from common.answers import count, count_found, describe, notice
from common.client import call
from deployments.records import Box, Quad

TILE = 300  # side of a photo in a picture, pixels
MARGIN = 16
CAPTION = 44  # height of two lines of text
MOST_BOXES = 5  # of a photo, which has some twenty chunks
LINE = 4  # thickness, pixels
BEST, OTHER, QUERY = "#e8590c", "#ffc078", "#1971c2"
PAPER, INK, QUIET = "white", "#212529", "#868e96"


def draw_answer(url: str, query: Path, answer: dict[str, Any], target: Path) -> None:
    """Write a picture of the query and its best matches.

    Args:
        url: of the service, which has the photos.
        query: file of the query.
        answer: as `/search` answers it.
        target: file to write; its suffix tells the format.

    Raises:
        RequestFailed: a photo can't be fetched.
    """
    with Image.open(query) as image:
        picture = ImageOps.exif_transpose(image).convert("RGB")
    draw_matches(picture, answer, lambda path: call(url, "GET", path).content).save(target)


def draw_matches(
    query: Image.Image,
    answer: dict[str, Any],
    fetch: Callable[[str], bytes],
    most: int = 5,
) -> Image.Image:
    """Draw the query and the best matches in a row.

    Args:
        query: what was searched by.
        answer: as `/search` answers it.
        fetch: returns the original bytes for a match's `url`.
        most: most matches to draw.
    """
    matches = answer["matches"]
    title = {
        True: f"query: found in {count(count_found(answer), 'photo')}",
        False: "query: not found",
        None: "query",
    }[answer["found"]]
    tiles = [draw_photo(query, [], title, f"{query.width} x {query.height}", QUERY)]
    for rank, match in enumerate(matches[:most], 1):
        photo = ImageOps.exif_transpose(Image.open(io.BytesIO(fetch(match["url"])))).convert("RGB")
        title = f"{rank}. {match['filename'] or match['id'][:16]}"
        if match["verified"]:
            caption = f"found: {', '.join(notice(match, query.size))}"
            tiles.append(draw_photo(photo, [], title, caption, BEST, match["quad"]))
            continue
        boxes = [chunk["box"] for chunk in match["chunks"][:MOST_BOXES]]
        caption = f"distance {match['distance']:.3f}, {describe(match)}"
        # Where photos were looked at, this one is not it.
        colour = BEST if answer["found"] is None else QUIET
        tiles.append(draw_photo(photo, boxes, title, caption, colour))
    size = (MARGIN + len(tiles) * (TILE + MARGIN), 2 * MARGIN + TILE + CAPTION)
    sheet = Image.new("RGB", size, PAPER)
    for column, tile in enumerate(tiles):
        sheet.paste(tile, (MARGIN + column * (TILE + MARGIN), MARGIN))
    return sheet


def draw_photo(
    photo: Image.Image,
    boxes: Sequence[Box],
    title: str,
    caption: str,
    colour: str,
    quad: Quad | None = None,
) -> Image.Image:
    """Draw a photo with boxes or a quad, and two lines of text below it.

    Args:
        boxes: in pixels of the photo; the first one is drawn in `colour`, with thick lines.
        title: in `colour`.
        quad: in pixels of the photo, with thick lines in `colour`.
    """
    tile = Image.new("RGB", (TILE, TILE + CAPTION), PAPER)
    scale = min(TILE / photo.width, TILE / photo.height)
    small = photo.resize((max(1, round(photo.width * scale)), max(1, round(photo.height * scale))))
    draw = ImageDraw.Draw(small)
    # The nearest chunk comes first in the answer; drawn last it lies on top.
    for rank, box in reversed(list(enumerate(boxes))):
        x1, y1, x2, y2 = (side * scale for side in box)
        corners = (x1, y1, max(x1, x2 - 1), max(y1, y2 - 1))
        draw.rectangle(corners, outline=OTHER if rank else colour, width=1 if rank else LINE)
    if quad:
        points = [(x * scale, y * scale) for x, y in quad]
        # Past the first corner, so that the lines are joined there too; and on a light line, which
        # is seen on any photo.
        for fill, width in [(PAPER, LINE + 3), (colour, LINE)]:
            draw.line([*points, *points[:2]], fill=fill, width=width, joint="curve")
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
