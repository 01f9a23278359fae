"""Photos indexed and searched through a running service."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from typing import Any

import httpx
from common.client import RequestFailed, fetch_stats, for_each, index_files, read_answer, send

from evaluation.queries import LIMIT, EvaluationFailed, Photo, Query
from evaluation.report import Answer, Row


def evaluate(url: str, photos: Sequence[Photo], queries: Sequence[Query]) -> Row:
    """Index photos through a service, and search there by the queries.

    Raises:
        EvaluationFailed: the service can't be reached, or refuses something.
    """
    try:
        return asyncio.run(_evaluate(url, photos, queries))
    except RequestFailed as error:
        raise EvaluationFailed(f"{url}: {error}") from None


async def _evaluate(url: str, photos: Sequence[Photo], queries: Sequence[Query]) -> Row:
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
    answers = await search(url, queries)
    encoder = after["encoder"]
    rate = len(photos) / seconds if summary.counts["created"] == len(photos) else None
    return Row(encoder["name"], "of the service", encoder["dimension"], chunks, answers, rate)


async def fetch_records(url: str, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the records of photos, by id.

    Raises:
        RequestFailed
    """

    async def fetch(client: httpx.AsyncClient, id: str) -> dict[str, Any]:
        return read_answer(await send(client, "GET", f"/images/{id}/record"))

    distinct = list(dict.fromkeys(ids))
    return dict(zip(distinct, await for_each(url, distinct, fetch, "record"), strict=True))


async def search(url: str, queries: Sequence[Query]) -> list[Answer]:
    """Search by each query.

    Raises:
        RequestFailed
    """

    async def search_once(client: httpx.AsyncClient, query: Query) -> Answer:
        answer = await send(
            client,
            "POST",
            "/search",
            params={"limit": LIMIT},
            content=query.data,
            headers={"Content-Type": "image/jpeg"},
        )
        matches = read_answer(answer)["matches"]
        box = tuple(matches[0]["box"]) if matches else None
        return Answer([match["id"] for match in matches], box)

    return await for_each(url, queries, search_once, "query")
