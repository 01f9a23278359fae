"""How bulk.py asks a service's store until it answers."""

from __future__ import annotations

import pytest
from loading import stores
from loading.stores import ATTEMPTS, patiently
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import BackPressureError

from deployments.errors import NotAnImage, Unavailable


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waits: list[float] = []
    monkeypatch.setattr(stores.time, "sleep", waits.append)
    return waits


class Calls:
    """Answers one after another; those that are errors are raised."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)

    def __call__(self) -> list:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_it_is_asked_again_until_it_answers(waits) -> None:
    late = [1, Unavailable("Not now.")]
    calls = Calls(ActorDiedError(), late, BackPressureError(1, 1), [1, 2])
    assert patiently(calls) == [1, 2]
    assert waits == [1, 2, 4]


def test_it_is_not_asked_for_ever(waits) -> None:
    with pytest.raises(Unavailable, match=rf"in {ATTEMPTS} attempts: Not now\."):
        patiently(Calls(*[[Unavailable("Not now.")]] * ATTEMPTS))


def test_an_error_of_a_photo_is_an_answer(waits) -> None:
    broken = NotAnImage("It is none.")
    assert patiently(Calls([broken, 1])) == [broken, 1]
    assert waits == []


def test_a_mistake_in_the_store_is_not_waited_for(waits) -> None:
    with pytest.raises(RayTaskError):
        patiently(Calls(RayTaskError("put", "", ValueError("a mistake"))))
    assert waits == []
