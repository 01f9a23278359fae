"""The crash test, in short."""

from __future__ import annotations

import shutil
from collections import Counter

import pytest
from crash import kills
from crash.kills import ALL
from crashtest import crash


@pytest.mark.slow
def test_nothing_is_lost_whatever_is_killed_or_fails(tmp_path, monkeypatch):
    """Nor at the end, which is that of Ctrl-C: nothing is left of the service, and its store has
    what it had.
    """
    monkeypatch.setattr(kills, "LONGEST_FAULT_S", 1)
    monkeypatch.setattr(kills, "KILLED_IN_A_FAULT", 0)
    faults = ["failed sync"] if shutil.which("cc") else []  # they need a compiler
    plan = ["ChunkIndex", "Store", *faults, ALL]
    report = crash(tmp_path, plan, seed=0)
    assert report.violations == []
    assert report.kills == Counter(plan)
    assert report.outcomes["index", "acknowledged"] > 0
    assert str(report).endswith("Nothing was lost.")
