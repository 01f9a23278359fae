"""Report the results of benchmarks: comparisons, and BENCHMARKS.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from common.tables import Columns, markdown, table

from benchmarks.networks import best, ceiling_rate

Rows = Sequence[Mapping[str, Any]]

COMPARISON_COLUMNS = {
    "what": ("", "{}"),
    "service": ("service", "{:.2f}"),
    "reference": ("reference", "{:.2f}"),
    "difference": ("difference", "{:+.2f}"),
    "ratio": ("ratio", "{:.2f}"),
}


class Section(NamedTuple):
    """A part of BENCHMARKS.md.

    Attributes:
        about: what is measured, and how.
        columns: of its table, besides the encoder.
    """

    title: str
    about: str
    columns: Columns

    def table(self, rows: Rows) -> str:
        """Lay out its table."""
        return table(rows, {"encoder": ("encoder", "{}"), **self.columns})


def compare(tables: Mapping[str, Rows]) -> list[dict[str, Any]]:
    """Compare the service with the ceiling and the yardstick.

    Args:
        tables: the rows of one encoder, by the names of the commands.
    """
    (index,) = tables["index"]
    scripts = {row["script"]: row for row in tables["plain"]}
    searches = {row["clients"]: row for row in tables["search"]}
    rate, crops = index["photos_per_second"], index["crops_per_photo"]
    backends = list(dict.fromkeys(row["backend"] for row in tables["ceiling"]))
    pairs = {
        **{
            f"photos/s against the ceiling of {backend}": (
                rate,
                ceiling_rate(tables["ceiling"], crops, backend),
            )
            for backend in backends
        },
        **{
            f"photos/s against {name}": (rate, script["photos_per_second"])
            for name, script in scripts.items()
        },
        **{
            f"search p50 with 1 client, ms, against one pass through the encoder in {backend}": (
                searches[1]["p50"],
                1000 / best(tables["ceiling"], "encoder", batch=1, backend=backend),
            )
            for backend in backends
        },
        **{
            f"search p50 with 1 client, ms, against {name}": (searches[1]["p50"], script["p50"])
            for name, script in scripts.items()
        },
        **{
            f"searches/s with 8 clients against crops/s of the encoder in {backend}": (
                searches[8]["per_second"],
                best(tables["ceiling"], "encoder", backend=backend),
            )
            for backend in backends
        },
        **{
            f"searches/s with 8 clients against {name} with 8 threads": (
                searches[8]["per_second"],
                script["searches_per_second"],
            )
            for name, script in scripts.items()
        },
        **{
            f"peak PSS, MiB, against {name}": (index["pss"], script["pss"])
            for name, script in scripts.items()
        },
    }
    return [
        {
            "what": what,
            "service": ours,
            "reference": theirs,
            "difference": ours - theirs,
            "ratio": ours / theirs,
        }
        for what, (ours, theirs) in pairs.items()
    ]


def report(results: Mapping[str, Any], sections: Mapping[str, Section]) -> str:
    """Return BENCHMARKS.md.

    Args:
        results: `machine`, `command`, `date`, and the rows of each table by its name in `tables`.
        sections: by the same names, in the order of the report.
    """
    parts = [
        "# Benchmarks",
        "Written by [`scripts/bench.py`](scripts/bench.py), which says of each figure how it was "
        "measured. Machines differ, and so do the hours of a shared one: the ratios hold better "
        "than the figures.",
        f"```sh\n{results['command']}    # {results['date']}\n```",
        markdown(["", ""], [list(item) for item in results["machine"].items()]),
    ]
    for name, section in sections.items():
        if rows := results["tables"].get(name):
            parts += [f"## {section.title}", section.about, section.table(rows)]
    return "\n\n".join(parts) + "\n"
