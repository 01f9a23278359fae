"""What stands in the log, and what doesn't."""

import logging

import pytest

from deployments.errors import UnknownId
from deployments.logs import join_the_log


@pytest.fixture
def logged(caplog):
    """Log an exception as Ray Serve does; returns whether it came through."""
    serve_logger = logging.getLogger("ray.serve")
    join_the_log()
    serve_logger.addHandler(caplog.handler)

    def log(error):
        caplog.clear()
        try:
            raise error
        except Exception:
            serve_logger.exception("Request failed.")
        return bool(caplog.records)

    yield log
    serve_logger.removeHandler(caplog.handler)
    serve_logger.filters.clear()


def test_an_answer_is_no_event(logged):
    assert not logged(UnknownId("There is no photo with the id 'a'."))


def test_what_was_not_foreseen_is_logged(logged):
    assert logged(ValueError("oh"))


@pytest.mark.parametrize("is_replica", [True, False])
def test_our_own_lines_go_where_serves_go(logged, monkeypatch, is_replica):
    monkeypatch.setattr("ray.is_initialized", lambda: is_replica)
    ours, serve_logger = logging.getLogger("deployments"), logging.getLogger("ray.serve")
    monkeypatch.setattr(ours, "parent", logging.root)
    join_the_log()
    assert (ours.parent is serve_logger) == is_replica
