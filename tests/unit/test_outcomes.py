"""What becomes of each of several things that are worked at together."""

import asyncio
import logging

import pytest

from deployments.errors import NotAnImage
from deployments.outcomes import go_on, outcome_of_each


async def answer(value):
    await asyncio.sleep(0)
    if isinstance(value, BaseException):
        raise value
    return value


def test_an_error_is_that_of_one(caplog):
    broken, mistake = NotAnImage("It is none."), ValueError("a mistake")
    caplog.set_level(logging.ERROR)
    outcomes = asyncio.run(outcome_of_each(map(answer, [1, broken, 2, mistake])))
    assert outcomes == [1, broken, 2, mistake]
    # What should not happen is logged with its stack, and nothing else is.
    (logged,) = caplog.records
    assert logged.exc_info[1] is mistake


def test_who_calls_it_off_has_called_all_of_it_off():
    async def run():
        waiting = [asyncio.create_task(asyncio.sleep(60)) for _ in range(3)]
        together = asyncio.create_task(outcome_of_each(waiting))
        await asyncio.sleep(0)
        together.cancel()
        with pytest.raises(asyncio.CancelledError):
            await together
        await asyncio.sleep(0)
        return [task.cancelled() for task in waiting]

    assert asyncio.run(run()) == [True] * 3


def test_one_that_was_called_off_is_no_outcome():
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(outcome_of_each(map(answer, [1, asyncio.CancelledError()])))


def test_errors_stay_what_they_are_in_the_next_step():
    first, second = NotAnImage("first"), NotAnImage("second")
    assert go_on(["a", first, "b", "c"], [1, second, 3]) == [1, first, second, 3]
    assert go_on([], []) == []
