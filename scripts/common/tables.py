"""Rows of numbers laid out as Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# For each key of a row: the title of its column, and the format of its values.
Columns = Mapping[str, tuple[str, str]]


def titles(columns: Columns) -> list[str]:
    """Return the head of a table."""
    return [title for title, _ in columns.values()]


def cells(row: Mapping[str, Any], columns: Columns) -> list[str]:
    """Format the values of a row; a cell is empty where the value is missing or None."""
    return [
        "" if row.get(key) is None else form.format(row[key]) for key, (_, form) in columns.items()
    ]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table of formatted cells."""
    return "\n".join([*markdown_head(head), *(markdown_row(row) for row in rows)])


def markdown_head(head: Sequence[str]) -> list[str]:
    """Return the first two lines of a table."""
    return [markdown_row(head), "|---" * len(head) + "|"]


def markdown_row(row: Sequence[str]) -> str:
    """Return the line of a row."""
    return f"| {' | '.join(row)} |"


def table(rows: Sequence[Mapping[str, Any]], columns: Columns) -> str:
    """Lay out a table with a line for each row."""
    return markdown(titles(columns), [cells(row, columns) for row in rows])
