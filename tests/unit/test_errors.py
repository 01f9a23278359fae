"""Our own exceptions."""

import pickle

import pytest

from deployments import errors
from deployments.errors import InsetError


@pytest.mark.parametrize("kind", InsetError.__subclasses__())
def test_errors_travel_between_processes(kind):
    error = pickle.loads(pickle.dumps(kind("what is wrong")))
    assert type(error) is kind
    assert (error.detail, error.status) == ("what is wrong", kind.status)
    assert getattr(errors, kind.__name__) is kind
