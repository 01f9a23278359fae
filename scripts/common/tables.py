"""Figures laid out as Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# The key of a figure, its title, and how it is written.
Columns = Mapping[str, tuple[str, str]]


def titles(columns: Columns) -> list[str]:
    """Return the head of a table."""
    return [title for title, _ in columns.values()]


def cells(figures: Mapping[str, Any], columns: Columns) -> list[str]:
    """Write the figures of a row; a cell is empty where there is none."""
    return [
        "" if figures.get(key) is None else form.format(figures[key])
        for key, (_, form) in columns.items()
    ]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table of written cells."""
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def table(rows: Sequence[Mapping[str, Any]], columns: Columns) -> str:
    """Lay out a row for each mapping of figures."""
    return markdown(titles(columns), [cells(row, columns) for row in rows])
