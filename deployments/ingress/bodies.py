"""Read request bodies within limits: one image, or several parts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.errors import BadParameter, NotAnImage, TooLarge
from deployments.ingress.filenames import MAX_PIECES, has_extended, read_filename

MAX_PARTS = 1000


class BodyLimit:
    """ASGI middleware: stop reading a request when its body exceeds the limit.

    Args:
        app: the application that answers the requests.
        max_bytes: the limit.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        count = 0

        async def limited() -> Message:
            nonlocal count
            message = await receive()
            count += len(message.get("body", b""))
            if count > self.max_bytes:
                raise TooLarge(
                    f"The request has more than {self.max_bytes:,} bytes: send less at once."
                )
            return message

        await self.app(scope, limited, send)


@dataclass(frozen=True, slots=True)
class SentImage:
    """An image in a request.

    Attributes:
        filename: the client's name for it, see `filenames`.
        read: returns the bytes; raises TooLarge.
    """

    filename: str | None
    read: Callable[[], Awaitable[bytes]]


def has_body(request: Request) -> bool:
    """Return whether a request has a body."""
    length = request.headers.get("content-length", "0")
    return length != "0" or "transfer-encoding" in request.headers


async def read_images(
    request: Request, max_bytes: int, fields: frozenset[str] = frozenset()
) -> tuple[list[SentImage], dict[str, str]]:
    """Return the images in a body, and the texts of its other parts by name.

    Args:
        max_bytes: largest size of one image.
        fields: names of the parts that are allowed besides `file`.

    Raises:
        BadParameter: a part is missing, broken, unknown or sent twice.
        NotAnImage: the body is neither an image nor multipart.
        TooLarge: the image in a body that is not multipart is too large.
    """
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type.startswith("image/"):
        data = await _read_body(request, max_bytes)

        async def whole() -> bytes:
            return data

        return [SentImage(None, whole)], {}
    if media_type != "multipart/form-data":
        raise NotAnImage(
            f"The content type is {media_type or 'missing'}: send the bytes of one image with "
            "Content-Type: image/jpeg (or another image type), or multipart/form-data with parts "
            "named file."
        )
    form = await _parse_form(request)
    unknown = {name for name in form if name not in fields | {"file"}}
    if unknown:
        raise BadParameter(
            f"There are parts named {', '.join(sorted(map(repr, unknown)))}: name each 'file'."
        )
    images = [_sent_image(part, max_bytes) for part in form.getlist("file")]
    if not images:
        raise BadParameter("There is no part named 'file' in the body: send one for each image.")
    return images, {name: _read_field(form, name) for name in fields & form.keys()}


async def _parse_form(request: Request) -> FormData:
    # Starlette keeps parts of more than a megabyte in temporary files, not in memory.
    parser = _Multipart(
        request.headers, request.stream(), max_files=MAX_PARTS, max_fields=MAX_PARTS
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise BadParameter(f"The multipart body can't be read: {error.message}") from None
    if not parser.ended:
        raise BadParameter(
            "The multipart body ends early: its last boundary is missing. Send it again."
        )
    return form


def _read_field(form: FormData, name: str) -> str:
    first, *others = form.getlist(name)
    if others:
        raise BadParameter(f"There are {1 + len(others)} parts named {name!r}: send one.")
    if not isinstance(first, str):
        raise BadParameter(f"The part named {name!r} has a filename: send it without one.")
    return first


class _Multipart(MultiPartParser):
    """Starlette's parser, which drops a truncated part silently; this one notices.

    It also reads every spelling of a file name. `_current_part` is private in Starlette; seen in
    1.10.
    """

    ended = False

    def on_headers_finished(self) -> None:
        part = self._current_part
        header = part.content_disposition or b""
        if header.count(b";") > MAX_PIECES:
            raise MultiPartException(
                f"a Content-Disposition has more than {MAX_PIECES} parameters. Send "
                "only name and filename."
            )
        if has_extended(header) and b"filename" not in parse_options_header(header)[1]:
            # Starlette leaves `filename*` out, and would take the part for a text.
            part.content_disposition = header + b'; filename=""'
        super().on_headers_finished()
        if part.file is not None:
            part.file.filename = read_filename(part.file.filename or "", header)

    def on_end(self) -> None:
        self.ended = True


async def _read_body(request: Request, max_bytes: int) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > max_bytes:
            raise _too_many_bytes(max_bytes)
    return bytes(body)


def _sent_image(part: UploadFile | str, max_bytes: int) -> SentImage:
    if isinstance(part, str):
        raise BadParameter("A part named 'file' has no filename: send it as a file.")

    async def read() -> bytes:
        if (part.size or 0) > max_bytes:
            raise _too_many_bytes(max_bytes)
        return await part.read()

    return SentImage(part.filename or None, read)


def _too_many_bytes(max_bytes: int) -> TooLarge:
    return TooLarge(f"The image has more than {max_bytes:,} bytes: send a smaller one.")
