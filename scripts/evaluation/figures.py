"""What was found, and the figures of scripts/evaluate.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from deployments.records import Box, Quad
from evaluation.geometry import diagonal, distance, pose
from evaluation.kinds import KINDS, PARTS
from evaluation.queries import Place, Query, iou

COVERING = 0.3  # least IoU of a chunk with the query's box
FLOAT16 = 2  # bytes
OVERLAPS = (0.5, 0.75, 0.9)
TOLERANCE = 10  # degrees


@dataclass(frozen=True, slots=True)
class Found:
    """A photo that a search answered.

    Attributes:
        photo: its id.
        box: where the query is said to be in it.
        verified: None if it was not looked at; what follows is None unless it is true.
        part: the part of the query that is in it.
        quad: where the corners of that part are in it.
        mirrored: whether the query is mirrored.
        rotation: degrees by which the query is turned against it, clockwise.
        inliers: how many features agree.
    """

    photo: str
    box: Box
    verified: bool | None = None
    part: Box | None = None
    quad: Quad | None = None
    mirrored: bool | None = None
    rotation: float | None = None
    inliers: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a search found.

    Attributes:
        found: the photos, in the order of the answer.
        texture: what the service says of a query that can't be verified.
        ms: how long the search took; None where that was not measured.
    """

    found: tuple[Found, ...]
    texture: str | None = None
    ms: float | None = None


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


@dataclass(frozen=True, slots=True)
class Outcome:
    """How good an answer is. What can't be said of it is None.

    Attributes:
        rank: place of the first right photo, from 1. What is in the query too, without being looked
            for, doesn't count.
        verified: whether that photo was verified.
        inliers: of that photo.
        box_iou: of the answered box with the true one.
        corner_error: mean distance of the answered corners from the true ones of the same part of
            the query, pixels of the photo.
        corner_share: the same, as a share of the part's diagonal in the photo.
        pose: whether `mirrored` and `rotation` are right.
        parts: share of the right photos that were answered, if there are several.
        wrong: ids of the photos that were verified, although they are not in the query; None if no
            photo was looked at.
        wrong_inliers: most inliers of these.
        covered: whether a chunk of the photo covers the query.
        texture, ms: as in the answer.
    """

    rank: int | None
    verified: bool | None
    inliers: int | None
    box_iou: float | None
    corner_error: float | None
    corner_share: float | None
    pose: bool | None
    parts: float | None
    wrong: tuple[str, ...] | None
    wrong_inliers: int | None
    covered: bool | None
    texture: str | None
    ms: float | None


def describe(options: dict[str, Any]) -> str:
    """Return options as text."""
    return ", ".join(f"{name} {value}" for name, value in options.items()) or "as by default"


class Judged(NamedTuple):
    """A query, what it found, and how good that is."""

    query: Query
    answer: Answer
    outcome: Outcome


def judge_all(row: Row, queries: Sequence[Query]) -> list[Judged]:
    """Compare the answers of a row with the truth."""
    return [
        Judged(query, answer, judge(query, answer, row.chunks))
        for query, answer in zip(queries, row.answers, strict=True)
    ]


def judge(query: Query, answer: Answer, chunks: Mapping[str, Sequence[Box]]) -> Outcome:
    """Compare an answer with the truth.

    Args:
        chunks: the boxes of each photo's chunks, by its id.
    """
    places = {place.photo: place for place in query.places}
    looked_for = [found for found in answer.found if found.photo not in query.also]
    ranked = enumerate(looked_for, 1)
    rank, first = next(((n, found) for n, found in ranked if found.photo in places), (None, None))
    right = [found for found in looked_for if found.photo in places]
    wrong = [found for found in looked_for if found.verified and found.photo not in places]
    looked_at = any(found.verified is not None for found in answer.found)
    return Outcome(
        rank=rank,
        verified=first.verified if first else None,
        inliers=first.inliers if first else None,
        **_geometry(places[first.photo], first) if first else _NOWHERE,
        parts=len(right) / len(places) if len(places) > 1 else None,
        wrong=tuple(found.photo for found in wrong) if looked_at else None,
        wrong_inliers=max((found.inliers or 0 for found in wrong), default=None),
        covered=is_covered(query.places[0], chunks) if places else None,
        texture=answer.texture,
        ms=answer.ms,
    )


_NOWHERE = dict.fromkeys(("box_iou", "corner_error", "corner_share", "pose"))


def _geometry(place: Place, found: Found) -> dict[str, Any]:
    """Return the figures of an outcome that compare an answered place with the true one."""
    figures: dict[str, Any] = {**_NOWHERE, "box_iou": iou(place.box, [found.box])[0]}
    if found.quad is not None and found.part is not None and found.rotation is not None:
        truth = place.of_part(found.part)
        figures["corner_error"] = distance(truth, found.quad)
        figures["corner_share"] = figures["corner_error"] / diagonal(truth)
        mirrored, degrees = pose(place.whole)
        off = (found.rotation - degrees + 180) % 360 - 180
        figures["pose"] = found.mirrored == mirrored and abs(off) <= TOLERANCE
    return figures


def is_covered(place: Place, chunks: Mapping[str, Sequence[Box]]) -> bool:
    """Return whether a chunk of the photo covers a place."""
    return max(iou(place.box, chunks[place.photo])) >= COVERING


def is_missed(query: Query, outcome: Outcome) -> bool:
    """Return whether an answer is worth a look: not first, not verified, or at the wrong place."""
    if outcome.wrong:
        return True
    elsewhere = outcome.verified and outcome.box_iou is not None and outcome.box_iou < OVERLAPS[0]
    return bool(query.places and (outcome.rank != 1 or outcome.verified is False or elsewhere))


def _is_of(kind: str, query: Query) -> bool:
    return query.kind == kind


# The rows of the report: those whose queries belong to it.
GROUPS: dict[str, Callable[[Query], bool]] = {
    **{kind: partial(_is_of, kind) for kind in PARTS},
    "patch, not turned": lambda query: query.kind == "patch" and not query.turned,
    **{kind: partial(_is_of, kind) for kind in KINDS},
}


def row_figures(row: Row, judged: Sequence[Judged]) -> dict[str, Any]:
    """Return all figures of a row, for JSON; None for the mean of nothing."""
    chunks = float(np.mean([len(boxes) for boxes in row.chunks.values()]))
    groups = {
        group: group_figures([one.outcome for one in judged if belongs(one.query)])
        for group, belongs in GROUPS.items()
    }
    return {
        "encoder": row.encoder,
        "segmenter": row.segmenter,
        "dimension": row.dimension,
        "chunks_per_photo": chunks,
        "index_bytes_per_photo": chunks * row.dimension * FLOAT16,
        "photos_per_second": row.rate,
        **{group: figures for group, figures in groups.items() if figures["queries"]},
    }


def group_figures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the figures of some outcomes. Those of places are of the queries found first."""
    findable = [outcome for outcome in outcomes if outcome.covered is not None]
    ranks = np.array([outcome.rank or np.inf for outcome in findable])
    covered = np.array([outcome.covered for outcome in findable], bool)
    first = [outcome for outcome in findable if outcome.rank == 1]
    overlaps = np.array([outcome.box_iou for outcome in first])
    wrong = [bool(some) for some in known(outcomes, "wrong")]
    times = known(outcomes, "ms")
    return {
        "queries": len(outcomes),
        **{f"recall@{k}": mean(ranks <= k) for k in (1, 5, 10)},
        "parts": mean(known(findable, "parts")),
        "box_iou": mean(overlaps),
        "covered": mean(covered),
        "recall@1_covered": mean(ranks[covered] == 1),
        "verified": mean([outcome.verified is True for outcome in first]) if wrong else None,
        "wrongly_verified": sum(wrong) if wrong else None,
        **{f"box_iou>{least}": mean(overlaps > least) for least in OVERLAPS},
        "corner_error": mean(known(first, "corner_error")),
        "corner_share": mean(known(first, "corner_share")),
        "pose": mean(known(first, "pose")),
        **{f"ms_p{p}": float(np.percentile(times, p)) if times else None for p in (50, 95)},
    }


def known(outcomes: Sequence[Outcome], name: str) -> list[Any]:
    """Return a figure of those outcomes that have it."""
    values = [getattr(outcome, name) for outcome in outcomes]
    return [value for value in values if value is not None]


def mean(values: Sequence[float] | np.ndarray) -> float | None:
    """Return the mean; None of nothing."""
    return float(np.mean(values)) if len(values) else None
