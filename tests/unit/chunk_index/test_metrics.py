"""What a replica says of its index."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from deployments.chunk_index.index import ChunkIndex
from deployments.chunk_index.metrics import measure_index
from deployments.chunk_index.snapshots import Snapshots
from tests.support.metrics import watch
from tests.support.stored.vectors import DIMENSION, unit


def test_what_the_index_holds_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = watch(monkeypatch)
    index, snapshots = ChunkIndex(DIMENSION), Snapshots(tmp_path, {})
    follower = SimpleNamespace(index=index, sequence=0, unfollowed_s=1.5, unsaved=0)
    gauges = measure_index(follower, snapshots)
    gauges.refresh()
    for id in "abc":
        index.put(id, unit(1, 0, 0, 0)[None])
    index.remove("b")
    follower.sequence, follower.unsaved = 4, 4
    (tmp_path / "file").write_bytes(bytes(100))
    gauges.refresh()
    assert {name: metric.values for name, metric in seen.items()} == {
        "inset_index_photos": [0, 2],
        "inset_index_chunks": [0, 2],
        "inset_index_sequence": [0, 4],
        "inset_index_unfollowed_seconds": [1.5, 1.5],
        "inset_index_waiting_chunks": [0, index.waiting],
        "inset_index_removed_chunks": [0, 1],
        "inset_index_unsaved_chunks": [0, 4],
        "inset_snapshot_bytes": [0, 100],
    }
