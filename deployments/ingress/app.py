"""HTTP in, HTTP out: the routes, the description at /openapi.json, and errors as RFC 9457."""

# No `from __future__ import annotations` here: FastAPI reads the annotations of local functions.
import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.routing import Match as RouteMatch

from deployments.errors import BadParameter, InsetError, NotAnImage, TooLarge, Unavailable
from deployments.ingress.static_files import add_page
from deployments.limits import THUMBNAIL_BYTES, THUMBNAIL_SIDE, THUMBNAIL_TYPE
from deployments.metadata import (
    CONDITION_PATTERN,
    KEY_PATTERN,
    MAX_CONDITION,
    MAX_CONDITIONS,
    MAX_KEYS,
    MAX_TEXT,
    parse_metadata,
)
from deployments.records import IndexedImage, Match, Record, Stats
from deployments.store.format import ID_PATTERN

if TYPE_CHECKING:
    from deployments.ingress.service import Inset

logger = logging.getLogger(__name__)

# Of one multipart request, how many images are on their way at the same time.
PARTS_IN_FLIGHT = 16
MAX_PARTS = 1000
RETRY_AFTER_S = 2
SEQUENCE_HEADER = "Inset-Sequence"

# What JSON Schema can say of metadata and filters; `metadata` itself says what is wrong with one.
METADATA_SCHEMA = {
    "type": "string",
    "contentMediaType": "application/json",
    "contentSchema": {
        "type": "object",
        "maxProperties": MAX_KEYS,
        "propertyNames": {"pattern": f"^{KEY_PATTERN}$"},
        "additionalProperties": {"type": ["string", "number", "boolean"], "maxLength": MAX_TEXT},
    },
}
FILTER_SCHEMA = {
    "type": "array",
    "items": {"type": "string", "pattern": CONDITION_PATTERN, "maxLength": MAX_CONDITION},
    "maxItems": MAX_CONDITIONS,
}

Id = Annotated[str, Path(pattern=ID_PATTERN, description="id of a stored photo")]


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    type: Literal["about:blank"] = "about:blank"
    title: str = Field(description="the kind of problem")
    status: int = Field(description="the HTTP status")
    detail: str = Field(description="what is wrong this time, and what to do")


class FailedImage(BaseModel):
    """One part of several that could not be indexed."""

    status: Literal["failed"] = "failed"
    filename: str | None
    error: Problem


class IndexAnswer(BaseModel):
    images: list[IndexedImage | FailedImage] = Field(description="in the order they were sent")


class SearchAnswer(BaseModel):
    matches: list[Match] = Field(description="nearest first, each photo once")


class Page(BaseModel):
    images: list[Record] = Field(description="in the order of their ids")
    next: str | None = Field(description="path of the next page; null on the last one")


class Health(BaseModel):
    status: Literal["ready"] = "ready"


class Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid")


class IndexParameters(Parameters):
    id: str | None = Field(
        None, pattern=ID_PATTERN, description="the photo's id; else the SHA-256 of its bytes"
    )
    filename: str | None = Field(
        None, max_length=1000, description="kept with a raw body; parts bring their own"
    )
    confidence_threshold: float | None = Field(
        None, ge=0, le=1, description="for these photos instead of the configured one"
    )
    metadata: Annotated[str | None, WithJsonSchema(METADATA_SCHEMA)] = Field(
        None,
        description="what searches can filter these photos by: a flat JSON object of strings, "
        "numbers and booleans",
    )


class SearchParameters(Parameters):
    text: str | None = Field(None, min_length=1, max_length=1000, description="search by words")
    id: str | None = Field(None, pattern=ID_PATTERN, description="search by a stored photo")
    box: str | None = Field(
        None,
        pattern=r"^-?\d{1,6}(\.\d+)?(,-?\d{1,6}(\.\d+)?){3}$",
        description="x1,y1,x2,y2 in pixels: search by this part of the picture only",
    )
    limit: int = Field(10, ge=1, le=1000, description="how many photos at most")
    max_distance: float = Field(
        2, ge=0, le=2, description="chunks beyond this cosine distance don't count"
    )
    max_chunks: int = Field(
        5, ge=1, le=1000, description="how many chunks of each photo at most, the nearest"
    )
    min_sequence: int = Field(
        0,
        ge=0,
        lt=2**63,
        description="the answer must know the store's changes up to this one (`sequence`)",
    )
    filter: Annotated[list[str], WithJsonSchema(FILTER_SCHEMA)] = Field(
        [],
        description="only photos with such metadata: `NAME OP VALUE` with `=`, `!=`, `<`, `<=`, "
        '`>` or `>=`, as `year>=2020`, `flash=true`, `camera=Canon EOS` or `lot="007"`. Of '
        "several, all must hold; none holds for a photo without that key, or with a value of "
        "another type",
    )


class PageParameters(Parameters):
    after: str | None = Field(
        None, pattern=ID_PATTERN, description="the last id of the page before"
    )
    limit: int = Field(100, ge=1, le=1000, description="length of the page")


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": content}
        for status in (*statuses, 500, 503)
    }


_BINARY = {"type": "string", "format": "binary"}


def _body(parts: dict[str, Any], *, required: bool) -> dict[str, Any]:
    form = {"type": "object", "properties": parts, "required": ["file"]}
    return {
        "requestBody": {
            "required": required,
            "content": {
                "image/*": {"schema": _BINARY},
                "multipart/form-data": {"schema": {**form, "additionalProperties": False}},
            },
        }
    }


def build_app(service: "Inset") -> FastAPI:
    """Return the ASGI application that speaks for a service."""
    app = FastAPI(
        title="Inset",
        version="1",
        summary="Give it a small picture: it finds the photos that contain it, and shows where.",
        docs_url=None,  # FastAPI's pages load scripts from elsewhere
        redoc_url=None,
    )

    @app.post(
        "/index",
        status_code=201,
        responses=_problems(400, 409, 413, 415, 422, 507),
        openapi_extra=_body(
            {
                "file": {"type": "array", "items": _BINARY, "minItems": 1},
                "metadata": {**METADATA_SCHEMA, "description": "in the place of ?metadata="},
            },
            required=True,
        ),
    )
    async def index(
        request: Request, parameters: Annotated[IndexParameters, Query()]
    ) -> IndexAnswer:
        """Store one image (raw body) or several (multipart parts `file`).

        Of several parts, one that is bad is answered with `status: failed` and the others are
        kept; when all are bad, the answer is the error of the first.
        """
        images, fields = await _read_images(
            request, service.limits.max_image_bytes, fields=frozenset({"metadata"})
        )
        if parameters.id is not None and len(images) > 1:
            raise BadParameter("?id= names one photo: send one image with it.")
        if parameters.metadata is not None and "metadata" in fields:
            raise BadParameter("There is metadata in the URL and in the body: send it once.")
        given = fields.get("metadata", parameters.metadata)
        metadata = None if given is None else parse_metadata(given)
        gate = asyncio.Semaphore(PARTS_IN_FLIGHT)

        async def index_one(filename: str | None, read: Callable[[], Awaitable[bytes]]) -> Any:
            async with gate:
                try:
                    return await service.index(
                        await read(),
                        id=parameters.id,
                        filename=filename or parameters.filename,
                        confidence_threshold=parameters.confidence_threshold,
                        metadata=metadata,
                    )
                except InsetError as error:
                    return error

        results = await asyncio.gather(*(index_one(*image) for image in images))
        if all(isinstance(result, InsetError) for result in results):
            raise results[0]
        return IndexAnswer(
            images=[
                FailedImage(filename=filename, error=_problem(result))
                if isinstance(result, InsetError)
                else result
                for (filename, _), result in zip(images, results, strict=True)
            ]
        )

    @app.post(
        "/search",
        responses=_problems(400, 404, 413, 415, 422),
        openapi_extra=_body({"file": _BINARY}, required=False),
    )
    async def search(
        request: Request, parameters: Annotated[SearchParameters, Query()]
    ) -> SearchAnswer:
        """Find the photos that contain a picture: the body, `?text=`, or `?id=` of a stored one."""
        query = parameters.model_dump()
        if parameters.box is not None:
            query["box"] = tuple(map(float, parameters.box.split(",")))
        data = None
        if _has_body(request):
            images, _ = await _read_images(request, service.limits.max_image_bytes)
            if len(images) > 1:
                raise BadParameter("Send one image to search by, not several.")
            data = await images[0][1]()
        return SearchAnswer(matches=await service.search(data, **query))

    @app.get("/images", responses=_problems(400))
    async def list_images(parameters: Annotated[PageParameters, Query()]) -> Page:
        """List what is stored, in the order of the ids."""
        records = await service.list(parameters.after, parameters.limit)
        more = len(records) == parameters.limit
        following = f"/images?after={records[-1].id}&limit={parameters.limit}" if more else None
        return Page(images=records, next=following)

    @app.get(
        "/images/{id}",
        response_class=Response,
        responses={
            200: {
                "description": "The original, as it was sent",
                "content": {"image/*": {"schema": _BINARY}},
            },
            304: {"description": "Unchanged"},
            **_problems(400, 404),
        },
    )
    async def get_image(id: Id, request: Request) -> Response:
        """Return the original bytes."""
        record, data = await service.get(id)
        return _picture(request, data, record.media_type, record.sha256)

    @app.get(
        "/images/{id}/thumbnail",
        response_class=Response,
        responses={
            200: {
                "description": f"At most {THUMBNAIL_BYTES:,} bytes, and {THUMBNAIL_SIDE} pixels "
                "wide and high",
                "content": {THUMBNAIL_TYPE: {"schema": _BINARY}},
            },
            304: {"description": "Unchanged"},
            **_problems(400, 404, 413, 415, 422),
        },
    )
    async def get_thumbnail(id: Id, request: Request) -> Response:
        """Return a small picture of a photo, upright, in the proportions of its width and height.

        Of a photo that an older version stored it is made now; should the original be beyond
        today's limits, the answer says so.
        """
        data = await service.thumbnail(id)
        return _picture(request, data, THUMBNAIL_TYPE, hashlib.sha256(data).hexdigest())

    @app.get("/images/{id}/record", responses=_problems(400, 404))
    async def get_record(id: Id) -> Record:
        """Return what is known of a photo."""
        return await service.record(id)

    @app.delete(
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
            **_problems(400, 404, 507),
        },
    )
    async def delete_image(id: Id) -> Response:
        """Remove a photo everywhere: no search that starts after the answer finds it."""
        sequence = await service.delete(id)
        return Response(status_code=204, headers={SEQUENCE_HEADER: str(sequence)})

    @app.get("/healthz", responses=_problems())
    async def health() -> Health:
        """Say whether photos can be indexed and found."""
        await service.check()
        return Health()

    @app.get("/stats", responses=_problems())
    async def stats() -> Stats:
        """Return counts, model names and sequence numbers."""
        return await service.stats()

    add_page(app)
    app.add_exception_handler(InsetError, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_bad_parameter)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_exception_handler(Exception, _answer_unforeseen)
    app.openapi = lambda describe=app.openapi: _without_default_422(describe())
    return BodyLimit(app, service.limits.max_request_bytes)


class BodyLimit:
    """ASGI middleware: stop reading a request once its body is over the limit, and let every GET
    answer HEAD too.
    """

    def __init__(self, app: FastAPI, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Any, receive: Callable, send: Callable) -> None:
        count = 0
        if scope.get("method") == "HEAD":  # GET, whose body the server in front leaves out
            scope = {**scope, "method": "GET"}

        async def limited() -> dict[str, Any]:
            nonlocal count
            message = await receive()
            count += len(message.get("body", b""))
            if count > self.max_bytes:
                raise TooLarge(
                    f"The request has more than {self.max_bytes:,} bytes: send less at once."
                )
            return message

        await self.app(scope, limited, send)


def _picture(request: Request, data: bytes, media_type: str, digest: str) -> Response:
    """Answer the bytes of a picture, or that they are those that the client has."""
    headers = {
        "ETag": f'"{digest}"',
        "Cache-Control": "no-cache",
        # The type is what the decoder found, so no browser has to guess.
        "X-Content-Type-Options": "nosniff",
    }
    tags = request.headers.get("if-none-match", "")
    if headers["ETag"] in tags or tags.strip() == "*":
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=media_type, headers=headers)


Image = tuple[str | None, Callable[[], Awaitable[bytes]]]


def _has_body(request: Request) -> bool:
    length = request.headers.get("content-length", "0")
    return length != "0" or "transfer-encoding" in request.headers


async def _read_images(
    request: Request, max_bytes: int, fields: frozenset[str] = frozenset()
) -> tuple[list[Image], dict[str, str]]:
    """Return (filename, how to read it) of the image in the body, or of those in its parts; and
    what the parts named as `fields` say.
    """
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type.startswith("image/"):
        data = await _read_body(request, max_bytes)

        async def whole() -> bytes:
            return data

        return [(None, whole)], {}
    if media_type != "multipart/form-data":
        raise NotAnImage(
            f"The content type is {media_type or 'missing'}: send the bytes of one image with "
            "Content-Type: image/jpeg (or another image type), or multipart/form-data with parts "
            "named file."
        )
    # Starlette keeps parts of more than a megabyte in temporary files, not in memory.
    parser = _Multipart(
        request.headers, request.stream(), max_files=MAX_PARTS, max_fields=MAX_PARTS
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise BadParameter(f"The multipart body can't be read: {error.message}") from None
    if not parser.ended:
        raise BadParameter("The multipart body ends early: its last boundary is missing.")
    strangers = {name for name in form if name not in fields | {"file"}}
    if strangers:
        raise BadParameter(
            f"There are parts named {', '.join(sorted(map(repr, strangers)))}: name each 'file'."
        )
    parts = form.getlist("file")
    if not parts:
        raise BadParameter("There is no part named 'file' in the body.")
    if not all(isinstance(part, UploadFile) for part in parts):
        raise BadParameter("A part named 'file' has no filename: send it as a file.")
    images = [(part.filename or None, _part_reader(part, max_bytes)) for part in parts]
    return images, {name: _read_field(form, name) for name in fields & form.keys()}


def _read_field(form: FormData, name: str) -> str:
    parts = form.getlist(name)
    if len(parts) > 1:
        raise BadParameter(f"There are {len(parts)} parts named {name!r}: send one.")
    if not isinstance(parts[0], str):
        raise BadParameter(f"The part named {name!r} has a filename: send it without one.")
    return parts[0]


class _Multipart(MultiPartParser):
    """Starlette's parser, which drops a part that is cut off without a word."""

    ended = False

    def on_end(self) -> None:
        self.ended = True


async def _read_body(request: Request, max_bytes: int) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > max_bytes:
            raise _too_many_bytes(max_bytes)
    return bytes(body)


def _part_reader(part: UploadFile, max_bytes: int) -> Callable[[], Awaitable[bytes]]:
    async def read() -> bytes:
        if part.size > max_bytes:
            raise _too_many_bytes(max_bytes)
        return await part.read()

    return read


def _too_many_bytes(max_bytes: int) -> TooLarge:
    return TooLarge(f"The image has more than {max_bytes:,} bytes: send a smaller one.")


def _problem(error: InsetError) -> Problem:
    return Problem(title=error.title, status=error.status, detail=error.detail)


def _respond(problem: Problem) -> Response:
    headers = {"Retry-After": str(RETRY_AFTER_S)} if problem.status == Unavailable.status else {}
    return JSONResponse(
        problem.model_dump(),
        problem.status,
        media_type="application/problem+json",
        headers=headers,
    )


async def _answer_error(request: Request, error: InsetError) -> Response:
    return _respond(_problem(error))


async def _answer_bad_parameter(request: Request, error: RequestValidationError) -> Response:
    def sentence(problem: dict[str, Any]) -> str:
        name = problem["loc"][-1]
        if problem["type"] == "extra_forbidden":
            return f"there is no parameter {name}"
        return f"{name}={problem['input']}: {problem['msg']}"

    detail = "; ".join(map(sentence, error.errors())) + ". See /openapi.json."
    return _respond(_problem(BadParameter(detail)))


async def _answer_http_exception(request: Request, error: HTTPException) -> Response:
    detail = str(error.detail)
    if error.status_code == HTTPStatus.NOT_FOUND:
        detail = f"There is nothing at {request.url.path}. See /openapi.json."
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        detail = f"{request.url.path} does not take {request.method}. See /openapi.json."
    title = HTTPStatus(error.status_code).phrase
    response = _respond(Problem(title=title, status=error.status_code, detail=detail))
    response.headers.update(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        # Starlette names those of the first route of this path only.
        routes = [
            r for r in request.app.routes if r.matches(request.scope)[0] is not RouteMatch.NONE
        ]
        response.headers["Allow"] = ", ".join(sorted({m for r in routes for m in r.methods}))
    return response


async def _answer_unforeseen(request: Request, error: Exception) -> Response:
    logger.error("unforeseen error in %s %s", request.method, request.url.path, exc_info=error)
    return _respond(
        Problem(
            title=InsetError.title,
            status=InsetError.status,
            detail=f"This should not happen ({type(error).__name__}); the log of the service "
            "says more.",
        )
    )


def _without_default_422(description: dict[str, Any]) -> dict[str, Any]:
    """FastAPI says that a wrong parameter is a 422; here it is a 400, described like the others."""
    schemas = description["components"]["schemas"]
    schemas["Problem"] = Problem.model_json_schema()
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    for path in description["paths"].values():
        for operation in path.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
    return description
