"""The page at `/`: the files in `page/`, with ETags, and headers that keep it to itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Route
from starlette.staticfiles import StaticFiles

FOLDER = Path(__file__).with_name("page")
HEADERS = {
    # Nothing inline and nothing from elsewhere. Pictures dropped on the page are shown from blobs.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # ask each time; the ETag makes the answer a short one
}


class _Files(StaticFiles):
    """The files of the page by their names; the page itself where the route has no name."""

    def get_path(self, scope: Any) -> str:
        return str(scope["path_params"].get("name", "index.html"))

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers.update(HEADERS)
        return response


def add_page(app: FastAPI) -> None:
    """Let an application serve the page at `/`, and its files below `/page/`."""
    files = GZipMiddleware(_Files(directory=FOLDER))
    for path in ("/", "/page/{name}"):
        app.router.routes.append(Route(path, files, methods=["GET"], include_in_schema=False))
