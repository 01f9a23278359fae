"""The query and the options of a search, checked once for HTTP and for Ray handles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal, get_args

from deployments.errors import BadParameter
from deployments.metadata import Filter
from deployments.records import check_id

MAX_LIMIT = 1000  # photos, or chunks of a photo, in one answer
DEFAULT_LIMIT = 10
DEFAULT_RECORDS = 100  # in one answer to a listing
DEFAULT_CHUNKS = 5  # a photo has about twenty chunks, which is too many for each match
MAX_DISTANCE = 2.0  # cosine distance of two opposite vectors

Verify = Literal["auto", "all", "none"]
Group = Literal["copies"]
Corners = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Query:
    """What a search looks for: exactly one of an image, a text and a stored photo.

    Args:
        data: the bytes of an encoded image.
        text: what to look for, if the encoder takes text.
        id: a stored photo.
        box: x1, y1, x2, y2 in pixels: search by this part of the image only.

    Raises:
        BadParameter: none or several of them are given; the id is not valid; the box is empty, or
            given with a text.
    """

    data: bytes | None = None
    text: str | None = None
    id: str | None = None
    box: Corners | None = None

    def __post_init__(self) -> None:
        if sum(one is not None for one in (self.data, self.text, self.id)) != 1:
            raise BadParameter(
                "Send exactly one query: an image as the body, ?text=, or ?id= of a stored photo."
            )
        if self.id is not None:
            check_id(self.id)
        if self.box is None:
            return
        if self.text is not None:
            raise BadParameter("A box is a part of an image: leave it out, or don't send ?text=.")
        x1, y1, x2, y2 = self.box
        if not (x1 < x2 and y1 < y2 and all(map(isfinite, self.box))):
            raise BadParameter(
                f"box {self.box} is empty: send x1, y1, x2, y2 with x1 < x2 and y1 < y2."
            )


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """The options of a search.

    Args:
        limit: most photos in the answer, 1 to 1000.
        max_distance: chunks beyond this cosine distance don't count, 0 to 2.
        max_chunks: most chunks of each photo in the answer, nearest first, 1 to 1000.
        filter: photos that don't match it are left out, and don't count towards the limit.
        verify: which photos the verifier looks at. `auto`: the nearest ones until one is verified,
            then those that are about as near; `all`: every photo of the answer; `none`.
        verified: leave out photos that are not verified.
        group: `copies`: of photos that are copies of each other, list the others under the first.

    Raises:
        BadParameter: a number is out of its range, or verified photos are asked for without
            looking at any.
    """

    limit: int = DEFAULT_LIMIT
    max_distance: float = MAX_DISTANCE
    max_chunks: int = DEFAULT_CHUNKS
    filter: Filter | None = None
    verify: Verify = "auto"
    verified: bool = False
    group: Group | None = None

    def __post_init__(self) -> None:
        check_range("limit", self.limit, 1, MAX_LIMIT)
        check_range("max_distance", self.max_distance, 0, MAX_DISTANCE)
        check_range("max_chunks", self.max_chunks, 1, MAX_LIMIT)
        check_choice("verify", self.verify, get_args(Verify))
        if self.group is not None:
            check_choice("group", self.group, get_args(Group))
        if self.verified and self.verify == "none":
            raise BadParameter(
                "With verify=none no photo is verified: leave out verified=true, or verify=none."
            )


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Check that a parameter is in a range, bounds included.

    Raises:
        BadParameter
    """
    if not low <= value <= high:
        raise BadParameter(f"{name} must be from {low:g} to {high:g}, not {value}.")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Check that a parameter is one of its values.

    Raises:
        BadParameter
    """
    if value not in choices:
        raise BadParameter(f"{name} must be {' or '.join(choices)}, not {value!r}.")


def parse_filter(conditions: str | Sequence[str]) -> Filter | None:
    """Parse one or several conditions into a filter; return None if there are none.

    Raises:
        BadParameter: see `Filter.parse`.
    """
    conditions = [conditions] if isinstance(conditions, str) else conditions
    return Filter.parse(conditions) if conditions else None
