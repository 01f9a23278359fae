"""The report of scripts/evaluate.py: figures, tables, and a picture of the misses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from common.drawing import CAPTION, MARGIN, PAPER, QUERY, TILE, draw_photo
from common.tables import Columns, cells, markdown, titles
from PIL import Image

from deployments.records import Box
from evaluation.queries import Photo, Query, iou, open_picture, read_photo

COVERING = 0.3  # least IoU of a chunk with the query's box
FLOAT16 = 2  # bytes

MOST_MISSES = 24
RIGHT, WRONG = "#2f9e44", "#e03131"


class Answer(NamedTuple):
    """What a search found.

    Attributes:
        photos: ids, nearest first.
        box: that of the first photo's nearest chunk; None if nothing was found.
    """

    photos: list[str]
    box: Box | None


@dataclass(frozen=True, slots=True)
class Row:
    """What was found with one encoder and one segmenter.

    Attributes:
        encoder, segmenter: their names.
        dimension: length of a vector.
        chunks: the boxes of each photo's chunks, by its id.
        answers: one for each query.
        rate: photos through segmenter and encoder per second; None if they were stored before.
    """

    encoder: str
    segmenter: str
    dimension: int
    chunks: dict[str, list[Box]]
    answers: list[Answer]
    rate: float | None


GROUPS: dict[str, Callable[[Query], bool]] = {
    "object": lambda query: query.kind == "object",
    "patch": lambda query: query.kind == "patch",
    "patch, not turned": lambda query: query.kind == "patch" and not query.turned,
}


def rank(query: Query, answer: Answer) -> int | None:
    """Return the place of the right photo in an answer, from 1; None if it isn't there."""
    return answer.photos.index(query.photo) + 1 if query.photo in answer.photos else None


def row_figures(row: Row, queries: Sequence[Query]) -> dict[str, Any]:
    """Return all figures of a row, for JSON; None for the mean of nothing."""
    chunks = float(np.mean([len(boxes) for boxes in row.chunks.values()]))
    pairs = list(zip(queries, row.answers, strict=True))
    groups = {
        group: group_figures([pair for pair in pairs if belongs(pair[0])], row.chunks)
        for group, belongs in GROUPS.items()
    }
    return {
        "encoder": row.encoder,
        "segmenter": row.segmenter,
        "dimension": row.dimension,
        "chunks_per_photo": chunks,
        "index_bytes_per_photo": chunks * row.dimension * FLOAT16,
        "photos_per_second": row.rate,
        **groups,
    }


def group_figures(
    pairs: Sequence[tuple[Query, Answer]], chunks: Mapping[str, list[Box]]
) -> dict[str, Any]:
    """Return the figures of some queries and their answers."""
    ranks = np.array([rank(query, answer) or np.inf for query, answer in pairs])
    covered = np.array(
        [max(iou(query.box, chunks[query.photo])) >= COVERING for query, _ in pairs], bool
    )
    # A photo without a chunk near the query may come first as well: by its colours, for example.
    overlaps = [
        iou(query.box, [answer.box])[0]
        for query, answer in pairs
        if answer.box is not None and rank(query, answer) == 1
    ]
    return {
        "queries": len(pairs),
        **{f"recall@{k}": _mean(ranks <= k) for k in (1, 5, 10)},
        "box_iou": _mean(overlaps),
        "covered": _mean(covered),
        "recall@1_covered": _mean(ranks[covered] == 1),
    }


def _mean(values: Sequence[float] | np.ndarray) -> float | None:
    return float(np.mean(values)) if len(values) else None


COLUMNS = {
    "queries": ("number", "{}"),
    "recall@1": ("recall@1", "{:.3f}"),
    "recall@5": ("@5", "{:.3f}"),
    "recall@10": ("@10", "{:.3f}"),
    "box_iou": ("box IoU", "{:.3f}"),
    "covered": ("covered", "{:.3f}"),
    "recall@1_covered": ("recall@1 of the covered", "{:.3f}"),
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
    """Lay the figures of all rows out as two Markdown tables: recall, and costs."""
    found = [
        [row["encoder"], row["segmenter"], group, *cells(row[group], COLUMNS)]
        for group in GROUPS
        for row in rows
        if row[group]["queries"]
    ]
    cost = [[row["encoder"], row["segmenter"], *cells(row, costs)] for row in rows]
    return "\n\n".join(
        (
            markdown(["encoder", "segmenter", "queries", *titles(COLUMNS)], found),
            markdown(["encoder", "segmenter", *titles(costs)], cost),
        )
    )


def misses(pairs: Sequence[tuple[Query, Answer]]) -> list[tuple[Query, Answer]]:
    """Return the queries whose photo did not come first."""
    return [(query, answer) for query, answer in pairs if rank(query, answer) != 1]


def draw_misses(missed: Sequence[tuple[Query, Answer]], photos: Mapping[str, Photo]) -> Image.Image:
    """Draw misses, two in a line: the query, the right photo and box, the answered photo and box.

    Args:
        missed: of more than `MOST_MISSES` an even selection is drawn.
        photos: by their ids; an answered photo that isn't among them is not drawn.
    """
    places = np.linspace(0, len(missed) - 1, min(len(missed), MOST_MISSES)).astype(int)
    some = [missed[place] for place in places]
    strips = [_draw_miss(query, answer, photos) for query, answer in some]
    width, height = 3 * (TILE + MARGIN), TILE + CAPTION + MARGIN
    lines = max(1, (len(strips) + 1) // 2)
    sheet = Image.new("RGB", (2 * (width + MARGIN), lines * height + MARGIN), PAPER)
    for number, strip in enumerate(strips):
        sheet.paste(strip, (MARGIN + number % 2 * (width + MARGIN), MARGIN + number // 2 * height))
    return sheet


def _draw_miss(query: Query, answer: Answer, photos: Mapping[str, Photo]) -> Image.Image:
    place = rank(query, answer)
    outcome = f"place {place}" if place else f"not among {len(answer.photos)}"
    kind = f"{query.kind}{', turned' if query.turned else ''}"
    right = read_photo(photos[query.photo])
    tiles = [
        draw_photo(open_picture(query.data), [], "query", kind, QUERY),
        draw_photo(right, [query.box], query.name, f"the right photo: {outcome}", RIGHT),
    ]
    if answer.box is not None and answer.photos[0] in photos:
        first = photos[answer.photos[0]]
        tiles.append(draw_photo(read_photo(first), [answer.box], first.name, "came first", WRONG))
    strip = Image.new("RGB", (3 * (TILE + MARGIN) - MARGIN, TILE + CAPTION), PAPER)
    for column, tile in enumerate(tiles):
        strip.paste(tile, (column * (TILE + MARGIN), 0))
    return strip
