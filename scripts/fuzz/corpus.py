"""Files that are hostile, odd, or only large: built from code, always the same bytes.

Every file stands with the answers that it may get, by what HTTP calls them:

- 200: it is read;
- 413: it is larger than what is read, or costs more;
- 415: it is no format that is read;
- 422: it is broken.

Where several are allowed, decoders differ, and none of the answers harms anybody.
"""

from __future__ import annotations

from collections.abc import Iterator

from fuzz.bombs import bombs
from fuzz.good_files import GOOD, Case, CorpusFile, Group, good_files
from fuzz.metadata import metadata, sequences
from fuzz.others import bmp_oddities, no_pictures, other_formats
from fuzz.sizes import at_the_limit, cut, wrong_size
from fuzz.writers.png import png


def build_corpus() -> list[CorpusFile]:
    """Return all files of the corpus, always the same."""
    return [file for group in GROUPS for file in group_files(group)]


def group_files(group: Group) -> list[CorpusFile]:
    """Return the files of a group of the corpus."""
    return [
        CorpusFile(f"{group.__name__}/{name}", data, expected) for name, data, expected in group()
    ]


def good() -> Iterator[Case]:
    """Files that are as they should be."""
    for name, data in good_files().items():
        yield name, data, GOOD
    yield "one-pixel", png(1, 1), GOOD
    for name, (width, height) in {"wide": (20_000, 2), "high": (2, 20_000)}.items():
        yield name, png(width, height), GOOD


GROUPS: tuple[Group, ...] = (
    good,
    cut,
    wrong_size,
    at_the_limit,
    bombs,
    metadata,
    sequences,
    bmp_oddities,
    other_formats,
    no_pictures,
)
