"""The exceptions of the service. `ingress/problems.py` turns them into HTTP answers."""

from __future__ import annotations


class InsetError(Exception):
    """An error whose message is for the client that sent the request.

    Attributes:
        status: the HTTP status of the answer.
        title: the kind of error, the same for every instance (RFC 9457 `title`).
        detail: what is wrong this time, and what to do (RFC 9457 `detail`).
    """

    status = 500
    title = "Internal error"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class BadParameter(InsetError):
    status = 400
    title = "Bad parameter"


class NoKey(InsetError):
    """The request has no key, or a wrong one: the answer has WWW-Authenticate."""

    status = 401
    title = "No valid key"


class Forbidden(InsetError):
    status = 403
    title = "Not allowed"


class TooSlow(InsetError):
    status = 408
    title = "Too slow"


class WrongHost(InsetError):
    status = 421
    title = "Not a name of this service"


class UnknownSequence(BadParameter):
    """A search must know a change that the store does not have (yet, or after a restore)."""


class UnknownId(InsetError):
    status = 404
    title = "Unknown id"


class IdTaken(InsetError):
    status = 409
    title = "Id taken by other content"


class TooLarge(InsetError):
    status = 413
    title = "Too large"


class NotAnImage(InsetError):
    status = 415
    title = "Not an image we read"


class BrokenImage(InsetError):
    status = 422
    title = "Broken image"


class CorruptRecord(InsetError):
    status = 500
    title = "Corrupt record"


class Unavailable(InsetError):
    """The service can't answer now, but will later: the answer has Retry-After.

    Attributes:
        retry_after_s: in how many seconds it is worth another try.
    """

    status = 503
    title = "Temporarily unavailable"

    def __init__(self, detail: str, retry_after_s: int = 2) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class StoreFull(InsetError):
    status = 507
    title = "Store full"


class StartupError(Exception):
    """The service can't start with this configuration. The message says why and what to do."""


class ModelUnavailable(StartupError):
    """A configured model is neither on this machine nor can it be downloaded."""


class EncoderMismatch(StartupError):
    """The store's vectors, or a replica's weights, are of another encoder than the others."""


class StoreUnusable(StartupError):
    """The store can't be opened: it is locked, of another format, or not a store."""


class StoreDiskFailed(StoreUnusable):
    """The store can't be opened because its disk fails or is full, which may pass."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without its full stop, for use in a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
