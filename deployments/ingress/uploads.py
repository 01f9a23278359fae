"""Take in the bodies of requests: so many bytes, so many requests, in so much time."""

from __future__ import annotations

import asyncio

from ray.exceptions import RayActorError, TaskCancelledError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.errors import InsetError, TooLarge, TooSlow, Unavailable
from deployments.ingress.problems import Problem, respond
from deployments.settings import LimitSettings

GRACE_S = 20  # seconds that a body may take, however little of it comes
LEAST_RATE = 10_000  # bytes that have to come in each second after that, on average
MOST_WAITING = 1000  # requests that wait for their bodies; Serve lets in twice as many


class Uploads:
    """ASGI middleware: take in bodies within limits.

    What is too large, or too much beside the other bodies, is refused at once if Content-Length
    says so, else when the bytes come. The server in front reads what is left of the body and drops
    it, so that the client sees the answer and the connection stays usable. A client that is too
    slow loses its connection.

    Args:
        app: the application that answers the requests.
        limits: `max_request_bytes` holds for one body, `max_bodies_bytes` for all of them.
        grace_s: how long a body may take, however little of it comes, seconds.
        least_rate: how many bytes have to come in each second after that, on average.
        most_waiting: how many requests may wait for their bodies at the same time.

    Attributes:
        held: bytes of the bodies of all requests that are not answered yet.
        waiting: how many requests wait for their bodies.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: LimitSettings,
        *,
        grace_s: float = GRACE_S,
        least_rate: float = LEAST_RATE,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        self.app = app
        # What is too much for all together would be refused for ever: then it is too large.
        self.max_request_bytes = min(limits.max_request_bytes, limits.max_bodies_bytes)
        self.max_bodies_bytes = limits.max_bodies_bytes
        self.grace_s = grace_s
        self.least_rate = least_rate
        self.most_waiting = most_waiting
        self.held = 0
        self.waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        length = _announced(scope)
        if length == 0:
            await self.app(scope, receive, send)
            return
        try:
            if self.waiting >= self.most_waiting:
                raise Unavailable(f"{self.waiting:,} requests are sending already: try again.")
            self.check(length or 0, self.held + (length or 0))
        except InsetError as error:
            await respond(Problem.of(error), error)(scope, receive, send)
            return
        body = _Body(self, receive)
        try:
            await self.app(scope, body.receive, send)
        finally:
            body.give_back()

    def check(self, count: int, together: int) -> None:
        """Check the size of a body, and that of all bodies.

        Raises:
            TooLarge: the body has too many bytes.
            Unavailable: all bodies have too many together.
        """
        if count > self.max_request_bytes:
            raise TooLarge(
                f"The request has more than {self.max_request_bytes:,} bytes: send less at once."
            )
        if together > self.max_bodies_bytes:
            raise Unavailable(
                f"The service works on requests of {self.max_bodies_bytes:,} bytes at the same "
                "time, and has no room for this one now: try again."
            )


class _Body:
    """The body of one request, while it comes and until the request is answered."""

    def __init__(self, uploads: Uploads, receive: Receive) -> None:
        self._uploads = uploads
        self._receive = receive
        self._count = 0
        self._start = asyncio.get_running_loop().time()
        self._is_coming = True
        uploads.waiting += 1

    async def receive(self) -> Message:
        """Return the next message, as ASGI has it.

        Raises:
            TooLarge, TooSlow, Unavailable: the answer to the request.
        """
        if not self._is_coming:  # the message will be that the client hung up, whenever it does
            return await self._next()
        uploads = self._uploads
        allowed_s = uploads.grace_s + self._count / uploads.least_rate
        try:
            async with asyncio.timeout_at(self._start + allowed_s):
                message = await self._next()
        except TimeoutError:
            raise TooSlow(
                f"Only {self._count:,} bytes came in {allowed_s:.0f} s: send at least "
                f"{uploads.least_rate:,} bytes a second."
            ) from None
        size = len(message.get("body", b""))
        self._count += size
        uploads.held += size
        if not message.get("more_body", False):
            self._end()
        uploads.check(self._count, uploads.held)
        return message

    async def _next(self) -> Message:
        try:
            return await self._receive()
        except (TaskCancelledError, RayActorError):
            # What Serve says if the client hung up, or if its proxy is gone and the client with it.
            return {"type": "http.disconnect"}

    def give_back(self) -> None:
        """Give the bytes back, and the place among those that wait."""
        self._end()
        self._uploads.held -= self._count
        self._count = 0

    def _end(self) -> None:
        self._uploads.waiting -= self._is_coming
        self._is_coming = False


def _announced(scope: Scope) -> int | None:
    """Return how many bytes the body of a request will have; None if it doesn't say that."""
    if scope["type"] != "http":
        return 0
    headers = Headers(scope=scope)
    if "transfer-encoding" in headers:
        return None
    return int(headers.get("content-length", 0))  # the server in front has checked it
