"""What is logged of our own exceptions, and what of others."""

import logging
import pickle

import pytest

from deployments import errors
from deployments.errors import InsetError, UnknownId


@pytest.fixture
def logged(caplog):
    """Log an exception as Ray Serve does; returns whether it came through."""
    serve_logger = logging.getLogger("ray.serve")
    errors.keep_answers_out_of_the_log()
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


@pytest.mark.parametrize("kind", InsetError.__subclasses__())
def test_errors_travel_between_processes(kind):
    error = pickle.loads(pickle.dumps(kind("what is wrong")))
    assert type(error) is kind
    assert (error.detail, error.status) == ("what is wrong", kind.status)
    assert getattr(errors, kind.__name__) is kind
