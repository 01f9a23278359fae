"""Files that are on disk whole or not at all: written beside, synced, then put in place."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(file: Path) -> Iterator[BinaryIO]:
    """Open a new file beside `file`; at the end of the block it takes its place, durably.

    If the block fails, the new file is removed and `file` stays as it was. What a killed process
    left behind is overwritten.

    Raises:
        OSError: the file can't be written.
    """
    partial = file.with_name(f"{file.name}.partial")
    try:
        with partial.open("wb") as target:
            yield target
            target.flush()
            os.fsync(target.fileno())
        os.replace(partial, file)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    sync([file.parent])


def sync(paths: Iterable[Path]) -> None:
    """Make files durable, or the entries of folders: a new file is lost without its entry."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
