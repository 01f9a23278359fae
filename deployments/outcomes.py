"""Outcomes: what becomes of each of several things that are worked at together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterable
from typing import TypeAlias, TypeVar

from deployments.errors import InsetError

logger = logging.getLogger(__name__)

T = TypeVar("T")
Before = TypeVar("Before")
# The result of an item, or its error, which is nobody else's.
Outcome: TypeAlias = T | Exception


async def outcome_of_each(work: Iterable[Awaitable[T]]) -> list[Outcome[T]]:
    """Wait for all of some work; return what becomes of each, in order.

    An error that should not happen is logged here, because its stack doesn't leave this process.
    """
    outcomes: list[Outcome[T]] = []
    for outcome in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(outcome, BaseException):
            if not isinstance(outcome, Exception):
                raise outcome  # somebody called this off
            if not isinstance(outcome, InsetError):
                logger.error("one of several failed", exc_info=outcome)
        outcomes.append(outcome)
    return outcomes


def go_on(before: Iterable[Outcome[Before]], results: Iterable[Outcome[T]]) -> list[Outcome[T]]:
    """Return what has become of each item after a further step.

    Args:
        before: what had become of each until then. An error stays what it is.
        results: of the others, in order.
    """
    following = iter(results)
    return [one if isinstance(one, Exception) else next(following) for one in before]
