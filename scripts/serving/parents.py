"""Processes that end with their parent, even if that is killed."""

from __future__ import annotations

import ctypes
import sys

PR_SET_PDEATHSIG = 1  # of Linux's prctl


def end_with_parent(signal: int) -> None:
    """Let this process get a signal when its parent ends. Only Linux can do that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal)
