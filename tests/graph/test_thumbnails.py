"""A thumbnail that is made later."""

import pytest

from deployments.store.operations import Put
from tests.support.graph.graph_in_process import make
from tests.support.graph.thumbnails import PHOTO, forget_thumbnail, thumbnails


@pytest.mark.slow
@pytest.mark.usefixtures("batches_without_replicas")
def test_it_is_the_thumbnail_that_indexing_would_have_made(tmp_path, pictures):
    """With the deployment that makes it in the service."""
    store = make("Store", tmp_path / "store", {"store": {"max_bytes": 2**20}})
    data = pictures["coffee"]
    store.store.apply([Put("coffee", data, None, PHOTO)])
    forget_thumbnail(store, "coffee")
    made = make("PhotoEncoder", tmp_path)
    (indexed,) = made.photo_encoder.encode([data])
    assert thumbnails(tmp_path, store, made, "coffee") == [indexed.thumbnail]
    store.store.close()
