"""Faults that are put into running code, one step after the other."""

import linecache
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Fault:
    """Whether the fault has happened."""

    happened = False


@contextmanager
def memory_ends_at(step: int, folder: Path) -> Iterator[Fault]:
    """Let one line of code in a folder fail as if memory had run out.

    Args:
        step: number of the line, in the order in which this thread executes them, from 0.
    """
    fault, left = Fault(), step

    def trace(frame, event, argument):
        nonlocal left
        if not frame.f_code.co_filename.startswith(str(folder)):
            return None
        # An exception in the line of a `with`, on the way out, would leave a lock locked.
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and not line.lstrip().startswith("with ") and not fault.happened:
            if left == 0:
                fault.happened = True
                raise MemoryError("a test's")
            left -= 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield fault
    finally:
        sys.settrace(before)
