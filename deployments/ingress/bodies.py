"""Read request bodies within limits: one image, or several parts."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from deployments.errors import BadParameter, NotAnImage, TooLarge, Unavailable, first_line
from deployments.ingress.filenames import MAX_PIECES, has_extended, read_filename

logger = logging.getLogger(__name__)

MAX_PARTS = 1000
SPOOL_BYTES = 64 * 2**10  # a part that is larger is kept on disk until it is read
MAX_HEADER_BYTES = 4096  # of Content-Type
MAX_PART_HEADER_BYTES = 8 * 2**10  # of all headers of one part
MAX_HEADERS_BYTES = 2 * 2**20  # of all headers of all parts: enough for the longest names on disks
SHOWN = 100  # characters of what a client sent, in the error about it

# Parsing this much takes a few milliseconds, whatever it is. Others get their turn after that.
PIECE_BYTES = 64 * 2**10


@dataclass(frozen=True, slots=True)
class SentImage:
    """An image in a request.

    Attributes:
        filename: the client's name for it, see `filenames`.
        read: returns the bytes; raises TooLarge.
    """

    filename: str | None
    read: Callable[[], Awaitable[bytes]]


async def has_body(request: Request) -> bool:
    """Return whether a request has a body: whether a first byte comes.

    Headers don't tell. `read_images` reads the body all the same.
    """
    pieces = request.stream()
    first = await anext(pieces)  # at the end of a body there is an empty piece

    async def whole() -> AsyncGenerator[bytes, None]:
        yield first
        async for piece in pieces:
            yield piece

    request.state.body = whole()
    return first != b""


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
        Unavailable: there is no room on disk for the body.
    """
    content_type = request.headers.get("content-type", "")
    media_type = content_type.split(";")[0].strip().lower()
    if media_type.startswith("image/"):
        data = await _read_body(request, max_bytes)

        async def whole() -> bytes:
            return data

        return [SentImage(None, whole)], {}
    if media_type != "multipart/form-data":
        raise NotAnImage(
            f"The content type is {media_type[:SHOWN] or 'missing'}: send the bytes of one image "
            "with Content-Type: image/jpeg (or another image type), or multipart/form-data with "
            "parts named file."
        )
    form = await _parse_form(_Multipart(_read_boundary(content_type), _stream(request), fields))
    images = [_sent_image(part, max_bytes) for part in form.getlist("file")]
    if not images:
        raise BadParameter("There is no part named 'file' in the body: send one for each image.")
    return images, {name: str(form[name]) for name in fields & form.keys()}


async def _parse_form(parser: _Multipart) -> FormData:
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise BadParameter(f"The multipart body can't be read: {error.message}") from None
    except OSError as error:
        logger.error("Parts of a body can't be kept on disk: %s", error)
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        problem = "is full" if is_full else f"can't be used ({first_line(error)})"
        raise Unavailable(f"The service's temporary folder {problem}: try again.") from None
    if not parser.ended:
        raise BadParameter(
            "The multipart body ends early: its last boundary is missing. Send it again."
        )
    return form


def _read_boundary(content_type: str) -> bytes:
    """Return what separates the parts."""
    if len(content_type) > MAX_HEADER_BYTES:
        raise BadParameter(
            f"The Content-Type has more than {MAX_HEADER_BYTES:,} bytes: send only boundary=."
        )
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if boundary is None:
        raise BadParameter("The Content-Type has no boundary: send what separates the parts.")
    return boundary


async def _stream(request: Request) -> AsyncGenerator[bytes, None]:
    """Yield a body in pieces that aren't large, and give others their turn after each."""
    async for piece in getattr(request.state, "body", None) or request.stream():
        for start in range(0, len(piece), PIECE_BYTES):
            yield piece[start : start + PIECE_BYTES]
            await asyncio.sleep(0)


class _Multipart(MultiPartParser):
    """Starlette's parser, which drops a truncated part silently; this one notices.

    It also reads every spelling of a file name, and refuses a part as soon as its headers are
    there. Texts are in UTF-8, whatever `charset` the content type has: Starlette would look for it
    among all codecs. `_current_part` and what else begins so is private in Starlette; seen in 1.10.

    Args:
        boundary: what separates the parts.
        stream: the body.
        fields: names of the texts that are allowed.
    """

    spool_max_size = SPOOL_BYTES

    def __init__(
        self, boundary: bytes, stream: AsyncGenerator[bytes, None], fields: frozenset[str]
    ) -> None:
        quoted = boundary.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
        headers = Headers(raw=[(b"content-type", b'multipart/form-data; boundary="%b"' % quoted)])
        super().__init__(headers, stream, max_files=MAX_PARTS)
        self.ended = False
        self._fields = fields
        self._texts: set[str] = set()
        self._part_header_bytes = self._headers_bytes = 0

    def on_part_begin(self) -> None:
        super().on_part_begin()
        self._part_header_bytes = 0

    def on_header_end(self) -> None:
        size = len(self._current_partial_header_name) + len(self._current_partial_header_value)
        self._part_header_bytes += size
        self._headers_bytes += size
        if self._part_header_bytes > MAX_PART_HEADER_BYTES:
            raise MultiPartException(
                f"the headers of a part have more than {MAX_PART_HEADER_BYTES:,} bytes."
            )
        if self._headers_bytes > MAX_HEADERS_BYTES:
            raise MultiPartException(
                f"the headers of all parts have more than {MAX_HEADERS_BYTES:,} bytes."
            )
        super().on_header_end()

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
        self._check(part.field_name, part.file)
        if part.file is not None:
            part.file.filename = read_filename(part.file.filename or "", header)

    def _check(self, name: str, file: UploadFile | None) -> None:
        if name == "file":
            if file is None:
                raise BadParameter("A part named 'file' has no filename: send it as a file.")
            return
        if name not in self._fields:
            raise BadParameter(f"There is a part named {name[:SHOWN]!r}: name each 'file'.")
        if file is not None:
            raise BadParameter(f"The part named {name!r} has a filename: send it without one.")
        if name in self._texts:
            raise BadParameter(f"There are several parts named {name!r}: send one.")
        self._texts.add(name)

    def on_end(self) -> None:
        self.ended = True


async def _read_body(request: Request, max_bytes: int) -> bytes:
    body = bytearray()
    async for piece in _stream(request):
        body += piece
        if len(body) > max_bytes:
            raise _too_many_bytes(max_bytes)
    return bytes(body)


def _sent_image(part: UploadFile | str, max_bytes: int) -> SentImage:
    assert isinstance(part, UploadFile)  # the parser has checked it

    async def read() -> bytes:
        if (part.size or 0) > max_bytes:
            raise _too_many_bytes(max_bytes)
        return await part.read()

    return SentImage(part.filename or None, read)


def _too_many_bytes(max_bytes: int) -> TooLarge:
    return TooLarge(f"The image has more than {max_bytes:,} bytes: send a smaller one.")
