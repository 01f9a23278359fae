"""What a replica of the chunk index holds, and how far it is behind, for Prometheus."""

from __future__ import annotations

from deployments.chunk_index.follower import Follower
from deployments.chunk_index.snapshots import Snapshots
from deployments.metrics import Gauges

DESCRIPTIONS = {
    "inset_index_photos": "Photos that the index holds.",
    "inset_index_chunks": "Chunks that the index holds.",
    "inset_index_sequence": "Number of the last change of the store that the index knows.",
    "inset_index_unfollowed_seconds": "Since when the index has not heard from the store; up to 2 "
    "seconds are usual.",
    "inset_index_waiting_chunks": "Vectors that searches compare one by one until they are linked.",
    "inset_index_removed_chunks": "Chunks of removed photos that still take memory.",
    "inset_index_unsaved_chunks": "Chunks that have changed since the snapshot.",
    "inset_snapshot_bytes": "Size of the snapshots on disk.",
}


def measure_index(follower: Follower, snapshots: Snapshots) -> Gauges:
    """Tell what the index of a follower holds."""

    def measure() -> dict[str, float]:
        index = follower.index
        return {
            "inset_index_photos": index.photos,
            "inset_index_chunks": index.chunks,
            "inset_index_sequence": follower.sequence,
            "inset_index_unfollowed_seconds": follower.unfollowed_s,
            "inset_index_waiting_chunks": index.waiting,
            "inset_index_removed_chunks": index.removed,
            "inset_index_unsaved_chunks": follower.unsaved,
            "inset_snapshot_bytes": snapshots.disk_bytes(),
        }

    return Gauges(DESCRIPTIONS, measure)
