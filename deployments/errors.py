"""What can go wrong, as exceptions: raised where it is known, turned into HTTP in one place."""

from __future__ import annotations

import logging


class InsetError(Exception):
    """An error that the person who sent the request should read.

    Attributes:
        status: the HTTP status it becomes.
        title: the kind of problem, the same for every instance (RFC 9457 `title`).
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


class UnknownSequence(BadParameter):
    """A search must know a change that the store has never made, or no longer has."""


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
    """The service can't answer now but will: the answer carries Retry-After."""

    status = 503
    title = "Temporarily unavailable"


class StoreFull(InsetError):
    status = 507
    title = "Store full"


class StartupError(Exception):
    """The service can't start as it is configured. One sentence says why and what to do."""


class ModelUnavailable(StartupError):
    """A named model is neither on this machine nor to be had from anywhere we know."""


class EncoderMismatch(StartupError):
    """The store holds vectors of another encoder than the one configured."""


class StoreUnusable(StartupError):
    """The store can't be opened: it is locked, of another format, or not a store."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without its full stop, for use in a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def keep_answers_out_of_the_log() -> None:
    """Let Ray Serve log only the exceptions that are not answers.

    It logs each exception that leaves a replica, with its stack. An `InsetError` is an answer: the
    client gets it, and a photo that does not exist is no event for the terminal.
    """
    logging.getLogger("ray.serve").addFilter(_is_no_answer)


def _is_no_answer(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, InsetError)
