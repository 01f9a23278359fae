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

MOST_BYTES = 512 * 2**10  # of a request
MOST_ODDITIES = 3
DAMAGED = 0.3  # share of the requests whose bytes are changed, too
SUFFIX = ".http"  # of a request that is kept
SHELF = ("jpeg", "png", "webp")  # good files that are stored, so that there is something to ask for

BOUNDARY = b"inset-fuzz"
DISPOSITION = b'Content-Disposition: form-data; name="file"; filename="photo.png"'
LONG = "a" * 9000
DIGITS = "9" * 5000  # more than `int` reads


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

# Any header may have these.
ANY_VALUE = (
    *("", " ", "\t", ",", ";", "=", '"', "\\", "\0", "\x7f", "\x0b", "é", "1", "*", "null"),
    *("%00", "a\r\n b", "a\rb", "a\nb", LONG, DIGITS, ",".join("a" * 500)),
)
# Bytes that are no UTF-8.
NO_UTF_8 = (b"\xff", b"a\xffb", b"\xed\xa0\x80", b"\xc3")
DATES = ("Thu, 01 Jan 1970 00:00:00 GMT", "Sat, 99 Foo 99999 99:99:99 GMT", "0", "9" * 40)
TAGS = ("*", '"x"', 'W/"x"', '"', '"a', 'W/"', '"a","b" , *', '"a" "b"', '"x",' * 500)
RANGES = (
    *("bytes=0-0", "bytes=-1", "bytes=5-", "bytes=0-0,2-3", "bytes=10-5", "bytes=-0", "bytes=-"),
    *(
        "bytes=99999999999999999999-",
        "bytes=\N{SUPERSCRIPT TWO}-",
        f"bytes=0-{DIGITS}",
        "items=0-1",
    ),
    *(f"bytes=-{DIGITS}", "bytes=" + "0-0," * 500, "bytes= 0 - 1 ", "BYTES=0-1", "bytes=+1-2"),
)
HEADERS: Mapping[str, Sequence[str]] = {
    "Host": (
        *("evil.example", "localhost:99999", "[::1]", "[::1", "a@localhost", "127.0.0.1:", "127.1"),
        *("LOCALHOST.", "localhost:80:80", "2130706433", "[::ffff:127.0.0.1%25a]", "[v1.a]"),
        *("localhost/", "localhost#", "local\N{FULLWIDTH LATIN SMALL LETTER H}ost", "localhost:²"),
    ),
    "Origin": (
        *(
            "null",
            "http://localhost",
            "http://localhost:99999",
            "http://[::1",
            "http://evil.example",
        ),
        *(
            "https://localhost:a",
            "http://",
            "//localhost",
            "http://localhost:²",
            "http://[localhost]",
        ),
    ),
    "Sec-Fetch-Site": ("cross-site", "same-site", "same-origin", "none"),
    "Sec-Fetch-Mode": ("navigate", "cors", "no-cors"),
    "Sec-Fetch-Dest": ("document", "image", "iframe"),
    "Range": RANGES,
    "If-None-Match": TAGS,
    "If-Match": TAGS,
    "If-Range": (*TAGS, *DATES),
    "If-Modified-Since": DATES,
    "Accept": ("application/x-ndjson", "application/x-ndjson;q=0", "*/*;q=x", "a/b," * 500),
    "Accept-Encoding": ("gzip", "gzip;q=0", "identity;q=0, *;q=0", "br"),
    "Content-Type": (
        *("image/png; charset=punycode", "image/*", "image/", "text/plain", "application/json"),
        *(
            "multipart/form-data",
            "multipart/form-data; boundary=",
            'multipart/form-data; boundary="',
        ),
        *(
            "multipart/form-data; boundary=inset-fuzz; charset=punycode",
            "multipart/mixed; boundary=a",
        ),
        *("multipart/form-data; boundary=inset-fuzz; charset=idna", "image/png; charset=undefined"),
        *("multipart/form-data; boundary*=utf-16''%ff", "multipart/form-data; boundary=é"),
        *(f"multipart/form-data; boundary={LONG}", "application/x-www-form-urlencoded"),
    ),
    "Content-Length": (
        *("0", "1", "-1", "+4", "4, 4", "0x4", "1e3", "²", "4 4", "1000000", "268435457"),
        *("99999999999999999999", "18446744073709551617"),
    ),
    "Transfer-Encoding": ("chunked", "identity", "gzip", "gzip, chunked", "xchunked", "Chunked"),
    "Content-Encoding": ("gzip", "br", "identity"),
    "Authorization": (
        *(
            "Bearer",
            "Bearer ",
            "Bearer inset_x",
            "Basic YTpi",
            f"Bearer inset_{'a' * 43}",
            "bearer é",
        ),
        f"Bearer {LONG}",
    ),
    "Cookie": ("inset_key", "inset_key=", "inset_key=inset_x", "=;;;=,", f"inset_key={LONG}"),
    "X-Request-Id": ("mine", "a b", "a" * 128, "a" * 129, "a%0d%0ab", "\N{CAT FACE}"),
    "X-Forwarded-For": ("127.0.0.1", "1.2.3.4", "::1", "a, " * 500, "1.2.3.4:99999"),
    "X-Forwarded-Proto": ("https", "wss", "file"),
    "X-Forwarded-Host": ("evil.example",),
    "Forwarded": ("for=127.0.0.1;host=evil.example",),
    "X-Request-Timeout-Seconds": ("0", "-1", "nan", "inf", "1e999", "0.0001", "a"),
    "X-Request-Disconnect-Disabled": ("?1", "?0"),
    "Serve-Multiplexed-Model-Id": ("a",),
    "serve_multiplexed_model_id": ("a",),
    "X-Session-Id": ("a",),
    "x_session_id": ("a",),
    "traceparent": ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "a"),
    "Connection": ("close", "keep-alive", "Upgrade", "Upgrade, close", "Content-Length"),
    "Upgrade": ("websocket", "h2c"),
    "Sec-WebSocket-Key": ("dGhlIHNhbXBsZSBub25jZQ==",),
    "Sec-WebSocket-Version": ("13", "99"),
    "Expect": ("100-continue", "200-ok"),
    "TE": ("trailers",),
    "Trailer": ("Content-Length",),
    "Access-Control-Request-Method": ("DELETE", "POST"),
    "X-HTTP-Method-Override": ("DELETE",),
}
METHODS = (
    *(
        "HEAD",
        "OPTIONS",
        "PUT",
        "PATCH",
        "TRACE",
        "CONNECT",
        "DELETE",
        "POST",
        "GET",
        "get",
        "QUERY",
    ),
    *("PROPFIND", "PRI", "M-SEARCH", "SOURCE", "X", "", "GET GET", "GE\0T"),
)
PATHS = (
    *("/page/../../serve_config.yaml", "/page/%2e%2e%2fapp.py", "/page/..%5capp.py", "//images"),
    *(
        "/images/",
        "/index/",
        "/images/..%2f..%2fetc%2fpasswd",
        "/images/%00",
        "/page/%00",
        "/page/",
    ),
    *("/images/a%0d%0aX-Evil:1", "/%2e%2e/images", "/images;x=1", "/IMAGES", "/./images", "*", ""),
    *(
        "/images/%ff",
        "/images/%F0%9F%90%88",
        "/images/%ED%A0%80",
        "/-/routes",
        "/-/healthz",
        "/-/x",
    ),
    *(
        "http://evil.example/images",
        "http://localhost",
        "images",
        "/images#a",
        "/%",
        "/%zz",
        "/\xff",
    ),
    *(f"/images/{LONG}", f"/page/{LONG}", "/page/.", "/page/%2e%2e", "/page/%ff", "/images/a/b/c"),
    *(f"/images/{'a' * 200}", f"/images/{'a' * 201}/record", "/images/.", "/images/%2e/record"),
    *(
        "/" + "a/" * 3000,
        "/" + "%2f" * 3000,
        "/search",
        "/index",
        "/images",
        "\\images",
        "/images/?",
    ),
)
PARAMETERS = (
    *("id", "filename", "confidence_threshold", "metadata", "text", "box", "limit", "max_distance"),
    *("max_chunks", "min_sequence", "filter", "verify", "verified", "group", "after", "unknown"),
)
VALUES = (
    *("", "%00", "%ff", "%ED%A0%80", "%F0%9F%90%88", "%", "%zz", "-1", "0", "1", "1.5", "1e309"),
    *(
        "nan",
        "-inf",
        "true",
        "TRUE",
        "null",
        "[]",
        "{}",
        "9223372036854775807",
        "-0",
        "1_0",
        "%2B1",
    ),
    *("9223372036854775808", DIGITS, LONG, "0,0,1,1", "0,0,0,0", "5,5,1,1", "nan,0,0,0", "1,1,,"),
    *("%0d%0aX-Evil:1", "../..", "a=b", ";", "+", "%D9%A1", "a" * 200, "a" * 64, "auto", "all"),
    *(
        "copies",
        "fuzz-shelf-png",
        "a=1",
        "place%3Dhere",
        "date_taken%3E2020",
        "a%3D" * 9,
        "%5B" * 999,
    ),
    *("%7B%22a%22%3A1%7D", "%7B%22a%22%3A%22%5Cud800%22%7D", "%7B%22a%22%3ANaN%7D", "%7B" * 999),
    *("%7B%22a%22%3A1e999%7D", "%7B%22%22%3A1%7D", f"%7B%22a%22%3A{DIGITS}%7D", "\xff", "\xe9"),
)
PARTS = (
    *("Content-Disposition: form-data", 'Content-Disposition: form-data; name="file"', "a", ": a"),
    *(
        'Content-Disposition: attachment; name="file"',
        'Content-Disposition: form-data; name="other"',
    ),
    *('Content-Disposition: form-data; name="metadata"', "Content-Disposition:", "", "\0: \0"),
    *(DISPOSITION.decode() + "\r\nContent-Transfer-Encoding: base64", f"X-Long: {LONG}"),
    *(DISPOSITION.decode() + "\r\n" + f"{DISPOSITION.decode()}\r\n" * 20, "X: y\r\n" * 2000),
    *(
        f'Content-Disposition: form-data; name="file"; {name}'
        for name in (
            *(
                "filename*=utf-8''%ff",
                "filename*=punycode''a",
                "filename*=utf-16''%ff%fe",
                "filename*=",
            ),
            *(
                "filename*0=a; filename*1=b",
                "filename*0*=utf-8''a; filename*99999=b",
                "filename*x=a",
            ),
            *(
                'filename="',
                'filename="\\"',
                'filename="a\0b"',
                "filename=\xff",
                f"filename={LONG}",
            ),
            *(
                'filename="../../a"',
                "filename=a; filename=b",
                "name=file",
                "filename*=''",
                "=",
                ";;",
            ),
            *("filename*=undefined''%41", "filename*=idna''a..b", f"filename*={DIGITS}''a"),
            *('filename="=?utf-8?q?=ff?="', 'filename="=?punycode?b?/w==?="', "filename*1000000=a"),
        )
    ),
)

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
