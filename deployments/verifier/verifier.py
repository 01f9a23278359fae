"""The verifier: looks at the pixels of a query and of photos that may contain it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np

from deployments.compute.previews import open_preview
from deployments.records import Box, Preview
from deployments.verification import Candidate, Look, Sighting, Sketch, Verdict
from deployments.verifier.alignment import MOST_SIDE, Alignment, align, measure_texture
from deployments.verifier.borders import find_contents
from deployments.verifier.correlation import propose_by_correlation
from deployments.verifier.features import (
    Features,
    describe_region,
    describe_view,
    propose_by_features,
)
from deployments.verifier.regions import Region
from deployments.verifier.views import View, make_view, transform

LEAST_PLACES = 16  # of about 64, that must agree
USUAL = 0.25  # cosine distance of a photo, for which no more and no less is asked


@dataclass(frozen=True, slots=True)
class Standard:
    """What a query must have in common with its place in a photo.

    Attributes:
        agreement: least agreement of 64 x 64 pixels, in a photo at a cosine distance of `USUAL`.
        small: how much more is asked of half as many pixels a side: chance has it easier there.
        near: how much less is asked for a distance that is less by one, and more for a greater one:
            what the encoder saw is evidence of its own.
    """

    agreement: float
    small: float
    near: float

    def holds(self, found: Alignment, distance: float) -> bool:
        """Say whether a query is where it was found, in a photo at a cosine distance."""
        small = self.small * (2 - found.side / (MOST_SIDE / 2))
        least = self.agreement + small + self.near * (distance - USUAL)
        return found.places >= LEAST_PLACES and found.agreement >= least


# Of 36,000 pairs of a query and a photo without it, the best would hold with an agreement of 0.38.
STANDARD = Standard(agreement=0.46, small=0.1, near=0.5)
# Corners that agree are evidence, too.
SURE_CORNERS, STANDARD_WITH_CORNERS = 8, Standard(agreement=0.3, small=0.1, near=0)
# With less agreement, a query may lie elsewhere in the same photo, or be mirrored: many things are
# symmetric.
SURE = 0.7
FEW_CORNERS = 5  # with fewer, a map is chance
PLAIN = 1.0  # grey levels: a query whose details have less contrast is too plain

FIRST = 2  # of the nearest photos, at which tilted and mirrored queries are looked for as well
TILT = 15  # degrees: alignment does the rest
HALF = 0.5  # of the query's area: a smaller content lies inside of wide borders
SMALLER = 0.25  # of agreement: by so much a part must agree better than all of the query

NEAR = 0.1  # cosine distance: a photo that is no farther beyond the first is looked at, too


Seen = tuple[Alignment, View]
Way = Callable[["_Query", "_Photo"], Seen | None]


class Verifier:
    """Says whether a query is in a photo, and where, by the pixels of both.

    Where the query could be is proposed in two ways: by correlation, which is quick and needs no
    corners, and by corners, which finds it at any angle. Then both pictures are aligned, and their
    details decide.
    """

    def verify(
        self,
        sketch: Sketch,
        candidates: Sequence[Candidate],
        previews: Mapping[str, Preview],
        *,
        everything: bool = False,
    ) -> Verdict:
        """Look at candidates until the query is seen, then at those that are about as near.

        Args:
            candidates: nearest first. Their looks are not used: all of the query is looked for.
            previews: of the candidates; those without one are passed over.
            everything: look at all candidates.
        """
        query = _Query(sketch)
        if query.is_plain:
            return Verdict(True, {}, [])
        photos = [_Photo(one, previews[one.id]) for one in candidates if one.id in previews]
        sightings: dict[str, Sighting | None] = {}
        tried: set[tuple[Way, str]] = set()

        def look(way: Way, photo: _Photo) -> Sighting | None:
            """Look in one way, and if what is seen is doubtful, in all others as well."""
            known = sightings.get(photo.id)
            if (way, photo.id) in tried or _is_sure(known):
                return known
            tried.add((way, photo.id))
            best = _better(known, _describe(way(query, photo), photo))
            sightings[photo.id] = best
            if best and not _is_sure(best):
                for other in WAYS:
                    look(other, photo)
            return sightings[photo.id]

        # Nearly all queries are seen where they are looked for first.
        first, others = photos[:FIRST], photos[FIRST:]
        order = [
            *((_straight, photo) for photo in first),
            *((way, photo) for photo in first for way in (_tilted, _by_corners)),
            *((_straight, photo) for photo in others),
        ]
        hit = next(((way, photo) for way, photo in order if look(way, photo)), None)
        for photo in photos:
            if hit and photo.distance <= hit[1].distance + NEAR:
                look(hit[0], photo)  # a copy is seen in the same way
            if everything:
                any(look(way, photo) for way in (_straight, _by_corners))
        seen_at_all = any(sightings.values())
        return Verdict(False, sightings, [] if seen_at_all else query.looks)

    def verify_again(
        self, sketch: Sketch, candidates: Sequence[Candidate], previews: Mapping[str, Preview]
    ) -> dict[str, Sighting]:
        """Look for parts of a query, turned and mirrored, when all of it was seen nowhere.

        Args:
            candidates: nearest first, with the looks to look for. When a part was seen, looks that
                share pixels with it are left out.
            previews: of the candidates; those without one are passed over.

        Returns:
            The photos in which the query was seen.
        """
        query = _Query(sketch)
        sightings: dict[str, Sighting] = {}
        for candidate in candidates:
            known = sightings.get(candidate.id)
            if candidate.id not in previews or _is_sure(known):
                continue
            parts = [one.part for id, one in sightings.items() if id != candidate.id]
            if any(_overlap(candidate.look.part, part) for part in parts):
                continue
            view = make_view(sketch, candidate.look)
            photo = _Photo(candidate, previews[candidate.id])
            seen = _correlate(view, photo)
            best = _better(known, _describe(seen and _extend(query, photo, seen), photo))
            if best is not None:
                sightings[candidate.id] = best
        return sightings


class _Query:
    """A query, and what is computed of it at most once."""

    def __init__(self, sketch: Sketch) -> None:
        self.sketch = sketch
        self.whole = make_view(sketch, Look(sketch.box))

    @property
    def is_plain(self) -> bool:
        return measure_texture(self.whole) < PLAIN

    @cached_property
    def contents(self) -> list[Box]:
        """What may lie inside of borders, in pixels of the upright query."""
        boxes = np.array(find_contents(self.sketch.pixels), np.float64).reshape(-1, 2)
        corners = np.rint(transform(self.whole.to_query, boxes)).astype(int)
        return [(x1, y1, x2, y2) for x1, y1, x2, y2 in corners.reshape(-1, 4).tolist()]

    @cached_property
    def views(self) -> list[View]:
        """All of the query, then what may lie inside of borders."""
        return [self.whole, *(make_view(self.sketch, Look(box)) for box in self.contents)]

    @cached_property
    def corners(self) -> list[tuple[Features, list[View]]]:
        """The corners of the query, and the views that they are in: as it is, then mirrored."""
        mirrored = [view.mirrored() for view in self.views]
        return [(describe_view(some[0]), some) for some in (self.views, mirrored)]

    @property
    def looks(self) -> list[Look]:
        """Other ways to look at the query."""
        # What looks like a narrow border is often an even background, which belongs to the query.
        wide = [box for box in self.contents if _size(box) < HALF * _size(self.sketch.box)]
        content = wide[0] if wide else self.sketch.box
        return [
            *map(Look, self.contents),
            *(Look(content, turned=quarters) for quarters in (1, 2, 3)),
            *(Look(content, turned=quarters, mirrored=True) for quarters in (0, 1, 2, 3)),
            *map(Look, _parts(content)),
        ]


class _Photo:
    """A candidate, and what is computed of it at most once."""

    def __init__(self, candidate: Candidate, preview: Preview) -> None:
        self.id, self.distance = candidate.id, candidate.distance
        self.width, self.height = preview.width, preview.height
        self._chunk, self._preview = candidate.box, preview

    @cached_property
    def region(self) -> Region:
        assert self._preview.data is not None
        pixels = open_preview(self._preview.data)
        return Region(pixels, self.width, self.height, self._chunk)

    @cached_property
    def corners(self) -> Features:
        return describe_region(self.region)


def _correlate(view: View, photo: _Photo, degrees: float = 0) -> Seen | None:
    proposed = propose_by_correlation(view, photo.region, degrees)
    found = None if proposed is None else align(view, photo.region, proposed)
    return (found, view) if found and STANDARD.holds(found, photo.distance) else None


def _straight(query: _Query, photo: _Photo) -> Seen | None:
    """Look for the query as it is."""
    return _correlate(query.whole, photo)


def _tilted(query: _Query, photo: _Photo) -> Seen | None:
    """Look for the query mirrored, tilted, and both."""
    mirrored = query.whole.mirrored()
    ways = ((mirrored, 0), *product((query.whole, mirrored), (-TILT, TILT)))
    found = (_correlate(view, photo, degrees) for view, degrees in ways)
    return next(filter(None, found), None)


def _by_corners(query: _Query, photo: _Photo) -> Seen | None:
    """Look for the corners of the query, at any angle and size, and mirrored."""
    best: Seen | None = None
    for corners, views in query.corners:
        proposal = propose_by_features(corners, photo.corners)
        if proposal is None or proposal[1] < FEW_CORNERS:
            continue
        proposed, count = proposal
        standard = STANDARD_WITH_CORNERS if count >= SURE_CORNERS else STANDARD
        for view, perspective in product(views, (False, True)):
            start = proposed @ np.linalg.inv(views[0].to_query) @ view.to_query
            found = align(view, photo.region, start, perspective=perspective)
            if found is None or not standard.holds(found, photo.distance):
                continue
            if best is None or found.agreement > best[0].agreement + _handicap(view, best[1]):
                best = found, view
    return best


WAYS: tuple[Way, ...] = (_straight, _tilted, _by_corners)


def _extend(query: _Query, photo: _Photo, seen: Seen) -> Seen:
    """Return as much of the query as agrees at the place where a part of it was seen."""
    found, view = seen
    halves = [make_view(query.sketch, Look(part)) for part in _halves(query.sketch.box)]
    around = [half for half in halves if _contains(half.part, view.part)]
    for larger in (*query.views, *around):
        start = found.to_region @ np.linalg.inv(view.to_query) @ larger.to_query
        extended = align(larger, photo.region, start)
        least = found.agreement - _handicap(view, larger)
        if extended and extended.places >= LEAST_PLACES and extended.agreement >= least:
            return extended, larger
    return seen


def _is_sure(sighting: Sighting | None) -> bool:
    return sighting is not None and sighting.agreement >= SURE


def _better(one: Sighting | None, other: Sighting | None) -> Sighting | None:
    if one is None or other is None:
        return one or other
    return max(one, other, key=lambda sighting: sighting.agreement)


def _handicap(view: View, other: View) -> float:
    """Return how much better a smaller part must agree than a larger one to be preferred."""
    return SMALLER if _size(view.part) < _size(other.part) else 0


def _describe(seen: Seen | None, photo: _Photo) -> Sighting | None:
    """Return where a view was seen, in terms of the query and the original."""
    if seen is None:
        return None
    alignment, view = seen
    to_photo = photo.region.to_photo @ alignment.to_region
    corners = transform(to_photo, view.corners)
    top = corners[1] - corners[0]  # the query's upper edge in the photo
    left = corners[3] - corners[0]
    mirrored = bool(top[0] * left[1] - top[1] * left[0] < 0)
    angle = math.degrees(math.atan2(top[1], -top[0] if mirrored else top[0]))
    x1, y1, x2, y2 = view.part
    area = _area(corners)
    points = [(float(x), float(y)) for x, y in corners]
    return Sighting(
        quad=(points[0], points[1], points[2], points[3]),
        part=view.part,
        mirrored=mirrored,
        rotation=angle if mirrored else -angle,
        scale=math.sqrt(area / ((x2 - x1) * (y2 - y1))),
        inliers=alignment.places,
        coverage=_inside(corners, photo.width, photo.height) / area,
        agreement=alignment.agreement,
    )


def _halves(box: Box) -> list[Box]:
    """Return the left, right, upper and lower half of a box."""
    x1, y1, x2, y2 = box
    x, y = (x1 + x2) // 2, (y1 + y2) // 2
    halves = [(x1, y1, x, y2), (x, y1, x2, y2), (x1, y1, x2, y), (x1, y, x2, y2)]
    return halves if x1 < x < x2 and y1 < y < y2 else []


def _parts(box: Box) -> list[Box]:
    """Return the halves and the quarters of a box."""
    halves = _halves(box)
    return [*halves, *(half for part in halves[:2] for half in _halves(part)[2:])]


def _contains(box: Box, part: Box) -> bool:
    return box[0] <= part[0] and box[1] <= part[1] and box[2] >= part[2] and box[3] >= part[3]


def _overlap(one: Box, other: Box) -> bool:
    return max(one[0], other[0]) < min(one[2], other[2]) and max(one[1], other[1]) < min(
        one[3], other[3]
    )


def _size(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _area(polygon: np.ndarray) -> float:
    """Return the area of a polygon: float64 `[n, 2]`."""
    x, y = polygon.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _inside(polygon: np.ndarray, width: int, height: int) -> float:
    """Return the area of the part of a convex polygon that lies in a photo."""
    # Sutherland and Hodgman: cut by each edge of the photo.
    for axis, limit, sign in ((0, 0, 1), (0, width, -1), (1, 0, 1), (1, height, -1)):
        kept = []
        for here, there in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            a, b = sign * (here[axis] - limit), sign * (there[axis] - limit)
            if a >= 0:
                kept.append(here)
            if a * b < 0:
                kept.append(here + (there - here) * (a / (a - b)))
        if not kept:
            return 0.0
        polygon = np.array(kept)
    return _area(polygon)
