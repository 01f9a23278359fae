"""Who is asking: the key of a request, and the session in which the page keeps one."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response, Security, params
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes
from pydantic import BaseModel, Field

from deployments.errors import Forbidden, NoKey, Unavailable
from deployments.ingress.keys import SCOPES, Key, Keys, Scope
from deployments.ingress.parameters import StrictRoute
from deployments.ingress.problems import describe_problems

logger = logging.getLogger(__name__)

COOKIE = "inset_key"
COOKIE_S = 365 * 24 * 3600

# An answer to a wrong key waits, longer after many of them. A right key never waits, wherever it
# comes from.
WAIT_PER_FAILURE_S = 0.02
LONGEST_WAIT_S = 2.0
FORGOTTEN_PER_S = 1  # failures
MOST_WAITING = 100
LOG_S = 1.0  # between two lines in the log

_header = HTTPBearer(scheme_name="key", description="a key of scripts/keys.py", auto_error=False)
_cookie = APIKeyCookie(
    name=COOKIE, scheme_name="session", description="set by POST /session", auto_error=False
)


class Session(BaseModel):
    """What a client may do."""

    name: str | None = Field(description="of its key; null if the service takes no keys")
    scopes: list[Scope]
    keys: bool = Field(description="whether the service takes keys")


class Failures:
    """Slows wrong keys down."""

    def __init__(self) -> None:
        self._lately = 0.0
        self._at = time.monotonic()
        self._waiting = 0
        self._unlogged = 0
        self._logged_at = -LOG_S

    async def wait(self, address: str) -> None:
        """Wait after a wrong key.

        Raises:
            Unavailable: many wait already.
        """
        now = time.monotonic()
        self._lately = max(0.0, self._lately - FORGOTTEN_PER_S * (now - self._at)) + 1
        self._at = now
        self._log(address, now)
        if self._waiting >= MOST_WAITING:
            raise Unavailable("Many requests with wrong keys are being answered. Try again.")
        self._waiting += 1
        try:
            await asyncio.sleep(min(LONGEST_WAIT_S, WAIT_PER_FAILURE_S * self._lately))
        finally:
            self._waiting -= 1

    def _log(self, address: str, now: float) -> None:
        self._unlogged += 1
        if now >= self._logged_at + LOG_S:
            logger.warning("wrong keys lately: %d, the last one from %s", self._unlogged, address)
            self._unlogged, self._logged_at = 0, now


async def _identify(
    request: Request,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_header)],
    cookie: Annotated[str | None, Depends(_cookie)],
) -> Key | None:
    """Return what is known about the key of a request; None if the service takes no keys.

    Raises:
        NoKey: there is none, or a wrong one.
        Unavailable: the file of keys can't be read.
    """
    keys: Keys = request.app.state.keys
    failures: Failures = request.app.state.failures
    if not keys.are_needed:
        return None
    secret = bearer.credentials if bearer is not None else cookie
    if not secret:
        raise NoKey("This needs a key: send it as Authorization: Bearer KEY.")
    key = keys.find(secret)
    if key is None:
        await failures.wait(request.client.host if request.client else "an unknown address")
        raise NoKey("This key is not known: it is misspelt, or it was revoked.")
    return key


Identified = Annotated[Key | None, Depends(_identify)]


async def _require(scopes: SecurityScopes, key: Identified) -> None:
    for scope in scopes.scopes:
        if key is not None and not key.allows(scope):  # type: ignore[arg-type]  # see `needs`
            raise Forbidden(
                f"The key {key.name} may not do this: it needs the scope {scope}, and has "
                f"{', '.join(key.scopes)}."
            )


def needs(*scopes: Scope) -> params.Depends:
    """Return what lets a request into a route only with a key that has these scopes.

    Without a scope, any key will do.
    """
    dependency: params.Depends = Security(_require, scopes=scopes)
    return dependency


router = APIRouter(route_class=StrictRoute)


@router.get("/session", responses=describe_problems(), dependencies=[needs()])
async def session(key: Identified) -> Session:
    """Return what the client may do."""
    if key is None:
        return Session(name=None, scopes=list(SCOPES), keys=False)
    return Session(name=key.name, scopes=key.allowed, keys=True)


@router.post("/session", responses=describe_problems(), dependencies=[needs()])
async def begin_session(
    request: Request,
    response: Response,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_header)],
    key: Identified,
) -> Session:
    """Keep the key of this request in a cookie, which scripts of a page can't read."""
    if key is not None and bearer is not None:
        secure = request.url.scheme == "https" or request.headers.get("origin", "").startswith(
            "https:"
        )
        response.set_cookie(
            COOKIE,
            bearer.credentials,
            max_age=COOKIE_S,
            path=request.scope.get("root_path") or "/",
            httponly=True,
            samesite="strict",
            secure=secure,
        )
    return await session(key)


@router.delete(
    "/session",
    status_code=204,
    response_class=Response,
    responses=describe_problems(),
)
async def end_session(request: Request) -> Response:
    """Forget the key that the cookie keeps, and the photos that the browser has kept."""
    response = Response(status_code=204, headers={"Clear-Site-Data": '"cache"'})
    response.delete_cookie(
        COOKIE,
        path=request.scope.get("root_path") or "/",
        httponly=True,
        samesite="strict",
    )
    return response
