"""What a benchmark sends: photos that are always new, and queries cut from them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from evaluation.queries import Photo, make_queries

SEED = 0


def endless(files: Sequence[Path], first: int = 0) -> Iterator[bytes]:
    """Yield encoded photos endlessly, no two with the same bytes.

    A number is appended to each file, where decoders don't look. It costs nothing, and gives each
    photo an id of its own.

    Args:
        first: the number of the first photo.
    """
    photos = [file.read_bytes() for file in files]
    for number, photo in enumerate(itertools.cycle(photos), first):
        yield photo + number.to_bytes(8, "big")


def cut_queries(files: Sequence[Path]) -> list[bytes]:
    """Return JPEGs of parts of the photos, three of each, as scripts/evaluate.py cuts patches.

    Raises:
        EvaluationFailed: a photo is broken.
    """
    photos = [Photo(file, str(file), str(file)) for file in files]
    return [query.data for query in make_queries(photos, None, SEED)]
