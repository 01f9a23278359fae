"""Refuse what a route doesn't take: unknown parameters, and one that is sent twice."""

from __future__ import annotations

from collections import Counter

from fastapi import Request

from deployments.errors import BadParameter


async def check_parameters(request: Request) -> None:
    """Check that a request has only parameters that /openapi.json describes, each once.

    So a misspelt parameter doesn't pass silently, and nobody has to know which of two counts. A
    list may be given several times.

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
