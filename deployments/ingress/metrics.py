"""What the ingress counts and times, for Prometheus.

`deployments/metrics.py` has what the other deployments measure.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import cache

from ray.serve.metrics import Counter, Histogram
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.ingress.progress import Progress
from deployments.metrics import Gauges
from deployments.records import SearchAnswer

# Seconds: from a thumbnail to the default time limit of an operation.
SECONDS = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60]
# What isn't a route of ours is one row, so that clients can't make new ones.
NO_ROUTE = "other"
HUNG_UP = "hung up"


class Measured:
    """ASGI middleware: counts and times all requests, refused ones too.

    Args:
        app: what answers them.
        routes: whose paths are told apart.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._routes = list(routes)
        self._requests = Counter(
            "inset_requests_total",
            description="HTTP requests, by route, method and status.",
            tag_keys=("route_path", "method", "status"),  # type: ignore[arg-type]  # Ray's is for one
        )
        self._seconds = Histogram(
            "inset_request_seconds",
            description="Seconds from the head of a request to the end of its answer.",
            boundaries=SECONDS,
            tag_keys=("route_path", "method"),  # type: ignore[arg-type]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.perf_counter(), HUNG_UP

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, note)
        finally:
            tags = {"route_path": self._route_of(scope), "method": _method_of(scope)}
            self._requests.inc(tags={**tags, "status": status})
            self._seconds.observe(time.perf_counter() - begun, tags=tags)

    def _route_of(self, scope: Scope) -> str:
        for route in self._routes:
            if route.matches(scope)[0] is not Match.NONE:
                return str(getattr(route, "path", NO_ROUTE))
        return NO_ROUTE


def _method_of(scope: Scope) -> str:
    method = str(scope["method"])
    return method if method in ("GET", "HEAD", "POST", "DELETE") else NO_ROUTE


class Counts:
    """Counts what came of photos and searches."""

    def __init__(self) -> None:
        self._photos = Counter(
            "inset_photos_total",
            description="Photos that were sent, by what came of them: created, exists or failed.",
            tag_keys=("outcome",),
        )
        self._searches = Counter(
            "inset_searches_total",
            description="Searches, by whether the query was found: yes, no, or unknown, which is "
            "without verification.",
            tag_keys=("found",),
        )

    def photo(self, outcome: str) -> None:
        """Count a photo that is done."""
        self._photos.inc(tags={"outcome": outcome})

    def search(self, answer: SearchAnswer) -> None:
        """Count a search that was answered."""
        found = {True: "yes", False: "no", None: "unknown"}[answer.found]
        self._searches.inc(tags={"found": found})


def measure_work(progress: Progress) -> Gauges:
    """Tell how many photos are being indexed, and for how long."""

    def measure() -> dict[str, float]:
        return {
            "inset_photos_in_work": progress.in_work,
            "inset_oldest_photo_seconds": progress.oldest_s,
        }

    return Gauges(
        {
            "inset_photos_in_work": "Photos that are being indexed.",
            "inset_oldest_photo_seconds": "How long the oldest of them has been worked at.",
        },
        measure,
    )


@cache
def _problems() -> Counter:
    return Counter(
        "inset_problems_total",
        description="Problems that were answered, of requests and of single photos in them, by "
        "title and status.",
        tag_keys=("title", "status"),  # type: ignore[arg-type]
    )


def count_problem(title: str, status: int) -> None:
    """Count a problem that is answered. Both say what kind it is, of which there are few."""
    _problems().inc(tags={"title": title, "status": str(status)})
