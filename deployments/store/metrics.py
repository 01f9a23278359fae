"""What the store holds, and what it has room for, for Prometheus."""

from __future__ import annotations

from deployments.metrics import Gauges
from deployments.store.store import Store

DESCRIPTIONS = {
    "inset_store_photos": "Photos that are stored.",
    "inset_store_chunks": "Chunks that are stored.",
    "inset_store_sequence": "Number of the store's last change.",
    "inset_store_used_bytes": "Size of all content on disk.",
    "inset_store_map_bytes": "Size of the memory map, which grows when it is full.",
    "inset_store_room_bytes": "What the store and its disk have room for.",
}


def measure_store(store: Store) -> Gauges:
    """Tell what a store holds."""

    def measure() -> dict[str, float]:
        state = store.stats()
        return {
            "inset_store_photos": state.photos,
            "inset_store_chunks": state.chunks,
            "inset_store_sequence": state.sequence,
            "inset_store_used_bytes": state.used_bytes,
            "inset_store_map_bytes": state.map_bytes,
            "inset_store_room_bytes": store.room(),
        }

    return Gauges(DESCRIPTIONS, measure)
