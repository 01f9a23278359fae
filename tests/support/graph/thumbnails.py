"""Photos that were stored without a thumbnail, and asking for it."""

import asyncio

import numpy as np

from deployments.records import Chunk, EncodedPhoto
from tests.support.graph.graph_in_process import ingress

WHOLE = Chunk(box=(0, 0, 10, 10), source="whole")
VECTOR = np.zeros((1, 256), np.float32)
PHOTO = EncodedPhoto(
    10, 10, "image/png", False, [WHOLE], VECTOR, b"made when it was indexed", b"preview"
)


def forget_thumbnail(store, id):
    """Take the thumbnail away from a photo, as an older version has stored it."""
    key, db = id.encode(), store.store.dbs.thumbnails
    store.store._write(lambda txn: txn.delete(key, db=db), added_bytes=None)


def thumbnails(folder, store, maker, *ids):
    """Ask an ingress for thumbnails, one after the other."""

    async def ask():
        inset = ingress(folder, store=store, photo_encoder=maker)
        return [await inset.thumbnail(id) for id in ids]

    return asyncio.run(ask())
