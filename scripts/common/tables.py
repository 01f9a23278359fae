"""Rows of numbers laid out as Markdown tables."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deployments.files import replacing

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


def table_place(text: str) -> str:
    """Check the place of a table in a document, for argparse: before anything is measured.

    Raises:
        argparse.ArgumentTypeError: see `write_table`.
    """
    try:
        _split(text)
    except (ValueError, OSError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def write_table(place: str, text: str) -> None:
    """Write a table into a Markdown document, between two comments that name its place.

    Args:
        place: `FILE#NAME`: the file has `<!-- NAME: ... -->` and after it `<!-- end NAME -->`.
        text: what is to stand between the two.

    Raises:
        ValueError: the file lacks these comments.
        OSError: it can't be read or written.
    """
    before, after = _split(place)
    with replacing(Path(place.partition("#")[0])) as target:
        target.write(f"{before}\n{text}\n\n{after}".encode())


def _split(place: str) -> tuple[str, str]:
    """Return a document up to a place, and from its end on."""
    file, _, name = place.partition("#")
    document = Path(file).read_text()
    begin = re.search(rf"<!-- {re.escape(name)}: .*? -->\n", document)
    end = document.find(f"<!-- end {name} -->")
    if not name or begin is None or end < begin.end():
        raise ValueError(
            f"{file} has no place {name!r}: write FILE#NAME, and put the lines "
            f"<!-- {name}: how it is made --> and <!-- end {name} --> where the table is to stand"
        )
    return document[: begin.end()], document[end:]
