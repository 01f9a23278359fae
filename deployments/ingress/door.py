"""The door: which requests come in at all, whatever they ask for.

A service on a laptop is reached by every web page that its owner's browser shows. So the door looks
at what a page can't forge: the name by which the service was reached, and what the browser says of
where a request comes from. Programs such as curl say nothing of that, and pass.

- Names: a page whose own name has been pointed at this machine (DNS rebinding) sends that name as
  the Host. An address can't be pointed anywhere.
- Sites: Fetch Metadata (https://www.w3.org/TR/fetch-metadata/) and the Origin header.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from deployments.errors import BadParameter, Forbidden, InsetError, StartupError, WrongHost
from deployments.ingress.problems import Problem, respond
from deployments.settings import HttpSettings

SAFE = ("GET", "HEAD")
SAME = ("same-origin", "none")  # none: the address bar, a bookmark
LOCAL = "localhost"
# Headers by which a client would tell Ray Serve's proxy how long to wait, or where to send a
# request. They are for what stands in front of replicas, not for clients.
OF_SERVE = (
    *("x-request-timeout-seconds", "x-request-disconnect-disabled"),
    *("serve-multiplexed-model-id", "x-session-id"),
)
REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~:+/=-]{0,127}")

# Of every answer; the page brings a policy of its own. Nothing else may run as a page, no other
# site may show it, and no browser need guess its type.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
EXPOSED = (
    "ETag",
    "Content-Range",
    "Accept-Ranges",
    "Inset-Sequence",
    "Retry-After",
    "X-Request-Id",
)


class Door:
    """ASGI middleware, first of all.

    Args:
        app: the application behind it.
        host: where the service listens (`http_options.host`).
        settings: names, origins and proxies that are allowed.
        behind_haproxy: whether a HAProxy of this machine hands on all requests, and says of each
            who the client is.
    """

    def __init__(
        self, app: ASGIApp, host: str, settings: HttpSettings, behind_haproxy: bool = False
    ) -> None:
        self._app: ASGIApp = app
        self._origins = frozenset(settings.cors_origins)
        if self._origins:
            self._app = CORSMiddleware(
                app,
                allow_origins=settings.cors_origins,
                allow_methods=["*"],
                allow_headers=["*"],
                expose_headers=EXPOSED,
            )
        self._names = frozenset({LOCAL, host.lower(), *settings.allowed_hosts})
        self._any_address = is_everywhere(host)
        self._forwarded = ProxyHeadersMiddleware(
            self._check,  # type: ignore[arg-type]  # uvicorn has types of its own for the same
            [*settings.trusted_proxies, *(["127.0.0.1"] if behind_haproxy else [])],
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await self._forwarded(_from_its_peer(scope), receive, send)  # type: ignore[arg-type]

    async def _check(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._refuse(Headers(scope=scope), scope["method"])
        except InsetError as error:
            await respond(Problem.of(error), error)(scope, receive, closing)
        else:
            await self._app(scope, receive, closing)

    def _refuse(self, headers: Headers, method: str) -> None:
        """Raise what is wrong with a request, if anything is.

        Raises:
            WrongHost, Forbidden, BadParameter
        """
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_own(hosts[0]):
            raise WrongHost(
                "This service isn't reached by this name. Its operator can add it to "
                "http.allowed_hosts in serve_config.yaml."
            )
        self._check_site(headers, method, hosts[0])
        for name in headers:
            if name.replace("_", "-") in OF_SERVE:
                raise BadParameter(f"The header {name} is not for clients: leave it out.")
        id = headers.get("x-request-id")
        if id is not None and not REQUEST_ID.fullmatch(id):
            raise BadParameter(
                "X-Request-Id has 1 to 128 letters, digits and characters of ._~:+/=- : send such "
                "a one, or none."
            )

    def _is_own(self, host: str) -> bool:
        name = _name(host)
        if name is None:
            return False
        if name in self._names or f"[{name}]" in self._names:
            return True
        try:
            address = ip_address(name)
        except ValueError:
            return False
        return self._any_address or address.is_loopback

    def _check_site(self, headers: Headers, method: str, host: str) -> None:
        origin = headers.get("origin")
        if origin is not None and origin.lower() in self._origins:
            return
        site = headers.get("sec-fetch-site", "none")
        if method in SAFE:
            # Another site may link here, but not load anything from here: how that fails tells
            # whether a photo is stored.
            navigates = headers.get("sec-fetch-mode") == "navigate"
            on_top = headers.get("sec-fetch-dest", "document") == "document"
            if site not in SAME and not (navigates and on_top):
                raise Forbidden(_OTHER_SITE)
        elif site not in SAME or (origin is not None and not _is_of(origin, host)):
            raise Forbidden(_OTHER_SITE)


_OTHER_SITE = (
    "This request comes from a page of another site. The operator of this service can allow it by "
    "http.cors_origins in serve_config.yaml."
)


def is_everywhere(host: str) -> bool:
    """Return whether a service that listens there is reached by all addresses of its machine."""
    return host in ("", "0.0.0.0", "::", "[::]")


def refuse_others(host: str, settings: HttpSettings, keys_path: Path | None) -> None:
    """Check that nobody else reaches a service that has no keys.

    Args:
        host: where it listens.
        keys_path: where keys would be.

    Raises:
        StartupError: others reach it, by its address or through a reverse proxy.
    """
    reasons = {
        f"http_options.host is {host}": not is_this_machine_alone(host),
        "http.allowed_hosts has names": bool(settings.allowed_hosts),
        "http.trusted_proxies has proxies": bool(settings.trusted_proxies),
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    if reason is not None:
        raise StartupError(
            f"{reason}, so others can reach the service, and there are no keys in {keys_path}. "
            "Make a key (scripts/keys.py make NAME --scopes admin), or let only this machine reach "
            "it: http_options.host 127.0.0.1, and neither allowed_hosts nor trusted_proxies."
        )


def is_this_machine_alone(host: str) -> bool:
    """Return whether only this machine reaches a service that listens there."""
    if host.lower() == LOCAL:
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _name(host: str) -> str | None:
    """Return the name or address in a Host header, in small letters; None if there is none."""
    try:
        parts = urlsplit(f"//{host}")
        parts.port  # noqa: B018  # raises if it is none
    except ValueError:
        return None
    if parts.netloc != host or "@" in host or parts.hostname is None:
        return None
    return parts.hostname.removesuffix(".")


def _is_of(origin: str, host: str) -> bool:
    """Return whether an origin is that of a page which was loaded from this host."""
    try:
        parts = urlsplit(origin)
        usual = {"http": 80, "https": 443}.get(parts.scheme)
        return usual is not None and _parts(parts.netloc, usual) == _parts(host, usual)
    except ValueError:
        return False


def _parts(host: str, usual_port: int) -> tuple[str | None, int]:
    parts = urlsplit(f"//{host}")
    return parts.hostname, parts.port or usual_port


def _from_its_peer(scope: Scope) -> Scope:
    """Undo that uvicorn, as Ray Serve runs it, believes X-Forwarded-For of any local program.

    Then the client has the address and the port of that header: port 0 if it has none.
    """
    client = scope.get("client")
    claims = ", ".join(Headers(scope=scope).getlist("x-forwarded-for"))
    if client is None or client[0] not in claims or str(client[1] or "") not in claims:
        return scope
    return {**scope, "client": ("127.0.0.1", 0)}
