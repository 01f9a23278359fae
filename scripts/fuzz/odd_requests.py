"""Odd HTTP requests: valid ones of every operation, changed at random, as bytes.

A request follows from a seed and its number alone, so that each can be made again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from urllib.parse import quote

from deployments.ingress.static_files import FOLDER
from fuzz.damage import (
    Change,
    exchange,
    flip_bits,
    flip_bits_of_the_head,
    insert,
    overwrite,
    remove,
    repeat,
    splice,
    truncate,
)
from fuzz.good_files import good_files
from fuzz.odd_values import (
    ANY_VALUE,
    DISPOSITION,
    HEADERS,
    METHODS,
    NO_UTF_8,
    PARAMETERS,
    PARTS,
    PATHS,
    VALUES,
)

MOST_BYTES = 512 * 2**10  # of a request
MOST_ODDITIES = 3
DAMAGED = 0.3  # share of the requests whose bytes are changed, too
SUFFIX = ".http"  # of a request that is kept
SHELF = ("jpeg", "png", "webp")  # good files that are stored, so that there is something to ask for

BOUNDARY = b"inset-fuzz"


@dataclass(frozen=True, slots=True)
class OddRequest:
    """A request that a client of HTTP would rarely send.

    Attributes:
        name: of the file in which it is kept.
        row: of the report in which its answer counts: what it was made of.
        data: its bytes.
    """

    name: str
    row: str
    data: bytes


@dataclass(slots=True)
class Draft:
    """A request in parts; what is in them is sent as it is."""

    method: bytes
    path: bytes
    parameters: list[bytes] = field(default_factory=list)
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes | None = None
    is_chunked: bool = False

    def render(self) -> bytes:
        """Return the bytes of the request."""
        query = b"?" + b"&".join(self.parameters) if self.parameters else b""
        lines = [b"%b %b%b HTTP/1.1" % (self.method, self.path, query)]
        lines += [b"%b: %b" % header for header in self.headers]
        body = self.body or b""
        names = {name.lower() for name, _ in self.headers}
        if self.body is None or names & {b"content-length", b"transfer-encoding"}:
            pass  # an odd header says where it ends
        elif self.is_chunked:
            lines.append(b"Transfer-Encoding: chunked")
            pieces = [body[start : start + 1000] for start in range(0, len(body), 1000)]
            chunks = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""]]
            body = b"".join(chunks)
        else:
            lines.append(b"Content-Length: %d" % len(body))
        return b"\r\n".join([*lines, b"", b""]) + body


@dataclass(frozen=True, slots=True)
class Seed:
    """A valid request.

    Attributes:
        operation: its method and its path, as /openapi.json has it.
        weight: how often it is taken.
        path: where the operation's path has no id.
    """

    operation: str
    weight: float
    path: str
    parameters: tuple[str, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    is_chunked: bool = False

    def draft(self) -> Draft:
        """Return it in parts, to be changed."""
        # Every service is reached by this name, on whichever port.
        headers = [(b"Host", b"localhost")]
        headers += [(name.encode(), value.encode()) for name, value in self.headers]
        method = self.operation.partition(" ")[0].encode()
        parameters = [parameter.encode() for parameter in self.parameters]
        return Draft(method, self.path.encode(), parameters, headers, self.body, self.is_chunked)


@cache
def seeds() -> Sequence[Seed]:
    """Return valid requests of every operation, and for every file of the page."""
    return [*_of_files(), *_of_photos(), *_with_bodies()]


def _of_files() -> Iterator[Seed]:
    names = sorted(path.name for path in FOLDER.iterdir() if path.is_file())
    yield Seed("GET /", 2, "/")
    for name in names:
        yield Seed("GET /page/{name}", 4 / len(names), f"/page/{name}")
    for path in ("/openapi.json", "/healthz", "/livez", "/readyz", "/stats", "/session"):
        yield Seed(f"GET {path}", 1.5, path)
    yield Seed("POST /session", 1, "/session", headers=(("Authorization", "Bearer inset_x"),))
    yield Seed("DELETE /session", 1, "/session", headers=(("Cookie", "inset_key=inset_x"),))


def _of_photos() -> Iterator[Seed]:
    yield Seed("GET /images", 3, "/images", ("limit=2", "after=a"))
    for id in (f"fuzz-shelf-{kind}" for kind in SHELF):
        path = f"/images/{id}"
        unchanged, part = (("If-None-Match", '"x"'),), (("Range", "bytes=5-20"),)
        yield Seed("GET /images/{id}", 2, path, headers=unchanged)
        yield Seed("GET /images/{id}", 2, path, headers=part)
        yield Seed("GET /images/{id}/thumbnail", 2, f"{path}/thumbnail", headers=unchanged)
        yield Seed("GET /images/{id}/record", 2, f"{path}/record")
        yield Seed("DELETE /images/{id}", 0.05, path)
        yield Seed("POST /search", 0.5, "/search", (f"id={id}", "verify=none"), body=b"")
        yield Seed("POST /search", 0.1, "/search", (f"id={id}", "limit=1"))


def _with_bodies() -> Iterator[Seed]:
    form = (("Content-Type", f"multipart/form-data; boundary={BOUNDARY.decode()}"),)
    lines = (*form, ("Accept", "application/x-ndjson"))
    search = ("verify=none", "limit=3", "max_chunks=2")
    for kind in SHELF:
        data = good_files()[kind]
        image = (("Content-Type", f"image/{kind}"),)
        # What was deleted comes back by it; what is there costs little.
        index = (f"id=fuzz-shelf-{kind}", "filename=photo.png")
        parts, described = multipart(data), multipart(data, b'{"place": "here"}')
        for is_chunked in (False, True):
            yield Seed("POST /search", 0.4, "/search", search, image, data, is_chunked)
            yield Seed("POST /search", 0.4, "/search", search, form, parts, is_chunked)
            yield Seed("POST /index", 0.05, "/index", index, image, data, is_chunked)
            yield Seed("POST /index", 0.05, "/index", index, form, described, is_chunked)
            yield Seed("POST /index", 0.05, "/index", index[:1], lines, parts, is_chunked)


def multipart(data: bytes, metadata: bytes | None = None) -> bytes:
    """Return a body with one image, and metadata beside it."""
    parts = [DISPOSITION + b"\r\nContent-Type: image/png\r\n\r\n" + data]
    if metadata is not None:
        parts.append(b'Content-Disposition: form-data; name="metadata"\r\n\r\n' + metadata)
    return b"".join(b"--%b\r\n%b\r\n" % (BOUNDARY, part) for part in parts) + b"--%b--\r\n" % (
        BOUNDARY
    )


# Oddities: each changes one part of a request

Oddity = Callable[[random.Random, Draft], None]


def odd_header(rng: random.Random, draft: Draft) -> None:
    """Add a header, or write over the one that is there."""
    name = rng.choice(list(HEADERS)).encode()
    choice = rng.random()
    if choice < 0.75:
        value = rng.choice(HEADERS[name.decode()]).encode()
    elif choice < 0.95:
        value = rng.choice(ANY_VALUE).encode("latin-1")
    else:
        value = rng.choice(NO_UTF_8)
    if rng.random() < 0.8:
        draft.headers = [header for header in draft.headers if header[0].lower() != name.lower()]
    draft.headers.insert(rng.randint(0, len(draft.headers)), (name, value))


def lost_or_doubled_header(rng: random.Random, draft: Draft) -> None:
    """Leave a header out, or send it twice."""
    if draft.headers:
        header = draft.headers[rng.randrange(len(draft.headers))]
        if rng.random() < 0.5:
            draft.headers.remove(header)
        else:
            draft.headers.append(header)


def odd_parameter(rng: random.Random, draft: Draft) -> None:
    """Add a parameter, or write over all that are there."""
    name, value = rng.choice(PARAMETERS), rng.choice(VALUES)
    if rng.random() < 0.1:
        name = quote(name, safe="").replace("i", "%69")
    if rng.random() < 0.2:
        draft.parameters.clear()
    elif rng.random() < 0.6:
        known = f"{name}=".encode()
        draft.parameters = [one for one in draft.parameters if not one.startswith(known)]
    parameter = f"{name}={value}".encode("latin-1")
    if rng.random() < 0.05:
        parameter = rng.choice((name.encode(), b"&", b"=", b"?", b"#", b"a=1&" * 1500))
    draft.parameters += [parameter] * rng.choice((1, 1, 1, 1, 2, 20))


def odd_path(rng: random.Random, draft: Draft) -> None:
    """Ask for something else."""
    draft.path = rng.choice(PATHS).encode("latin-1")


def odd_method(rng: random.Random, draft: Draft) -> None:
    """Ask in another way."""
    draft.method = rng.choice(METHODS).encode()


def odd_part(rng: random.Random, draft: Draft) -> None:
    """Describe a part of the body in another way."""
    if draft.body is not None:
        draft.body = draft.body.replace(DISPOSITION, rng.choice(PARTS).encode("latin-1"), 1)


def odd_body(rng: random.Random, draft: Draft) -> None:
    """Send a body where there is none, or none where there is one, or a damaged one."""
    if draft.body:
        change = rng.choice((flip_bits, overwrite, truncate, remove, repeat, exchange))
        draft.body = change(rng, bytearray(draft.body), {})
    else:
        draft.body = rng.choice((None, b"", b"\0", b"{}", b"a=b", multipart(b"")))
    draft.is_chunked = rng.random() < 0.3


ODDITIES: tuple[Oddity, ...] = (
    *(odd_header, odd_header, odd_header, odd_parameter, odd_parameter, odd_path, odd_method),
    *(lost_or_doubled_header, odd_part, odd_body),
)
CHANGES: tuple[Change, ...] = (
    *(flip_bits, flip_bits_of_the_head, flip_bits_of_the_head, overwrite, truncate, remove),
    *(repeat, exchange, splice, insert),
)


def odd_requests(seed: int, count: int) -> Iterator[OddRequest]:
    """Return so many odd requests: the same for the same seed."""
    return (odd_request(seed, number) for number in range(count))


def odd_request(seed: int, number: int) -> OddRequest:
    """Return the odd request of a number, always the same bytes."""
    rng = random.Random(f"request {seed} {number}")
    chosen = rng.choices(seeds(), _weights())[0]
    draft = chosen.draft()
    for _ in range(rng.randint(0, MOST_ODDITIES)):
        rng.choice(ODDITIES)(rng, draft)
        if draft.body == b"" and rng.random() < 0.5:
            draft.body = None
    data = draft.render()
    if rng.random() < DAMAGED:
        for _ in range(rng.choice((1, 1, 2))):
            data = rng.choice(CHANGES)(rng, bytearray(data), _valid()) if data else b"\r\n"
    return OddRequest(f"request-{seed}-{number}{SUFFIX}", chosen.operation, data[:MOST_BYTES])


@cache
def _weights() -> list[float]:
    return [seed.weight for seed in seeds()]


@cache
def _valid() -> Mapping[str, bytes]:
    return {str(number): seed.draft().render() for number, seed in enumerate(seeds())}
