"""Answer the bytes of pictures: whole, in part, or not at all if the client has them."""

from __future__ import annotations

import hashlib
from http import HTTPStatus

from fastapi import HTTPException, Request, Response

from deployments.ingress.conditions import Unsatisfiable, has_tag, read_range
from deployments.ingress.head import is_head
from deployments.ingress.service import Inset
from deployments.limits import THUMBNAIL_TYPE
from deployments.records import Record

# Browsers may keep a picture, for whoever is signed in there, but ask each time if it is the same.
_ASK = "private, no-cache"
# A photo whose id is the SHA-256 of its bytes never has others, so they needn't ask for a year.
_KEEP = "private, max-age=31536000, immutable"


async def answer_original(request: Request, inset: Inset, id: str) -> Response:
    """Return an answer with the original of a photo, or with the part that is asked for.

    The original is read only if it is sent, and of a part only that part. The whole is compared
    with its SHA-256 first, a part is not.

    Raises:
        HTTPException: there is nothing in the range (416).
        BadParameter, UnknownId, CorruptRecord, Unavailable
    """
    while True:
        record = await inset.record(id)
        headers = _describe(record)
        if _is_unchanged(request, headers["ETag"]):
            return Response(status_code=304, headers=headers)
        if is_head(request):
            headers["Content-Length"] = str(record.bytes)
            return Response(media_type=record.media_type, headers=headers)
        asked = _read_range(request, headers["ETag"], record.bytes)
        if asked is None:
            record, data = await inset.get(id)
            return Response(data, media_type=record.media_type, headers=_describe(record))
        part = await inset.part(id, record.sha256, asked.start, asked.stop)
        if part is not None:  # else the photo was replaced meanwhile
            headers["Content-Range"] = f"bytes {asked.start}-{asked.stop - 1}/{record.bytes}"
            return Response(part, 206, media_type=record.media_type, headers=headers)


def answer_thumbnail(request: Request, data: bytes) -> Response:
    """Return an answer with a thumbnail."""
    tag = f'"{hashlib.sha256(data).hexdigest()}"'
    headers = {"ETag": tag, "Cache-Control": _ASK}
    if _is_unchanged(request, tag):
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=THUMBNAIL_TYPE, headers=headers)


def _is_unchanged(request: Request, tag: str) -> bool:
    """Return whether the client has what this entity tag names."""
    return has_tag(", ".join(request.headers.getlist("if-none-match")), tag)


def _describe(record: Record) -> dict[str, str]:
    return {
        "ETag": f'"{record.sha256}"',
        "Cache-Control": _KEEP if record.id == record.sha256 else _ASK,
        "Accept-Ranges": "bytes",
    }


def _read_range(request: Request, tag: str, size: int) -> range | None:
    try:
        ranges = ", ".join(request.headers.getlist("range"))
        return read_range(ranges, request.headers.get("if-range"), tag, size)
    except Unsatisfiable:
        raise HTTPException(
            HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
            f"The photo has {size:,} bytes: ask for a range that begins within them.",
            {"Content-Range": f"bytes */{size}"},
        ) from None
