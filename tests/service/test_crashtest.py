"""The crash test, in short."""

from __future__ import annotations

from collections import Counter

import pytest
from crash.kills import ALL
from crashtest import crash


@pytest.mark.slow
def test_nothing_is_lost_whatever_is_killed(tmp_path):
    """Nor at the end, which is that of Ctrl-C: nothing is left of the service, and its store has
    what it had.
    """
    plan = ["ChunkIndex", "Store", ALL]
    report = crash(tmp_path, plan, seed=0)
    assert report.violations == []
    assert report.kills == Counter(plan)
    assert report.outcomes["index", "acknowledged"] > 0
    assert str(report).endswith("Nothing was lost.")
