"""Turn every error into an RFC 9457 problem."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from deployments.errors import BadParameter, InsetError, NoKey, TooSlow, Unavailable
from deployments.ingress.head import is_head
from deployments.ingress.metrics import count_problem

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    type: Literal["about:blank"] = "about:blank"
    title: str = Field(description="the kind of problem")
    status: int = Field(description="the HTTP status")
    detail: str = Field(description="what is wrong this time, and what to do")

    @classmethod
    def of(cls, error: InsetError) -> Problem:
        """Return an error as a problem."""
        return cls(title=error.title, status=error.status, detail=error.detail)


# What the door and the service itself answer, whatever is asked for.
EVERYWHERE = (400, 403, 421, 500, 503)


def describe_problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of a route's problems, and of those of every route."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": content}
        for status in sorted({*statuses, *EVERYWHERE})
    }


def add_problem_handlers(app: FastAPI) -> None:
    """Let an application answer every error with a problem."""
    app.exception_handler(InsetError)(_answer_error)
    app.exception_handler(RequestValidationError)(_answer_bad_parameter)
    app.exception_handler(HTTPException)(_answer_http_exception)
    app.exception_handler(ClientDisconnect)(_answer_nobody)
    app.exception_handler(Exception)(_answer_error)


def problem_of(request: Request, error: Exception) -> Problem:
    """Return an error as a problem; if it should not happen, log it."""
    if isinstance(error, InsetError):
        return Problem.of(error)
    logger.error("unexpected error in %s %s", request.method, request.scope["path"], exc_info=error)
    return Problem(
        title=InsetError.title,
        status=InsetError.status,
        detail=f"This should not happen ({type(error).__name__}). The service's log has the "
        "details.",
    )


# What an answer says besides the problem, by its status.
HEADERS = {
    NoKey.status: {"WWW-Authenticate": 'Bearer realm="Inset"'},
    TooSlow.status: {"Connection": "close"},  # else the server waits for the rest of the body
}


def respond(problem: Problem, error: Exception | None = None) -> Response:
    """Return a problem as an answer.

    Args:
        error: what made it, if that says when to try again.
    """
    count_problem(problem.title, problem.status)
    headers = HEADERS.get(problem.status, {})
    if isinstance(error, Unavailable):
        headers = {"Retry-After": str(error.retry_after_s)}
    return JSONResponse(
        problem.model_dump(),
        problem.status,
        media_type=MEDIA_TYPE,
        headers=headers,
    )


async def _answer_error(request: Request, error: Exception) -> Response:
    return respond(problem_of(request, error), error)


async def _answer_bad_parameter(request: Request, error: RequestValidationError) -> Response:
    sentences = (f"{one['loc'][-1]}={one['input']}: {one['msg']}" for one in error.errors())
    return respond(Problem.of(BadParameter("; ".join(sentences) + ". See /openapi.json.")))


async def _answer_http_exception(request: Request, error: HTTPException) -> Response:
    # The path is that of the scope, because `request.url` is also made of what the client calls
    # this host.
    path, detail = request.scope["path"], str(error.detail)
    if error.status_code == HTTPStatus.NOT_FOUND:
        detail = f"There is nothing at {path}. See /openapi.json."
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        method = "HEAD" if is_head(request) else request.method
        detail = f"{path} does not take {method}. See /openapi.json."
    title = HTTPStatus(error.status_code).phrase
    response = respond(Problem(title=title, status=error.status_code, detail=detail))
    response.headers.update(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        # Starlette lists only the methods of the first route with this path.
        routes = [r for r in request.app.routes if r.matches(request.scope)[0] is not Match.NONE]
        methods = {method for route in routes for method in route.methods}
        if "GET" in methods:
            methods.add("HEAD")
        response.headers["Allow"] = ", ".join(sorted(methods))
    return response


async def _answer_nobody(request: Request, error: ClientDisconnect) -> Response:
    """The client hung up before its body was complete. That is no error, and no one hears this."""
    return Response(status_code=HTTPStatus.BAD_REQUEST)
