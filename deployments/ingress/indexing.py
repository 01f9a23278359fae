"""Index the photos of a request: several at a time, each answered as soon as it is done."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from itertools import islice

from fastapi.responses import StreamingResponse
from starlette.types import Send

from deployments.errors import TooLarge
from deployments.ingress.progress import Progress
from deployments.ingress.schemas import FailedImage
from deployments.outcomes import Outcome, go_on, outcome_of_each
from deployments.records import IndexedImage, NewPhoto

# How many images of one request are indexed at the same time: two groups, if these are larger.
PARTS_IN_FLIGHT = 16

LINES_TYPE = "application/x-ndjson"
_WEIGHT = re.compile(r"q=([01](?:\.[0-9]*)?)")

Result = Outcome[IndexedImage]
ReadPhoto = Callable[[], Awaitable[NewPhoto]]


def wants_lines(accept: str) -> bool:
    """Return whether a client wants its answer line by line.

    Args:
        accept: the header `Accept`. It must name the type of lines, and not prefer JSON to it.
    """
    qualities = dict(map(_quality, accept.lower().split(",")))
    json_names = ("application/json", "application/*", "*/*")
    of_json = next((qualities[name] for name in json_names if name in qualities), 0)
    of_lines = qualities.get(LINES_TYPE, 0)
    return of_lines > 0 and of_lines >= of_json


def _quality(element: str) -> tuple[str, float]:
    """Return a type that is accepted, and how much it is wanted, 0 to 1."""
    media_type, *parameters = map(str.strip, element.split(";"))
    weights = [found[1] for found in map(_WEIGHT.fullmatch, parameters) if found]
    return media_type, float(weights[0]) if weights else 1


def check_time(progress: Progress, count: int, request_timeout_s: float | None) -> None:
    """Check that images of a new request can be indexed before the request is cut off.

    A single image is always tried, and so are all as long as nobody knows how long they take.

    Raises:
        TooLarge
    """
    seconds = progress.seconds_for(count)
    if count == 1 or request_timeout_s is None or seconds is None or seconds <= request_timeout_s:
        return
    others = f", after {progress.unfinished} others" if progress.unfinished else ""
    most = max(1, progress.photos_within(request_timeout_s) or 0)
    raise TooLarge(
        f"{count} photos would take about {seconds:.0f} s{others}, and a request is cut off after "
        f"{request_timeout_s:g} s: send at most {most} at once."
    )


async def index_each(
    photos: Sequence[ReadPhoto],
    index: Callable[[list[NewPhoto]], Awaitable[list[Result]]],
    progress: Progress,
    group: int,
) -> AsyncGenerator[tuple[int, Result], None]:
    """Index photos in groups, several at a time.

    If this is closed or cancelled, photos that weren't begun are never begun.

    Args:
        photos: functions that read them.
        index: indexes a group of them.
        group: how many go together at most.

    Yields:
        As soon as one is done: its number, and its record or error.
    """

    async def work(numbers: Sequence[int]) -> list[tuple[int, Result]]:
        read = await outcome_of_each(photos[number]() for number in numbers)
        good = [photo for photo in read if isinstance(photo, NewPhoto)]
        try:
            indexed = await index(good) if good else []
        except Exception as error:
            indexed = [error] * len(good)
        return list(zip(numbers, go_on(read, indexed), strict=True))

    left = count = len(photos)
    groups = (range(start, min(start + group, count)) for start in range(0, count, group))
    at_once = max(2, PARTS_IN_FLIGHT // group)
    running: set[asyncio.Task[list[tuple[int, Result]]]] = set()
    progress.unfinished += left
    try:
        while left:
            for numbers in islice(groups, at_once - len(running)):
                running.add(asyncio.create_task(work(numbers)))
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                for result in task.result():
                    left -= 1
                    progress.unfinished -= 1
                    yield result
    finally:
        progress.unfinished -= left
        for task in running:
            task.cancel()


class Lines(StreamingResponse):
    """A line of JSON for each image. If the client hangs up, what makes the lines is closed."""

    media_type = LINES_TYPE

    def __init__(self, lines: AsyncGenerator[bytes, None]) -> None:
        super().__init__(lines)
        self._lines = lines

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self._lines):
            await super().stream_response(send)


def write_line(number: int, entry: IndexedImage | FailedImage) -> bytes:
    """Return the line of an image.

    Args:
        number: its place among the parts of the request.
    """
    return json.dumps({"part": number, **entry.model_dump(mode="json")}).encode() + b"\n"
