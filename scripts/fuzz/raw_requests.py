"""Send bytes as requests over connections that are kept, and look at what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httptools

from fuzz.clients import MOST_WORDS, Findings
from fuzz.odd_requests import OddRequest

CONNECTIONS = 16
ANSWER_S = 30.0  # in which a whole request must have an answer
WAITING_S = 0.2  # how long something may be said to a request that isn't whole
ATTEMPTS = 3  # a connection may have been closed just before, or before its answer was read
MOST_HEAD_BYTES = 2**20  # of an answer

PROBLEM = b"application/problem+json"
NO_HTTP = b"Invalid HTTP request received."
NO_UTF_8 = b"Internal Server Error"
NO_WEBSOCKET = b"Failed to open a WebSocket connection"
# Server's errors that say that it has no time or no room, and are promised.
REFUSALS = (503, 507)
# Headers that Ray's proxy reads as UTF-8 before the service sees the request. The last two, and
# these alone, are also read with - for _ and the other way round.
READ_BY_PROXY = (
    *(b"x-request-id", b"x-request-timeout-seconds", b"x-request-disconnect-disabled"),
    *(b"serve_multiplexed_model_id", b"x_session_id"),
)


@dataclass(slots=True)
class Message:
    """A request, as the server reads it."""

    method: bytes = b""
    path: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    is_whole: bool = False

    def values(self, name: bytes) -> list[bytes]:
        """Return the values of a header."""
        return [value for key, value in self.headers if key.lower() == name]

    @property
    def is_upgrade(self) -> bool:
        """Whether it asks for a WebSocket."""
        return b"websocket" in [value.lower() for value in self.values(b"upgrade")]


@dataclass(slots=True)
class Outline:
    """What the parser of the server finds in bytes.

    The service runs behind the same parser (uvicorn's httptools), so this tells exactly what has to
    be answered.

    Attributes:
        messages: requests; the last one may not be whole.
        is_broken: they go on with what is no HTTP.
        keeps: the connection can be used again.
    """

    messages: list[Message] = field(default_factory=list)
    is_broken: bool = False
    keeps: bool = False

    @property
    def whole(self) -> int:
        """How many requests are whole."""
        return sum(message.is_whole for message in self.messages)


class _Reader:
    """Takes down what httptools calls out."""

    def __init__(self) -> None:
        self.outline = Outline()
        self.parser = httptools.HttpRequestParser(self)

    def on_message_begin(self) -> None:
        self.outline.messages.append(Message())

    def on_url(self, url: bytes) -> None:
        self.outline.messages[-1].path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.outline.messages[-1].headers.append((name, value))

    def on_headers_complete(self) -> None:
        message = self.outline.messages[-1]
        message.method = self.parser.get_method()
        httptools.parse_url(message.path).path.decode("ascii")  # else uvicorn calls it broken

    def on_message_complete(self) -> None:
        self.outline.messages[-1].is_whole = True
        self.outline.keeps = self.parser.should_keep_alive()


def read_outline(data: bytes) -> Outline:
    """Return what the parser of the server finds in bytes."""
    reader = _Reader()
    outline = reader.outline
    try:
        reader.parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        outline.keeps = False
    except httptools.HttpParserError:
        outline.is_broken = True
    outline.keeps &= not outline.is_broken and all(one.is_whole for one in outline.messages)
    return outline


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer.

    Attributes:
        keeps: the connection can be used again.
    """

    status: int
    headers: dict[bytes, bytes]
    body: bytes
    keeps: bool

    @property
    def content_type(self) -> bytes:
        """What the body is, without parameters."""
        return self.headers.get(b"content-type", b"").partition(b";")[0]


def whose(message: Message | None, answer: Answer) -> str | None:
    """Return who gave an answer that the service never saw; None if that was the service itself.

    Args:
        message: which it is for; None if there is none.
    """
    if answer.content_type != b"text/plain":
        return None
    # If what comes after a HEAD is no HTTP, this may come instead of its answer.
    if answer.status == 400 and _is(answer, NO_HTTP, message):
        return "uvicorn: no HTTP"
    if message is None:
        return None
    is_refused = answer.status < 500 and (not answer.body or answer.body.startswith(NO_WEBSOCKET))
    if message.is_upgrade and is_refused:
        return "uvicorn: no WebSocket"
    if answer.status == 404 and not message.path.startswith(b"/"):
        return "Ray's proxy: no path"
    if answer.status == 408 and message.values(b"x-request-timeout-seconds"):
        return "Ray's proxy: time is up"
    # The service's own answers have an id.
    is_plain = answer.status == 500 and _is(answer, NO_UTF_8, message)
    if is_plain and b"x-request-id" not in answer.headers and _is_unreadable(message):
        return "Ray's proxy: no UTF-8"
    return None


def _is(answer: Answer, text: bytes, message: Message | None) -> bool:
    """Return whether an answer is this text; to a HEAD, whether it would be as long."""
    if message is not None and message.method == b"HEAD":
        return answer.headers.get(b"content-length") == b"%d" % len(text)
    return answer.body == text


def _is_unreadable(message: Message) -> bool:
    """Return whether Ray's proxy fails at a header of a request.

    It decodes the values of some headers as UTF-8, and does so before the service is asked.
    """
    for name, value in message.headers:
        name = name.lower()
        if name in READ_BY_PROXY or name.replace(b"-", b"_") in READ_BY_PROXY[-2:]:
            try:
                value.decode()
            except UnicodeDecodeError:
                return True
    return False


def judge_answer(answer: Answer) -> str | None:
    """Return what is wrong with an answer of the service; None if nothing is."""
    shown = answer.body[:MOST_WORDS]
    if answer.status >= 500 and answer.status not in REFUSALS:
        return f"was answered {answer.status}: {shown!r}"
    if answer.status >= 400 and answer.content_type != PROBLEM:
        return f"was answered {answer.status} without a problem: {shown!r}"
    return None


class Unreadable(Exception):
    """What came back is no HTTP."""


class Connection:
    """A connection to a service."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, url: str) -> Connection:
        """Connect to a service."""
        parts = urlsplit(url)
        tls = parts.scheme == "https" or None
        port = parts.port or (443 if tls else 80)
        return cls(
            *await asyncio.open_connection(parts.hostname, port, ssl=tls, limit=MOST_HEAD_BYTES)
        )

    def send(self, data: bytes) -> None:
        """Send bytes; whether they arrive is seen by what is answered."""
        self._writer.write(data)

    async def read(self, method: bytes) -> Answer | None:
        """Return the next answer; None if the other side closes instead.

        Args:
            method: of the request.

        Raises:
            Unreadable, ConnectionError
        """
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise Unreadable(repr(error.partial[:MOST_WORDS])) from None
            return None
        except asyncio.LimitOverrunError:
            raise Unreadable("its head has no end") from None
        try:
            line, *rest = head[:-4].split(b"\r\n")
            version, status = line.split(b" ", 2)[:2]
            if not version.startswith(b"HTTP/1."):
                raise ValueError
            code = int(status)
            headers = {}
            for header in rest:
                name, _, value = header.partition(b":")
                headers[name.lower()] = value.strip()
            if code in (100, 102, 103):
                return await self.read(method)
            body, ends = await self._read_body(method, code, headers)
        except asyncio.IncompleteReadError:
            raise Unreadable("it ends early") from None
        except (ValueError, asyncio.LimitOverrunError):
            raise Unreadable(repr(head[:MOST_WORDS])) from None
        keeps = ends and headers.get(b"connection", b"").lower() != b"close"
        return Answer(code, headers, body, keeps)

    async def _read_body(
        self, method: bytes, status: int, headers: dict[bytes, bytes]
    ) -> tuple[bytes, bool]:
        """Return a body, and whether the connection goes on after it."""
        if method == b"HEAD" or status in (101, 204, 304):
            return b"", status != 101
        if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
            body = b""
            while size := int((await self._reader.readuntil(b"\r\n")).split(b";")[0], 16):
                body += (await self._reader.readexactly(size + 2))[:-2]
            await self._reader.readuntil(b"\r\n")
            return body, True
        if b"content-length" in headers:
            return await self._reader.readexactly(int(headers[b"content-length"])), True
        return await self._reader.read(), False

    def close(self) -> None:
        """Hang up."""
        self._writer.close()


class RawClients:
    """Clients that send requests as bytes, several at a time.

    Args:
        url: of the service.
        findings: gets the answers.
        abort: called when this process is interrupted.
        answer_s: how long a whole request may wait for its answer.
    """

    def __init__(
        self,
        url: str,
        findings: Findings,
        abort: Callable[[], object] = lambda: None,
        answer_s: float = ANSWER_S,
    ) -> None:
        self._url = url
        self._findings = findings
        self._abort = abort
        self._answer_s = answer_s

    def send_all(
        self, requests: Iterator[OddRequest], done: Callable[[OddRequest], object]
    ) -> None:
        """Send requests, each as soon as a connection is free.

        Args:
            done: called after each.
        """
        try:
            asyncio.run(self._send_all(requests, done))
        except BaseException:
            self._abort()
            raise

    async def _send_all(
        self, requests: Iterator[OddRequest], done: Callable[[OddRequest], object]
    ) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(CONNECTIONS):
                group.create_task(self._work(requests, done))

    async def _work(
        self, requests: Iterator[OddRequest], done: Callable[[OddRequest], object]
    ) -> None:
        connection: Connection | None = None
        for request in requests:
            self._findings.begin(request)
            connection = await self._send(connection, request)
            done(request)
        if connection is not None:
            connection.close()

    async def _send(self, connection: Connection | None, request: OddRequest) -> Connection | None:
        """Send a request and report what is wrong; return the connection if it stays usable."""
        outline = read_outline(request.data)
        wrong = "was not answered"
        for _ in range(ATTEMPTS):
            try:
                if connection is None:
                    connection = await Connection.open(self._url)
                connection.send(request.data)
                keeps = await self._hear(connection, request, outline)
            except Unreadable as error:
                wrong = f"was answered by what is no HTTP: {error}"
                break
            except TimeoutError:
                wrong = f"had no answer in {self._answer_s:.0f} s"
                break
            except OSError as error:
                wrong = f"was not answered ({type(error).__name__} {error})"
            else:
                if not keeps:
                    connection.close()
                return connection if keeps else None
            if connection is not None:
                connection.close()
                connection = None
        if connection is not None:
            connection.close()
        self._findings.count(request, 0)
        if not (outline.is_broken and wrong.startswith("was not answered")):
            self._findings.report(f"{request.name} ({request.row}) {wrong}", request)
        return None

    async def _hear(self, connection: Connection, request: OddRequest, outline: Outline) -> bool:
        """Read all answers to a request; return whether the connection stays usable.

        Raises:
            Unreadable, TimeoutError, OSError
        """
        due = max(outline.whole, outline.is_broken)
        for number in range(due):
            message = outline.messages[number] if number < len(outline.messages) else None
            async with asyncio.timeout(self._answer_s):
                answer = await connection.read(message.method if message else b"")
            if answer is None:
                if number == 0:
                    raise ConnectionResetError("closed")
                return False
            self._judge(request, outline, message, answer)
            if not answer.keeps:
                return False
        if due < len(outline.messages) or not outline.messages:
            await self._hear_early(connection, request, outline)
            return False
        return outline.keeps

    async def _hear_early(
        self, connection: Connection, request: OddRequest, outline: Outline
    ) -> None:
        """Read the answer to a request that isn't whole, if there is one; then hang up."""
        message = outline.messages[-1] if outline.messages else None
        answer = None
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(WAITING_S):
                answer = await connection.read(message.method if message else b"")
        if answer is None:
            self._findings.count(request, 0)
        else:
            self._judge(request, outline, message, answer)

    def _judge(
        self, request: OddRequest, outline: Outline, message: Message | None, answer: Answer
    ) -> None:
        other = whose(message, answer)
        if other is not None:
            self._findings.count(OddRequest(request.name, other, b""), answer.status)
            return
        self._findings.count(request, answer.status)
        if (wrong := judge_answer(answer)) is not None:
            self._findings.report(f"{request.name} ({request.row}) {wrong}", request)
