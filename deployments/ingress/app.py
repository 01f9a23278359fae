"""The HTTP routes, and their description at /openapi.json."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.errors import BadParameter, InsetError, StartupError
from deployments.ingress import sessions
from deployments.ingress.bodies import SentImage, has_body, read_images
from deployments.ingress.door import Door, is_this_machine_alone
from deployments.ingress.keys import Keys
from deployments.ingress.problems import Problem, add_problem_handlers, describe_problems
from deployments.ingress.schemas import (
    BINARY,
    METADATA_SCHEMA,
    FailedImage,
    Health,
    Id,
    IndexAnswer,
    IndexParameters,
    Listing,
    ListParameters,
    SearchParameters,
    describe_body,
    describe_errors_as_problems,
)
from deployments.ingress.service import Inset
from deployments.ingress.sessions import Failures, needs
from deployments.ingress.static_files import add_page
from deployments.ingress.uploads import Uploads
from deployments.limits import THUMBNAIL_BYTES, THUMBNAIL_SIDE, THUMBNAIL_TYPE
from deployments.metadata import parse_metadata
from deployments.records import IndexedImage, Record, SearchAnswer, Stats
from deployments.settings import HttpSettings

# How many images of one multipart request are indexed at the same time.
PARTS_IN_FLIGHT = 16
SEQUENCE_HEADER = "Inset-Sequence"

router = APIRouter()


def build_app(
    inset: Inset, *, host: str = "127.0.0.1", http: HttpSettings | None = None
) -> ASGIApp:
    """Return the ASGI application of a service.

    Args:
        host: where it listens.
        http: who may come in; by default everybody who can reach it there.

    Raises:
        StartupError: it listens where others reach it, and there are no keys; or these can't be
            read.
    """
    http = http or HttpSettings()
    keys = Keys(None if http.keys_path is None else Path(http.keys_path))
    if not (keys.are_needed or is_this_machine_alone(host)):
        raise StartupError(
            f"http_options.host is {host}, so others can reach the service, and there are no keys "
            f"in {keys.path}. Make a key (scripts/keys.py make NAME --scopes admin), or set "
            "http_options.host to 127.0.0.1."
        )
    app = FastAPI(
        title="Inset",
        version="1",
        summary="Give it a small picture: it finds the photos that contain it, and shows where.",
        docs_url=None,  # FastAPI's documentation pages load scripts from other servers
        redoc_url=None,
        redirect_slashes=False,
        # A 405 lists their methods; `include_router` would hide them.
        routes=[*router.routes, *sessions.router.routes],
    )
    app.state.inset = inset
    app.state.keys = keys
    app.state.failures = Failures()
    add_page(app)
    add_problem_handlers(app)
    describe = app.openapi
    app.openapi = lambda: describe_errors_as_problems(describe())  # type: ignore[method-assign]  # FastAPI's documented way
    return Door(HeadAsGet(Uploads(app, inset.limits)), host, http)


class HeadAsGet:
    """ASGI middleware: answer HEAD like GET. The server in front drops the body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("method") == "HEAD":
            scope = {**scope, "method": "GET"}
        await self.app(scope, receive, send)


async def _inset(request: Request) -> Inset:
    inset: Inset = request.app.state.inset
    return inset


Injected = Annotated[Inset, Depends(_inset)]


@router.post(
    "/index",
    status_code=201,
    responses=describe_problems(400, 409, 413, 415, 422, 507),
    openapi_extra=describe_body(
        {
            "file": {"type": "array", "items": BINARY, "minItems": 1},
            "metadata": {**METADATA_SCHEMA, "description": "instead of ?metadata="},
        },
        required=True,
    ),
    dependencies=[needs("write")],
)
async def index(
    request: Request, parameters: Annotated[IndexParameters, Query()], inset: Injected
) -> IndexAnswer:
    """Store one image (raw body) or several (multipart parts `file`).

    If some of several parts are bad, their answers have `status: failed`, and the others are
    stored. If all are bad, the answer is the error of the first.
    """
    images, fields = await read_images(
        request, inset.limits.max_image_bytes, fields=frozenset({"metadata"})
    )
    if parameters.id is not None and len(images) > 1:
        raise BadParameter("?id= names one photo: send one image with it.")
    if parameters.metadata is not None and "metadata" in fields:
        raise BadParameter("There is metadata in both the URL and the body: send it once.")
    given = fields.get("metadata", parameters.metadata)
    metadata = None if given is None else parse_metadata(given)
    gate = asyncio.Semaphore(PARTS_IN_FLIGHT)

    async def index_one(image: SentImage) -> IndexedImage | InsetError:
        async with gate:
            try:
                return await inset.index(
                    await image.read(),
                    id=parameters.id,
                    filename=image.filename or parameters.filename,
                    confidence_threshold=parameters.confidence_threshold,
                    metadata=metadata,
                )
            except InsetError as error:
                return error

    results = await asyncio.gather(*map(index_one, images))
    errors = [result for result in results if isinstance(result, InsetError)]
    if len(errors) == len(results):
        raise errors[0]
    return IndexAnswer(
        images=[
            FailedImage(filename=image.filename, error=Problem.of(result))
            if isinstance(result, InsetError)
            else result
            for image, result in zip(images, results, strict=True)
        ]
    )


@router.post(
    "/search",
    responses=describe_problems(400, 404, 413, 415, 422),
    openapi_extra=describe_body({"file": BINARY}, required=False),
    dependencies=[needs("search")],
)
async def search(
    request: Request, parameters: Annotated[SearchParameters, Query()], inset: Injected
) -> SearchAnswer:
    """Find the photos that match a query: an image in the body, `?text=`, or a photo's `?id=`."""
    query = parameters.model_dump()
    if parameters.box is not None:
        query["box"] = tuple(map(float, parameters.box.split(",")))
    data = None
    if await has_body(request):
        images, _ = await read_images(request, inset.limits.max_image_bytes)
        if len(images) > 1:
            raise BadParameter("Send one image to search by, not several.")
        data = await images[0].read()
    return await inset.search(data, **query)


@router.get("/images", responses=describe_problems(400), dependencies=[needs("read")])
async def list_images(parameters: Annotated[ListParameters, Query()], inset: Injected) -> Listing:
    """List the records of the stored photos, in the order of their ids."""
    records = await inset.list(parameters.after, parameters.limit)
    more = len(records) == parameters.limit
    following = f"/images?after={records[-1].id}&limit={parameters.limit}" if more else None
    return Listing(images=records, next=following)


@router.get(
    "/images/{id}",
    response_class=Response,
    responses={
        200: {
            "description": "The original bytes",
            "content": {"image/*": {"schema": BINARY}},
        },
        304: {"description": "Unchanged"},
        **describe_problems(400, 404),
    },
    dependencies=[needs("read")],
)
async def get_image(id: Id, request: Request, inset: Injected) -> Response:
    """Return the original bytes of a photo."""
    record, data = await inset.get(id)
    return _answer_image(request, data, record.media_type, record.sha256)


@router.get(
    "/images/{id}/thumbnail",
    response_class=Response,
    responses={
        200: {
            "description": f"At most {THUMBNAIL_BYTES:,} bytes, and at most {THUMBNAIL_SIDE} "
            "pixels wide and high",
            "content": {THUMBNAIL_TYPE: {"schema": BINARY}},
        },
        304: {"description": "Unchanged"},
        **describe_problems(400, 404, 413, 415, 422),
    },
    dependencies=[needs("read")],
)
async def get_thumbnail(id: Id, request: Request, inset: Injected) -> Response:
    """Return a thumbnail of a photo, upright, in the proportions of the photo.

    If an older version stored the photo without one, it is made now. If the original then
    exceeds the current limits, the answer is an error.
    """
    data = await inset.thumbnail(id)
    return _answer_image(request, data, THUMBNAIL_TYPE, hashlib.sha256(data).hexdigest())


@router.get(
    "/images/{id}/record", responses=describe_problems(400, 404), dependencies=[needs("read")]
)
async def get_record(id: Id, inset: Injected) -> Record:
    """Return the record of a photo."""
    return await inset.record(id)


@router.delete(
    "/images/{id}",
    status_code=204,
    response_class=Response,
    responses={
        204: {
            "description": "Removed",
            "headers": {
                SEQUENCE_HEADER: {
                    "description": "the store's sequence number of this change",
                    "schema": {"type": "integer"},
                    "required": True,
                }
            },
        },
        **describe_problems(400, 404, 507),
    },
    dependencies=[needs("admin")],
)
async def delete_image(id: Id, inset: Injected) -> Response:
    """Remove a photo. No search that starts after the answer finds it."""
    sequence = await inset.delete(id)
    return Response(status_code=204, headers={SEQUENCE_HEADER: str(sequence)})


@router.get("/healthz", responses=describe_problems())
async def health(inset: Injected) -> Health:
    """Check that every deployment answers, so that photos can be indexed and found."""
    await inset.check()
    return Health()


@router.get("/stats", responses=describe_problems(), dependencies=[needs()])
async def stats(inset: Injected) -> Stats:
    """Return counts, model names and sequence numbers."""
    return await inset.stats()


def _answer_image(request: Request, data: bytes, media_type: str, digest: str) -> Response:
    """Return an answer with the bytes of an image, or a 304 if the client has them already."""
    headers = {
        "ETag": f'"{digest}"',
        "Cache-Control": "no-cache",
        # The media type is the one that the decoder found, so browsers need not guess.
        "X-Content-Type-Options": "nosniff",
    }
    tags = request.headers.get("if-none-match", "")
    if headers["ETag"] in tags or tags.strip() == "*":
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=media_type, headers=headers)
