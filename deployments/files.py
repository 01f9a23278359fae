"""Write files that are never left half written, and sync them to disk."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(file: Path) -> Iterator[BinaryIO]:
    """Open a new file beside `file`, which it durably replaces at the end of the block.

    If the block fails, the new file is removed and `file` is not changed. A file that a killed
    process has left behind is overwritten.

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
    """Sync files or folders to disk. A new file is only durable with its folder's entry."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
