"""What replicas write into Ray Serve's log."""

from __future__ import annotations

import logging

import ray

from deployments.errors import InsetError

SERVE, OURS = "ray.serve", "deployments"


def join_the_log() -> None:
    """Let our own lines stand in Serve's log, and keep answers out of it.

    There each line has the id of the request that it is about, in every deployment that the request
    came through; it is the `X-Request-Id` of the answer.

    Serve also logs every exception that leaves a replica, with its stack. But an `InsetError` is an
    answer that the client gets, and an unknown id is not worth a line.
    """
    serve = logging.getLogger(SERVE)
    serve.addFilter(_is_not_an_answer)
    if ray.is_initialized():  # else this is no replica, and Serve has no log
        logging.getLogger(OURS).parent = serve


def _is_not_an_answer(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, InsetError)
