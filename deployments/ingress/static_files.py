"""Serve the page at `/` and its files, with ETags and strict security headers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

FOLDER = Path(__file__).with_name("page")
HEADERS = {
    # No inline code and nothing from other origins. Images dropped on the page are shown as blobs.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-cache",  # revalidate each time; with the ETag that is a short answer
}


class _Files(StaticFiles):
    """The page's files by name; the route without a name serves `index.html`."""

    def get_path(self, scope: Any) -> str:
        return str(scope["path_params"].get("name", "index.html"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The files are small: they are sent whole, and no range of them can be wrong.
        headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers.update(HEADERS)
        response.headers["Accept-Ranges"] = "none"
        return response


def add_page(app: FastAPI) -> None:
    """Let an application serve the page at `/` and its files below `/page/`."""
    files = GZipMiddleware(_Files(directory=FOLDER))
    for path in ("/", "/page/{name}"):
        app.router.routes.append(Route(path, files, methods=["GET"], include_in_schema=False))
