"""The types of the Ray handles by which deployments call each other.

A handle's type is declared here and not beside its deployment, because importing the deployment
would load what the caller should not load (torch, LMDB). A test compares each type with the class
of its deployment.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, ParamSpec, Protocol, TypeAlias, TypeVar

import numpy as np

from deployments.outcomes import Outcome
from deployments.query import Corners, SearchOptions
from deployments.records import (
    Changes,
    CheckedPhoto,
    EncodedPhoto,
    IndexState,
    Position,
    Preview,
    RankedPhoto,
    Record,
    Stored,
    StoreState,
)
from deployments.verification import Candidate, EncodedQuery, Look, Sighting, Sketch, Verdict

P = ParamSpec("P")
T_co = TypeVar("T_co", covariant=True)


class Response(Protocol[T_co]):
    """The answer to a call: await it, or pass it on as an argument of another call.

    An answer that is passed on goes from replica to replica, not through the process in between.
    """

    def __await__(self) -> Generator[Any, None, T_co]: ...

    def cancel(self) -> object:
        """Give the call up, and what it has called, if that is still possible."""


# An argument, or the answer to another call in its place.
Later: TypeAlias = T_co | Response[T_co]


class Method(Protocol[P, T_co]):
    """A method of a deployment."""

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> Response[T_co]: ...


class Handle(Protocol):
    """The methods that every deployment has."""

    ping: Method[[], None]


class PhotoEncoderHandle(Handle, Protocol):
    """See `photo_encoder.deployment.PhotoEncoderDeployment`."""

    encode: Method[[list[CheckedPhoto]], list[Outcome[EncodedPhoto]]]
    thumbnail: Method[[bytes], bytes]


class QueryEncoderHandle(Handle, Protocol):
    """See `encoder.deployment.QueryEncoderDeployment`."""

    encode_query: Method[[Later[bytes], Corners | None, bool], EncodedQuery]
    encode_looks: Method[[Later[bytes], list[Look]], np.ndarray]
    encode_text: Method[[str], np.ndarray]


class ChunkIndexHandle(Handle, Protocol):
    """See `chunk_index.deployment.ChunkIndexDeployment`."""

    rank: Method[[Later[np.ndarray], SearchOptions, int], tuple[list[RankedPhoto], int]]
    rank_all: Method[[Later[np.ndarray], SearchOptions, int], list[list[RankedPhoto]]]
    lag: Method[[], tuple[int, float]]
    stats: Method[[], IndexState]


class VerifierHandle(Handle, Protocol):
    """See `verifier.deployment.VerifierDeployment`."""

    verify: Method[[Sketch, list[Candidate], bool], Verdict]
    verify_again: Method[[Sketch, list[Candidate]], dict[str, Sighting]]


class StoreHandle(Handle, Protocol):
    """See `store.deployment.StoreDeployment`."""

    put: Method[[list[CheckedPhoto], list[Outcome[EncodedPhoto]]], list[Outcome[Stored]]]
    delete: Method[[str], int]
    keep_thumbnail: Method[[str, str, bytes], bool]
    keep_preview: Method[[str, str, bytes], bool]
    find: Method[[list[tuple[str, str]]], list[Outcome[Record | None]]]
    record: Method[[str], Record]
    records: Method[[list[str]], tuple[list[bytes | None], int]]
    get: Method[[str], tuple[Record, bytes]]
    thumbnail: Method[[str], bytes | None]
    previews: Method[[list[str]], list[Preview | None]]
    original: Method[[str], bytes]
    original_part: Method[[str, str, int, int], bytes | None]
    records_after: Method[[str | None, int, bool], list[bytes]]
    changes: Method[[Position | None, float, str, Position | None], Changes]
    room: Method[[], tuple[int, int]]
    stats: Method[[], StoreState]
