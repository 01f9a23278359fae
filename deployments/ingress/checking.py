"""Check what was sent with a photo, before any work is done for it."""

from __future__ import annotations

import hashlib
import re

from deployments.errors import BadParameter
from deployments.ingress.filenames import tidy
from deployments.metadata import check_metadata
from deployments.query import check_range
from deployments.records import CheckedPhoto, NewPhoto, check_id


def check_photo(photo: NewPhoto) -> CheckedPhoto:
    """Check a photo's id, threshold and metadata, and make its file name fit for display.

    Raises:
        BadParameter
    """
    if photo.confidence_threshold is not None:
        check_range("confidence_threshold", photo.confidence_threshold, 0, 1)
    metadata = check_metadata({} if photo.metadata is None else photo.metadata)
    digest = hashlib.sha256(photo.data).hexdigest()
    return CheckedPhoto(
        id=digest if photo.id is None else _check_digest(check_id(photo.id), digest),
        sha256=digest,
        data=photo.data,
        filename=None if photo.filename is None else tidy(photo.filename),
        confidence_threshold=photo.confidence_threshold,
        metadata=metadata,
    )


def _check_digest(id: str, digest: str) -> str:
    """Return a valid id, unless it could be the SHA-256 of other bytes.

    Raises:
        BadParameter
    """
    if re.fullmatch("[0-9A-Fa-f]{64}", id) and id != digest:
        raise BadParameter(
            f"The id {id} looks like a SHA-256, but that of the photo is {digest}. Leave the id "
            "out, or choose one that isn't 64 hexadecimal digits."
        )
    return id
