"""Answer HEAD like GET, without the body."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEAD = "inset.head"


class HeadAsGet:
    """ASGI middleware: let GET routes answer HEAD, and drop what they send but the headers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("method") != "HEAD":
            await self.app(scope, receive, send)
            return

        async def send_headers(message: Message) -> None:
            await send({**message, "body": b""} if "body" in message else message)

        await self.app({**scope, "method": "GET", _HEAD: True}, receive, send_headers)


def is_head(request: Request) -> bool:
    """Return whether the client asked for the headers only, so that no body need be made."""
    return _HEAD in request.scope
