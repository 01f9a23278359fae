"""Errors as RFC 9457 problems: every answer that is none of what was asked for."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from deployments.errors import BadParameter, InsetError, Unavailable

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 2


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    type: Literal["about:blank"] = "about:blank"
    title: str = Field(description="the kind of problem")
    status: int = Field(description="the HTTP status")
    detail: str = Field(description="what is wrong this time, and what to do")

    @classmethod
    def of(cls, error: InsetError) -> Problem:
        """Return an error of ours as a problem."""
        return cls(title=error.title, status=error.status, detail=error.detail)


def describe_problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI says of a route's problems; each route also has 500 and 503."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": content}
        for status in (*statuses, 500, 503)
    }


def add_problem_handlers(app: FastAPI) -> None:
    """Let an application answer every error as a problem."""
    app.add_exception_handler(InsetError, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_bad_parameter)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_exception_handler(Exception, _answer_unforeseen)


def _respond(problem: Problem) -> Response:
    headers = {"Retry-After": str(RETRY_AFTER_S)} if problem.status == Unavailable.status else {}
    return JSONResponse(
        problem.model_dump(),
        problem.status,
        media_type=MEDIA_TYPE,
        headers=headers,
    )


async def _answer_error(request: Request, error: InsetError) -> Response:
    return _respond(Problem.of(error))


async def _answer_bad_parameter(request: Request, error: RequestValidationError) -> Response:
    def sentence(problem: dict[str, Any]) -> str:
        name = problem["loc"][-1]
        if problem["type"] == "extra_forbidden":
            return f"there is no parameter {name}"
        return f"{name}={problem['input']}: {problem['msg']}"

    detail = "; ".join(map(sentence, error.errors())) + ". See /openapi.json."
    return _respond(Problem.of(BadParameter(detail)))


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
        routes = [r for r in request.app.routes if r.matches(request.scope)[0] is not Match.NONE]
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
