"""Refuse what a route doesn't take: unknown parameters, and one that is sent twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from fastapi import Depends, Request, params
from fastapi.routing import APIRoute

from deployments.errors import BadParameter


class StrictRoute(APIRoute):
    """A route that takes only the parameters that /openapi.json describes, each once.

    So a misspelt parameter doesn't pass silently, and nobody has to know which of two counts. A
    list may be given several times. Who may not ask at all is told that first.
    """

    def __init__(
        self, *args: Any, dependencies: Sequence[params.Depends] | None = None, **options: Any
    ) -> None:
        strict = [*(dependencies or ()), Depends(_check_parameters)]
        super().__init__(*args, dependencies=strict, **options)


async def _check_parameters(request: Request) -> None:
    """Check that a request has only parameters of its route.

    Raises:
        BadParameter
    """
    if not request.query_params:
        return
    path = request.app.openapi()["paths"].get(request.scope["route"].path, {})
    operation = path.get(request.method.lower(), {})
    is_list = {
        parameter["name"]: parameter["schema"].get("type") == "array"
        for parameter in operation.get("parameters", ())
        if parameter["in"] == "query"
    }
    counts = Counter(name for name, _ in request.query_params.multi_items())
    wrong = [
        f"there is no parameter {name}" if name not in is_list else f"{name} is given {count} times"
        for name, count in counts.items()
        if name not in is_list or (count > 1 and not is_list[name])
    ]
    if wrong:
        raise BadParameter("; ".join(wrong) + ". See /openapi.json.")
