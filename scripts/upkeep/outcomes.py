"""How commands of scripts/store.py end when something is wrong."""

from __future__ import annotations

WRONG, NOT_COMPARED, NOT_IN_PLACE = 1, 2, 2


class Refused(Exception):
    """A command can't be run; the message says why, and what to do."""
