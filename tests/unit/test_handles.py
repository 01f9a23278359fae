"""The types of handles against the classes of the deployments that are behind them."""

import inspect
import typing
from collections.abc import Callable

import pytest

from deployments import handles
from deployments.chunk_index.deployment import ChunkIndexDeployment
from deployments.encoder.deployment import QueryEncoderDeployment
from deployments.photo_encoder.deployment import PhotoEncoderDeployment
from deployments.store.deployment import StoreDeployment
from deployments.verifier.deployment import VerifierDeployment

DEPLOYMENTS = {
    handles.PhotoEncoderHandle: PhotoEncoderDeployment,
    handles.QueryEncoderHandle: QueryEncoderDeployment,
    handles.ChunkIndexHandle: ChunkIndexDeployment,
    handles.VerifierHandle: VerifierDeployment,
    handles.StoreHandle: StoreDeployment,
}
CASES = [
    pytest.param(deployment.func_or_class, name, method, id=f"{deployment.name}.{name}")
    for handle, deployment in DEPLOYMENTS.items()
    for name, method in typing.get_type_hints(handle, include_extras=True).items()
]


def now(argument):
    """Return the type of an argument that may also be passed as an answer to come."""
    choices = typing.get_args(argument)
    answers = [one for one in choices if typing.get_origin(one) is handles.Response]
    if not answers:
        return argument
    return next(one for one in choices if one not in answers)


@pytest.mark.parametrize(("deployment", "name", "method"), CASES)
def test_a_method_has_the_types_of_its_handle(deployment: type, name: str, method: object):
    arguments, answer = typing.get_args(method)
    function: Callable = getattr(deployment, name)
    assert inspect.iscoroutinefunction(function)
    hints = typing.get_type_hints(function, include_extras=True)
    assert hints.pop("return") == (type(None) if answer is None else answer)
    assert [now(argument) for argument in arguments] == list(hints.values())


def test_handles_have_every_method_that_others_may_call():
    """What only Serve calls is none of theirs."""
    for handle, deployment in DEPLOYMENTS.items():
        own = vars(deployment.func_or_class)
        public = {name for name in own if inspect.isfunction(own[name]) and name[0] != "_"}
        assert public - {"check_health"} == set(typing.get_type_hints(handle))
