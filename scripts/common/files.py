"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(file: Path) -> Iterator[BinaryIO]:
    """Open a new file beside `file`; at the end of the block it takes its place.

    If the block fails, the new file is removed and `file` stays as it was.

    Raises:
        OSError: the file can't be written.
    """
    partial = file.with_name(f"{file.name}.partial")
    try:
        with partial.open("wb") as target:
            yield target
            target.flush()
            os.fsync(target.fileno())
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
