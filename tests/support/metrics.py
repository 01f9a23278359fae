"""Metrics that keep what was noted."""

from __future__ import annotations

from collections import Counter

import pytest

import deployments.ingress.metrics
import deployments.metrics


class Seen:
    """Stands where metrics of Ray's of one name do."""

    made: dict[str, Seen]

    def __new__(cls, name, **options):
        return cls.made.setdefault(name, object.__new__(cls))

    def __init__(self, name, *, description, tag_keys=(), boundaries=()):
        assert description.endswith(".")
        if not hasattr(self, "values"):
            self.tag_keys, self.values, self.counted = set(tag_keys), [], Counter()
        assert set(tag_keys) == self.tag_keys

    def inc(self, value=1, tags=None):
        assert value > 0
        self.counted[self._row(tags)] += value

    def observe(self, value, tags=None):
        self._row(tags)
        self.values.append(value)

    set = observe

    def _row(self, tags):
        assert set(tags or {}) == self.tag_keys
        return tuple((tags or {}).values())


def watch(monkeypatch: pytest.MonkeyPatch) -> dict[str, Seen]:
    """Return the metrics that are made from now on, by their names."""
    monkeypatch.setattr(Seen, "made", {}, raising=False)
    for module in (deployments.metrics, deployments.ingress.metrics):
        for kind in ("Counter", "Gauge", "Histogram"):
            monkeypatch.setattr(module, kind, Seen, raising=False)
    deployments.ingress.metrics._problems.cache_clear()
    return Seen.made
