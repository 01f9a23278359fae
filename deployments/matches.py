"""Matches: the photos of an answer, in their order, from what was ranked and what was seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deployments.boxes import outer_box
from deployments.query import SearchOptions
from deployments.records import Box, Match, MatchedChunk, RankedPhoto, Record
from deployments.verification import Sighting

# Two photos are copies if the same part of the query lies at the same place in both: within this
# share of the sides of the part, and of the photo.
SAME_PLACE = 0.02


@dataclass(frozen=True, slots=True)
class Hit:
    """A photo that was ranked.

    Attributes:
        photo: its distances.
        record: what the store knows of it.
    """

    photo: RankedPhoto
    record: Record

    @property
    def box(self) -> Box:
        """The box of its nearest chunk."""
        return self.record.chunks[self.photo.chunks[0][0]].box


def arrange(
    hits: Sequence[Hit], sightings: Mapping[str, Sighting | None], options: SearchOptions
) -> list[Match]:
    """Return the matches of an answer: verified ones first, then the others as they were ranked.

    Args:
        hits: each photo once, nearest first.
        sightings: of the photos that were looked at, by id.
    """
    verified = [hit for hit in hits if sightings.get(hit.photo.id) is not None]
    verified.sort(key=lambda hit: -_certainty(sightings[hit.photo.id]))
    others = [hit for hit in hits if sightings.get(hit.photo.id) is None]
    ordered = verified if options.verified else [*verified, *others]
    groups = _group(ordered, sightings) if options.group == "copies" else [[hit] for hit in ordered]
    return [
        _match(first, sightings, [_match(copy, sightings) for copy in copies])
        for first, *copies in groups[: options.limit]
    ]


def _certainty(sighting: Sighting | None) -> float:
    return sighting.inliers * sighting.agreement if sighting else 0


def _group(hits: Iterable[Hit], sightings: Mapping[str, Sighting | None]) -> list[list[Hit]]:
    """Put hits that are copies of each other together, in the order of the first of each."""
    groups: list[list[Hit]] = []
    for hit in hits:
        same = (group for group in groups if _are_copies(group[0], hit, sightings))
        group = next(same, None)
        if group is None:
            groups.append([hit])
        else:
            group.append(hit)
    return groups


def _are_copies(one: Hit, other: Hit, sightings: Mapping[str, Sighting | None]) -> bool:
    if one.record.sha256 == other.record.sha256:
        return True
    seen, seen_other = sightings.get(one.photo.id), sightings.get(other.photo.id)
    if seen is None or seen_other is None:
        return False
    # The pictures of a collage may well be cut out of the same places of their photos.
    x1, y1, x2, y2 = seen.part
    apart = np.subtract(seen.part, seen_other.part) / (x2 - x1, y2 - y1, x2 - x1, y2 - y1)
    moved = _place(one, seen) - _place(other, seen_other)
    return bool(max(np.abs(apart).mean(), np.abs(moved).mean()) <= SAME_PLACE)


def _place(hit: Hit, sighting: Sighting) -> np.ndarray:
    """Return where the query is in a photo, as a share of its sides: `[4, 2]`."""
    return np.array(sighting.quad) / (hit.record.width, hit.record.height)


def _match(
    hit: Hit, sightings: Mapping[str, Sighting | None], copies: Sequence[Match] = ()
) -> Match:
    photo, record = hit.photo, hit.record
    chunks = [
        MatchedChunk(
            box=record.chunks[number].box,
            source=record.chunks[number].source,
            distance=distance,
            label=record.chunks[number].label,
        )
        for number, distance in photo.chunks
    ]
    match = Match(
        id=photo.id,
        distance=photo.distance,
        box=chunks[0].box,
        source=chunks[0].source,
        label=chunks[0].label,
        chunks=chunks,
        filename=record.filename,
        width=record.width,
        height=record.height,
        url=f"/images/{photo.id}",
        verified=False if photo.id in sightings else None,
        copies=list(copies),
    )
    sighting = sightings.get(photo.id)
    if sighting is None:
        return match
    xs, ys = zip(*sighting.quad, strict=True)
    return match.model_copy(
        update={
            "verified": True,
            "box": outer_box((min(xs), min(ys), max(xs), max(ys)), record.width, record.height),
            "quad": sighting.quad,
            "part": sighting.part,
            "mirrored": sighting.mirrored,
            "rotation": sighting.rotation,
            "scale": sighting.scale,
            "inliers": sighting.inliers,
            "coverage": sighting.coverage,
        }
    )
