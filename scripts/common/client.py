"""A client of the service over HTTP, with several requests at a time."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
from tqdm import tqdm

from deployments.ingress.filenames import tidy
from deployments.query import Group, Verify
from deployments.records import Metadata

URL = "http://127.0.0.1:8000"  # where serve_config.yaml has the service
IN_FLIGHT = 8  # requests
ATTEMPTS = 5
# Longer than the service's own limit, so that the service says what was wrong.
TIMEOUT = httpx.Timeout(130, connect=10)
IMAGE = {"Content-Type": "image/*"}

T = TypeVar("T")
R = TypeVar("R")


class RequestFailed(Exception):
    """The service refused a request or can't be reached; the message says why."""


async def send(client: httpx.AsyncClient, method: str, path: str, **request: Any) -> httpx.Response:
    """Send a request; repeat it after a while if the service is overloaded or restarting.

    Args:
        request: see `httpx.AsyncClient.request`.

    Raises:
        RequestFailed: the service stays unreachable.
    """
    for attempt in range(ATTEMPTS):
        try:
            response = await client.request(method, path, **request)
        except httpx.TransportError as error:
            wait_s, reason = 2.0**attempt, f"{type(error).__name__} {error}".strip()
        else:
            if response.status_code != 503:
                return response
            wait_s, reason = float(response.headers.get("Retry-After", 2)), explain(response)
        if attempt < ATTEMPTS - 1:
            await asyncio.sleep(wait_s)
    raise RequestFailed(f"given up after {ATTEMPTS} attempts: {reason}")


def explain(response: httpx.Response) -> str:
    """Return the status and the reason of a response that is an error."""
    try:
        return f"{response.status_code}: {response.json()['detail']}"
    except (ValueError, KeyError):
        return f"{response.status_code}: {response.text[:200]}"


def read_answer(response: httpx.Response) -> dict[str, Any]:
    """Return the content of a response.

    Raises:
        RequestFailed: it is an error.
    """
    if not response.is_success:
        raise RequestFailed(explain(response))
    return response.json()


def unreachable(url: str, error: Exception) -> RequestFailed:
    """Return the error that says where no service answers, and how to start one."""
    return RequestFailed(
        f"No service answers at {url} ({error}). Start it with: serve run serve_config.yaml"
    )


def search(
    url: str,
    data: bytes,
    limit: int,
    max_distance: float = 2.0,
    filter: Sequence[str] = (),
    *,
    verify: Verify = "auto",
    verified: bool = False,
    group: Group | None = None,
) -> dict[str, Any]:
    """Return the answer of `/search` to a query: `found`, `texture` and `matches`.

    Args:
        data: the encoded query.
        limit: most photos.
        max_distance: of a photo, 0 to 2.
        filter: conditions on the photos' metadata, all of which must hold.
        verify, verified, group: see `deployments.query.SearchOptions`.

    Raises:
        RequestFailed
    """
    parameters: dict[str, Any] = {
        "limit": limit,
        "max_distance": max_distance,
        "filter": list(filter),
        "verify": verify,
        "verified": verified,
        **({"group": group} if group else {}),
    }
    try:
        response = httpx.post(
            f"{url}/search", params=parameters, content=data, headers=IMAGE, timeout=TIMEOUT
        )
    except httpx.TransportError as error:
        raise unreachable(url, error) from None
    return read_answer(response)


def fetch_stats(url: str) -> dict[str, Any]:
    """Return the answer of `/stats`.

    Raises:
        RequestFailed
    """
    try:
        return httpx.get(f"{url}/stats", timeout=TIMEOUT).raise_for_status().json()
    except httpx.HTTPError as error:
        raise unreachable(url, error) from None


async def for_each(
    url: str,
    items: Sequence[T],
    ask: Callable[[httpx.AsyncClient, T], Awaitable[R]],
    unit: str,
    *,
    in_flight: int = IN_FLIGHT,
    counts: Mapping[str, int] | None = None,
) -> list[R]:
    """Ask a service for something about each item, several at a time, with a progress bar.

    Args:
        ask: sends the requests for one item.
        unit: what an item is called beside the bar.
        in_flight: most items at a time.
        counts: shown beside the bar, as they are after each item.

    Returns:
        What `ask` returned, in the order of the items.

    Raises:
        RequestFailed: `ask` raised it; the items that were waiting are not asked for.
    """
    answers: dict[int, R] = {}
    queue = iter(enumerate(items))
    limits = httpx.Limits(max_connections=in_flight)
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT, limits=limits) as client:
        with tqdm(total=len(items), unit=unit, smoothing=0.1) as bar:

            async def work() -> None:
                for number, item in queue:
                    answers[number] = await ask(client, item)
                    if counts is not None:
                        bar.set_postfix(counts)
                    bar.update()

            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(in_flight):
                        group.create_task(work())
            except* RequestFailed as errors:
                raise errors.exceptions[0] from None
    return [answers[number] for number in range(len(items))]


@dataclass
class Summary:
    """What became of photos.

    Attributes:
        counts: photos by status: `created`, `exists` or `failed`.
        failures: the files that failed, and why.
    """

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[Path, str]] = field(default_factory=list)


async def index_files(
    url: str,
    files: Sequence[Path],
    in_flight: int = IN_FLIGHT,
    metadata: Metadata | None = None,
) -> Summary:
    """Index files through the service at `url`, with a progress bar.

    Args:
        metadata: given to each photo.
    """
    summary = Summary()

    async def index(client: httpx.AsyncClient, file: Path) -> None:
        try:
            summary.counts[await index_file(client, file, metadata)] += 1
        except (RequestFailed, OSError) as error:
            summary.counts["failed"] += 1
            summary.failures.append((file, str(error)))

    await for_each(url, files, index, "photo", in_flight=in_flight, counts=summary.counts)
    return summary


async def index_file(
    client: httpx.AsyncClient, file: Path, metadata: Metadata | None = None
) -> str:
    """Index one file unless it is stored already; return `created` or `exists`.

    Raises:
        RequestFailed
        OSError: the file can't be read.
    """
    data = await asyncio.to_thread(file.read_bytes)
    digest = hashlib.sha256(data).hexdigest()
    known = await send(client, "GET", f"/images/{digest}/record")
    if known.status_code == 200:
        return "exists"
    # A disk may hold names that are not UTF-8; Python can't send these as they are.
    parameters = {"filename": tidy(file.name), "metadata": json.dumps(metadata or {})}
    answer = await send(client, "POST", "/index", params=parameters, content=data, headers=IMAGE)
    return read_answer(answer)["images"][0]["status"]
