"""A client of the service over HTTP, with several requests at a time.

If the service asks for a key (`scripts/keys.py` makes them), put it into the environment variable
INSET_KEY. It is sent in a header, and neither stands in a URL nor is printed.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import httpx
from tqdm import tqdm

from deployments.query import Group, Verify

URL = "http://127.0.0.1:8000"  # where serve_config.yaml has the service
KEY = "INSET_KEY"
IN_FLIGHT = 8  # requests
ATTEMPTS = 5
# Longer than the service's own limit, so that the service says what was wrong.
TIMEOUT = httpx.Timeout(130, connect=10)
IMAGE = {"Content-Type": "image/*"}

T = TypeVar("T")
R = TypeVar("R")


class RequestFailed(Exception):
    """The service refused a request or can't be reached; the message says why."""


class NotAllowed(RequestFailed):
    """The key is missing, unknown, or may not do this. The next request would fare the same."""


def key_headers() -> dict[str, str]:
    """Return the header that shows the service the key; none if there is no key.

    Raises:
        NotAllowed: what is in the environment can't be sent.
    """
    key = os.environ.get(KEY, "").strip()
    if not re.fullmatch(r"[!-~]*", key):
        raise NotAllowed(f"{KEY} is no key: set it to one that scripts/keys.py has made.")
    return {"Authorization": f"Bearer {key}"} if key else {}


def open_client(url: str, timeout: httpx.Timeout | float = TIMEOUT) -> httpx.Client:
    """Return a client of the service that sends the key.

    Raises:
        NotAllowed: see `key_headers`.
    """
    return httpx.Client(base_url=url, headers=key_headers(), timeout=timeout)


def open_async_client(url: str, in_flight: int = IN_FLIGHT) -> httpx.AsyncClient:
    """Return a client of the service that sends the key, and so many requests at a time.

    Raises:
        NotAllowed: see `key_headers`.
    """
    limits = httpx.Limits(max_connections=in_flight)
    return httpx.AsyncClient(base_url=url, headers=key_headers(), timeout=TIMEOUT, limits=limits)


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
        reason = f"{response.status_code}: {response.json()['detail']}"
    except (ValueError, KeyError, TypeError):
        reason = f"{response.status_code}: {response.text[:200]}"
    if response.status_code == 401:
        reason += f" Set {KEY} to a key of this service (scripts/keys.py makes them)."
    return reason


def refusal(response: httpx.Response) -> RequestFailed:
    """Return the error that a response is."""
    kind = NotAllowed if response.status_code in (401, 403) else RequestFailed
    return kind(explain(response))


def check(response: httpx.Response) -> httpx.Response:
    """Return a response that is a success.

    Raises:
        RequestFailed: it is an error.
    """
    if not response.is_success:
        raise refusal(response)
    return response


def read_answer(response: httpx.Response) -> dict[str, Any]:
    """Return the content of a response.

    Raises:
        RequestFailed: it is an error.
    """
    return check(response).json()


def unreachable(url: str, error: Exception) -> RequestFailed:
    """Return the error that says where no service answers, and how to start one."""
    return RequestFailed(
        f"No service answers at {url} ({error}). Start it with: serve run serve_config.yaml"
    )


def call(url: str, method: str, path: str, **request: Any) -> httpx.Response:
    """Send a single request; return the answer, which is a success.

    Args:
        request: see `httpx.Client.request`.

    Raises:
        RequestFailed
    """
    try:
        with open_client(url) as client:
            response = client.request(method, path, **request)
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise unreachable(url, error) from None
    return check(response)


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
    return call(url, "POST", "/search", params=parameters, content=data, headers=IMAGE).json()


def fetch_stats(url: str) -> dict[str, Any]:
    """Return the answer of `/stats`.

    Raises:
        RequestFailed
    """
    return call(url, "GET", "/stats").json()


async def for_each(
    items: Sequence[T],
    ask: Callable[[T], Awaitable[R]],
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
    with tqdm(total=len(items), unit=unit, smoothing=0.1) as bar:

        async def work() -> None:
            for number, item in queue:
                answers[number] = await ask(item)
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
