"""Photos indexed and searched through a running service."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from common.client import (
    RequestFailed,
    fetch_stats,
    for_each,
    open_async_client,
    read_answer,
    send,
)
from common.indexing import index_files
from common.serve_run import ServiceFailed

from deployments.query import Verify
from deployments.records import Quad
from evaluation.figures import Answer, Found, Row, describe
from evaluation.queries import LIMIT, EvaluationFailed, Photo, Query

JPEG = {"Content-Type": "image/jpeg"}
VERIFY = get_args(Verify)


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How a service is searched.

    Attributes:
        verify: as `/search` has it: `auto`, `all` or `none`.
        clients: that search at the same time; only a single one's searches are timed.
    """

    verify: Verify = "auto"
    clients: int = 1


def evaluate(
    url: str, photos: Sequence[Photo], queries: Sequence[Query], options: SearchOptions
) -> Row:
    """Index photos through a service, and search there by the queries.

    Raises:
        EvaluationFailed: the service can't be reached, or refuses something.
    """
    try:
        return asyncio.run(_evaluate(url, photos, queries, options))
    except RequestFailed as error:
        raise EvaluationFailed(f"{url}: {error}") from None


def evaluate_own(
    segmenter: dict[str, Any],
    photos: Sequence[Photo],
    queries: Sequence[Query],
    options: SearchOptions,
) -> Row:
    """Do the same with a service that lives as long as this takes.

    Args:
        segmenter: its options that differ from serve_config.yaml.

    Raises:
        EvaluationFailed: the service doesn't start, or refuses something.
    """
    # It needs psutil, a development dependency, which an evaluation without it does not.
    from common.own_service import OwnService

    with (
        tempfile.TemporaryDirectory() as folder,
        OwnService(Path(folder), {"segmenter": segmenter}) as service,
    ):
        print("Starting a service ...", file=sys.stderr)
        try:
            service.start()
        except ServiceFailed as error:
            raise EvaluationFailed(str(error)) from None
        return replace(
            evaluate(service.url, photos, queries, options), segmenter=describe(segmenter)
        )


async def _evaluate(
    url: str, photos: Sequence[Photo], queries: Sequence[Query], options: SearchOptions
) -> Row:
    before = fetch_stats(url)["store"]["photos"]
    start = time.monotonic()
    summary = await index_files(url, [photo.file for photo in photos])
    seconds = time.monotonic() - start
    if summary.failures:
        file, reason = summary.failures[0]
        raise EvaluationFailed(f"{len(summary.failures)} photos failed; {file}: {reason}")
    records = await fetch_records(url, [photo.id for photo in photos])
    chunks = {
        id: [tuple(chunk["box"]) for chunk in record["chunks"]] for id, record in records.items()
    }
    after = fetch_stats(url)
    others = after["store"]["photos"] - len(chunks)
    if others > 0:
        print(
            f"The service holds {others} other photos ({before} were stored when this run began): "
            "they are distractors too.",
            file=sys.stderr,
        )
    answers = await search(url, queries, options)
    encoder = after["encoder"]
    rate = len(photos) / seconds if summary.counts["created"] == len(photos) else None
    return Row(encoder["name"], "of the service", encoder["dimension"], chunks, answers, rate)


async def fetch_records(url: str, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the records of photos, by id.

    Raises:
        RequestFailed
    """
    distinct = list(dict.fromkeys(ids))
    async with open_async_client(url) as client:

        async def fetch(id: str) -> dict[str, Any]:
            return read_answer(await send(client, "GET", f"/images/{id}/record"))

        return dict(zip(distinct, await for_each(distinct, fetch, "record"), strict=True))


async def search(url: str, queries: Sequence[Query], options: SearchOptions) -> list[Answer]:
    """Search by each query.

    Raises:
        RequestFailed
    """
    parameters = {"limit": LIMIT, "verify": options.verify}

    async with open_async_client(url, options.clients) as client:

        async def search_once(query: Query) -> Answer:
            start = time.perf_counter()
            response = await send(
                client, "POST", "/search", params=parameters, content=query.data, headers=JPEG
            )
            ms = 1000 * (time.perf_counter() - start)
            return read_found(read_answer(response), ms if options.clients == 1 else None)

        return await for_each(queries, search_once, "query", in_flight=options.clients)


def read_found(answer: dict[str, Any], ms: float | None = None) -> Answer:
    """Read the answer of `/search`.

    Args:
        ms: how long it took.
    """
    return Answer(tuple(map(_read_match, answer["matches"])), answer["texture"], ms)


def _read_match(match: dict[str, Any]) -> Found:
    return Found(
        photo=match["id"],
        box=tuple(match["box"]),
        part=tuple(match["part"]) if match["part"] else None,
        quad=read_quad(match["quad"]) if match["quad"] else None,
        **{name: match[name] for name in ("verified", "mirrored", "rotation", "inliers")},
    )


def read_quad(corners: list[list[float]]) -> Quad:
    """Read the corners of a quad from JSON."""
    one, two, three, four = ((x, y) for x, y in corners)
    return one, two, three, four
