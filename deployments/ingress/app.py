"""The HTTP routes, and their description at /openapi.json."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import cache, partial
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp

from deployments.errors import BadParameter
from deployments.ingress import sessions
from deployments.ingress.bodies import SentImage, has_body, read_images
from deployments.ingress.door import Door, refuse_others
from deployments.ingress.head import HeadAsGet
from deployments.ingress.indexing import (
    LINES_TYPE,
    Lines,
    Result,
    check_time,
    wants_lines,
    write_line,
)
from deployments.ingress.keys import Keys
from deployments.ingress.metrics import Measured, count_problem
from deployments.ingress.originals import answer_original, answer_thumbnail
from deployments.ingress.parameters import StrictRoute
from deployments.ingress.problems import add_problem_handlers, describe_problems, problem_of
from deployments.ingress.schemas import (
    BINARY,
    LINE_SCHEMA,
    METADATA_SCHEMA,
    FailedImage,
    Health,
    Id,
    IndexAnswer,
    IndexParameters,
    Life,
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
from deployments.records import IndexedImage, NewPhoto, Readiness, Record, SearchAnswer, Stats
from deployments.settings import HttpSettings

SEQUENCE_HEADER = "Inset-Sequence"

router = APIRouter(route_class=StrictRoute)


def build_app(
    inset: Inset,
    *,
    host: str = "127.0.0.1",
    http: HttpSettings | None = None,
    request_timeout_s: float | None = None,
    behind_haproxy: bool = False,
) -> ASGIApp:
    """Return the ASGI application of a service.

    Args:
        host: where it listens.
        http: who may come in; by default everybody who can reach it there.
        request_timeout_s: when Serve cuts a request off; None if it never does.
        behind_haproxy: see `Door`.

    Raises:
        StartupError: others can reach it, and there are no keys; or these can't be read.
    """
    http = http or HttpSettings()
    keys = Keys(None if http.keys_path is None else Path(http.keys_path))
    if not keys.are_needed:
        refuse_others(host, http, keys.path)
    app = FastAPI(
        title="Inset",
        version="1",
        summary="Give it a small picture: it finds the photos that contain it, and shows where.",
        openapi_url=None,  # a route below has it, which checks its parameters as the others do
        docs_url=None,  # FastAPI's documentation pages load scripts from other servers
        redoc_url=None,
        redirect_slashes=False,  # it would redirect to whatever host the client names
        # A 405 lists their methods; `include_router` would hide them.
        routes=[*router.routes, *sessions.router.routes],
    )
    app.state.inset = inset
    app.state.keys = keys
    app.state.failures = Failures()
    app.state.request_timeout_s = request_timeout_s
    add_page(app)
    add_problem_handlers(app)
    describe = app.openapi
    app.openapi = cache(lambda: describe_errors_as_problems(describe()))  # type: ignore[method-assign]  # FastAPI's documented way
    door = Door(HeadAsGet(Uploads(app, inset.limits)), host, http, behind_haproxy)
    return Measured(door, app.routes)


async def _inset(request: Request) -> Inset:
    inset: Inset = request.app.state.inset
    return inset


Injected = Annotated[Inset, Depends(_inset)]


@router.post(
    "/index",
    status_code=201,
    response_model=IndexAnswer,
    responses={
        200: {
            "description": f"With `Accept: {LINES_TYPE}`: a line for each image, as soon as it is "
            "done",
            "content": {LINES_TYPE: {"schema": LINE_SCHEMA}},
        },
        **describe_problems(408, 409, 413, 415, 422, 507),
    },
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
) -> IndexAnswer | Response:
    """Store one image (raw body) or several (multipart parts `file`).

    If some of several parts are bad, their answers have `status: failed`, and the others are
    stored. If all are bad, the answer is the error of the first, unless it comes line by line.
    """
    inset.check_room(inset.progress)  # before the body is read
    images, fields = await read_images(
        request, inset.limits.max_image_bytes, fields=frozenset({"metadata"})
    )
    if parameters.id is not None and len(images) > 1:
        raise BadParameter("?id= names one photo: send one image with it.")
    if parameters.metadata is not None and "metadata" in fields:
        raise BadParameter("There is metadata in both the URL and the body: send it once.")
    given = fields.get("metadata", parameters.metadata)
    metadata = None if given is None else parse_metadata(given)
    check_time(inset.progress, len(images), request.app.state.request_timeout_s)

    async def read(image: SentImage) -> NewPhoto:
        return NewPhoto(
            data=await image.read(),
            id=parameters.id,
            filename=image.filename or parameters.filename,
            confidence_threshold=parameters.confidence_threshold,
            metadata=metadata,
        )

    def entry(number: int, result: Result) -> IndexedImage | FailedImage:
        if isinstance(result, Exception):
            problem = problem_of(request, result)
            count_problem(problem.title, problem.status)
            return FailedImage(filename=images[number].filename, error=problem)
        return result

    results = inset.index_each([partial(read, image) for image in images])
    if wants_lines(", ".join(request.headers.getlist("accept"))):

        async def lines() -> AsyncGenerator[bytes, None]:
            async with aclosing(results):
                async for number, result in results:
                    yield write_line(number, entry(number, result))

        return Lines(lines())
    async with aclosing(results):
        done = {number: result async for number, result in results}
    in_order = [done[number] for number in range(len(images))]
    errors = [result for result in in_order if isinstance(result, Exception)]
    if len(errors) == len(in_order):
        raise errors[0]
    return IndexAnswer(images=[entry(*numbered) for numbered in enumerate(in_order)])


@router.post(
    "/search",
    responses=describe_problems(404, 408, 413, 415, 422),
    openapi_extra=describe_body({"file": BINARY}, required=False),
    dependencies=[needs("search")],
)
async def search(
    request: Request, parameters: Annotated[SearchParameters, Query()], inset: Injected
) -> SearchAnswer:
    """Find the photos that match a query: an image in the body, `?text=`, or a photo's `?id=`."""
    inset.check_room(inset.search_progress)  # before the body is read
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


@router.get("/images", responses=describe_problems(), dependencies=[needs("read")])
async def list_images(parameters: Annotated[ListParameters, Query()], inset: Injected) -> Listing:
    """List the records of the stored photos, in the order of their ids."""
    records = await inset.list(parameters.after, parameters.limit, parameters.chunks)
    following = None
    if len(records) == parameters.limit:
        short = "" if parameters.chunks else "&chunks=false"
        following = f"/images?after={records[-1].id}&limit={parameters.limit}{short}"
    return Listing(images=records, next=following)


@router.get(
    "/images/{id}",
    response_class=Response,
    responses={
        200: {
            "description": "The original bytes",
            "content": {"image/*": {"schema": BINARY}},
        },
        206: {
            "description": "The part of them that `Range` asks for",
            "content": {"image/*": {"schema": BINARY}},
        },
        304: {"description": "Unchanged"},
        **describe_problems(404, 416),
    },
    dependencies=[needs("read")],
)
async def get_image(id: Id, request: Request, inset: Injected) -> Response:
    """Return the original bytes of a photo, or a part of them."""
    return await answer_original(request, inset, id)


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
        **describe_problems(404, 413, 415, 422),
    },
    dependencies=[needs("read")],
)
async def get_thumbnail(id: Id, request: Request, inset: Injected) -> Response:
    """Return a thumbnail of a photo, upright, in the proportions of the photo.

    If an older version stored the photo without one, it is made now. If the original then
    exceeds the current limits, the answer is an error.
    """
    data = await inset.thumbnail(id)
    return answer_thumbnail(request, data)


@router.get("/images/{id}/record", responses=describe_problems(404), dependencies=[needs("read")])
async def get_record(id: Id, inset: Injected) -> Record:
    """Return the record of a photo."""
    return await inset.record(id)


@router.delete(
    "/images/{id}",
    status_code=204,
    response_class=Response,
    responses={
        204: {
            "description": "Removed; or it was before, and this repeats the answer",
            "headers": {
                SEQUENCE_HEADER: {
                    "description": "the store's sequence number of this change",
                    "schema": {"type": "integer"},
                    "required": True,
                }
            },
        },
        **describe_problems(404, 507),
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


@router.get("/livez", responses=describe_problems())
async def life() -> Life:
    """Answer, which shows that the Ingress is alive. No deployment is asked."""
    return Life()


@router.get("/readyz", responses=describe_problems())
async def readiness(inset: Injected) -> Readiness:
    """Check that a photo could be stored and found now."""
    return await inset.ready()


@router.get("/stats", responses=describe_problems(), dependencies=[needs()])
async def stats(inset: Injected) -> Stats:
    """Return counts, model names and sequence numbers."""
    return await inset.stats()


@router.get("/openapi.json", include_in_schema=False)
async def description(request: Request) -> JSONResponse:
    """Return the description of all calls."""
    return JSONResponse(request.app.openapi())
