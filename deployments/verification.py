"""The types of verification: a query, the ways to look at it, where to look, and what was seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deployments.records import Box, Point


@dataclass(frozen=True, slots=True)
class Sketch:
    """A query as the verifier sees it.

    Attributes:
        pixels: uint8 `[height, width]`, grey.
        box: the part of the upright query that it shows, pixels.
    """

    pixels: np.ndarray
    box: Box


@dataclass(frozen=True, slots=True)
class EncodedQuery:
    """A query ready for a search.

    Attributes:
        vector: float32 `[d]`, L2-normalised.
        sketch: None if nobody will look at it.
    """

    vector: np.ndarray
    sketch: Sketch | None


@dataclass(frozen=True, slots=True)
class Look:
    """A way to look at a query.

    Attributes:
        part: the part of the upright query that is looked at, pixels.
        turned: quarter turns by which that part is then turned, clockwise.
        mirrored: whether its left and right are exchanged before that.
    """

    part: Box
    turned: int = 0
    mirrored: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """A photo that may contain a query.

    Attributes:
        sha256: of its original, hexadecimal.
        distance: cosine distance of the nearest chunk.
        box: of that chunk.
        look: the look at the query that it is near to.
    """

    id: str
    sha256: str
    distance: float
    box: Box
    look: Look


@dataclass(frozen=True, slots=True)
class Sighting:
    """A query in a photo. The fields are those of a verified `Match`.

    Attributes:
        agreement: correlation of the slopes of the details of the query and the photo, 0 to 1.
    """

    quad: tuple[Point, Point, Point, Point]
    part: Box
    mirrored: bool
    rotation: float
    scale: float
    inliers: int
    coverage: float
    agreement: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the verifier says of a query and some photos.

    Attributes:
        plain: the query has too little texture to be verified, so no photo was looked at.
        sightings: for each photo that was looked at, where the query is; None if it isn't there.
        looks: other ways to look at the query, if it was seen nowhere.
    """

    plain: bool
    sightings: dict[str, Sighting | None]
    looks: list[Look]
