"""Photos indexed through the service: several in a request, each counted as soon as it is stored.

A request has the photos that wait for one. The service answers it by a line for each photo as soon
as that one is done, so whatever becomes of a request, it is known which of its photos are stored,
and only the others are sent again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from common.client import (
    ATTEMPTS,
    IN_FLIGHT,
    NotAllowed,
    RequestFailed,
    explain,
    for_each,
    open_async_client,
    refusal,
    send,
)
from deployments.ingress.filenames import tidy
from deployments.records import Metadata

REQUESTS = 3  # at a time, if there are as many photos
# A request has at most so many photos, and so many bytes if there are several.
MOST_PHOTOS, MOST_BYTES = 16, 32_000_000
RETRY_S = 2.0  # if the service doesn't say when
# After so many photos in a row that were not stored yet, the next ones are sent without asking,
# because each question is a request of its own.
ASKED_IN_VAIN = 16
LINES = "application/x-ndjson"


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
        in_flight: most photos at a time.
        metadata: given to each photo.

    Raises:
        NotAllowed: the service wants a key, or another one.
    """
    summary = Summary()
    async with open_async_client(url, in_flight) as client, Indexing(client, metadata) as indexing:

        async def index(file: Path) -> None:
            try:
                summary.counts[await indexing.index(file)] += 1
            except NotAllowed:
                raise
            except (RequestFailed, OSError) as error:
                summary.counts["failed"] += 1
                summary.failures.append((file, str(error)))

        await for_each(files, index, "photo", in_flight=in_flight, counts=summary.counts)
    return summary


class Again(Exception):
    """A photo got no answer of its own, but may get one if it is sent again.

    Args:
        reason: why.
        wait_s: seconds to wait before; None if nobody knows.
        alone: it should be the only one in its request, so that it is clear which is to blame.
        counts: as one of `ATTEMPTS`.
    """

    def __init__(
        self,
        reason: str,
        wait_s: float | None = None,
        *,
        alone: bool = False,
        counts: bool = True,
    ) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        self.alone = alone
        self.counts = counts


@dataclass(frozen=True, slots=True, eq=False)
class Photo:
    """A photo on its way.

    Attributes:
        status: gets the service's answer, `created` or `exists`, or the error.
    """

    filename: str
    data: bytes
    status: asyncio.Future[str]

    def settle(self, entry: dict[str, Any]) -> None:
        """Take the service's answer, unless nobody waits for it any more."""
        if entry["status"] != "failed":
            if not self.status.done():
                self.status.set_result(entry["status"])
            return
        problem = entry["error"]
        reason = f"{problem['status']}: {problem['detail']}"
        self.fail(Again(reason, RETRY_S) if problem["status"] == 503 else RequestFailed(reason))

    def fail(self, error: Exception) -> None:
        """Take the reason why there is no answer, unless nobody waits for it any more."""
        if not self.status.done():
            self.status.set_exception(error)


class Indexing:
    """Sends photos to the service, as many in a request as wait for one.

    At the end of a block, what is still under way is called off.

    Args:
        client: of the service.
        metadata: given to each photo.
    """

    def __init__(self, client: httpx.AsyncClient, metadata: Metadata | None = None) -> None:
        self._client = client
        self._metadata = metadata
        self._waiting: list[Photo] = []
        self._requests = set[asyncio.Task[None]]()
        self._most_photos, self._most_bytes = MOST_PHOTOS, MOST_BYTES
        self._may_ask = True
        self._in_vain = 0  # questions since the last photo that was stored already

    async def __aenter__(self) -> Indexing:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._waiting.clear()
        for request in self._requests:
            request.cancel()
        await asyncio.gather(*self._requests, return_exceptions=True)

    async def index(self, file: Path) -> str:
        """Index a file unless it is stored already; return `created` or `exists`.

        Raises:
            RequestFailed
            OSError: the file can't be read.
        """
        data = await asyncio.to_thread(file.read_bytes)
        if await self._is_stored(data):
            return "exists"
        # A disk may hold names that are not UTF-8; Python can't send these as they are.
        filename = tidy(file.name)
        attempts, alone = 0, False
        while True:
            photo = Photo(filename, data, asyncio.get_running_loop().create_future())
            try:
                if alone:
                    await self._send([photo])
                else:
                    self._waiting.append(photo)
                    self._send_those_that_wait()
                status = await photo.status
                if status == "exists":
                    self._in_vain = 0
                return status
            except Again as again:
                attempts += again.counts
                if attempts == ATTEMPTS:
                    raise RequestFailed(f"given up after {ATTEMPTS} attempts: {again}") from None
                alone = alone or again.alone
                wait_s = 2.0 ** (attempts - 1) if again.wait_s is None else again.wait_s
                await asyncio.sleep(wait_s if again.counts else 0)

    async def _is_stored(self, data: bytes) -> bool:
        if not self._may_ask or self._in_vain >= ASKED_IN_VAIN:
            return False
        digest = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
        answer = await send(self._client, "GET", f"/images/{digest}/record")
        if answer.status_code == 401:
            raise refusal(answer)
        if answer.status_code == 403:  # the key is for adding photos alone
            self._may_ask = False
        # Somebody may have given this id to another photo.
        stored = answer.status_code == 200 and answer.json()["sha256"] == digest
        self._in_vain = 0 if stored else self._in_vain + 1
        return stored

    def _send_those_that_wait(self) -> None:
        while self._waiting and len(self._requests) < REQUESTS:
            request = asyncio.create_task(self._send(self._next_photos()))
            self._requests.add(request)
            request.add_done_callback(self._end)

    def _end(self, request: asyncio.Task[None]) -> None:
        self._requests.discard(request)
        if not request.cancelled():
            self._send_those_that_wait()

    def _next_photos(self) -> list[Photo]:
        """Take photos for a request from those that wait."""
        photos = [self._waiting.pop(0)]
        size = len(photos[0].data)
        while self._waiting and len(photos) < self._most_photos:
            size += len(self._waiting[0].data)
            if size > self._most_bytes:
                break
            photos.append(self._waiting.pop(0))
        return photos

    async def _send(self, photos: Sequence[Photo]) -> None:
        """Send photos in one request, and give each its answer as it comes, or an error."""
        without_answer = dict(enumerate(photos))
        error: Exception = Again("the service's answer ends early", alone=True)
        body, content_type = encode_multipart(photos, self._metadata)
        headers = {"Content-Type": content_type, "Accept": LINES}
        try:
            async with self._client.stream(
                "POST", "/index", content=body, headers=headers
            ) as response:
                if response.is_success:
                    async for entry in read_lines(response):
                        without_answer.pop(entry["part"]).settle(entry)
                else:
                    await response.aread()
                    error = self._judge(response, photos)
        except httpx.TransportError as trouble:
            reason = f"{type(trouble).__name__} {trouble}".strip()
            error = Again(reason, alone=True)
        except (ValueError, LookupError, TypeError) as trouble:
            error = RequestFailed(f"the service's answer can't be read ({trouble!r})")
        finally:
            for photo in without_answer.values():
                photo.fail(error)

    def _judge(self, response: httpx.Response, photos: Sequence[Photo]) -> Exception:
        """Return what a response that refuses a request as a whole means for each of its photos."""
        if response.status_code == 503:
            return Again(explain(response), float(response.headers.get("Retry-After", RETRY_S)))
        error = refusal(response)
        if len(photos) == 1 or isinstance(error, NotAllowed):
            return error
        if response.status_code == 413:
            size = sum(len(photo.data) for photo in photos)
            self._most_photos = min(self._most_photos, len(photos) // 2)
            self._most_bytes = min(self._most_bytes, size // 2)
        return Again(explain(response), alone=response.status_code != 413, counts=False)


def encode_multipart(photos: Sequence[Photo], metadata: Metadata | None) -> tuple[bytes, str]:
    """Return the body of a request, and its content type."""
    # RFC 8187 has a spelling for each character, unlike the plain `filename`.
    parts = [
        (f"name=\"file\"; filename*=utf-8''{quote(photo.filename, safe='')}", photo.data)
        for photo in photos
    ]
    if metadata:
        parts.append(('name="metadata"', json.dumps(metadata).encode()))
    boundary = secrets.token_hex(16)
    body = bytearray()
    for name, content in parts:
        head = f"--{boundary}\r\nContent-Disposition: form-data; {name}\r\n\r\n"
        body += head.encode() + content + b"\r\n"
    body += f"--{boundary}--\r\n".encode()
    return bytes(body), f"multipart/form-data; boundary={boundary}"


async def read_lines(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """Yield the lines of an answer. One that isn't whole, because the answer is cut, is left out.

    Raises:
        ValueError: a line is no JSON.
        httpx.TransportError: the answer is cut.
    """
    rest = b""
    async for piece in response.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield json.loads(line)
