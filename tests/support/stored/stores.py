"""Stores for the tests: what they put in, what must then be true, and a store of before."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import lmdb
import numpy as np

from deployments.records import (
    Change,
    Chunk,
    EncodedPhoto,
    EncoderIdentity,
    Metadata,
    Position,
    Preview,
)
from deployments.store.format import checksum, decode_record, decode_vectors
from deployments.store.operations import KeepPreview, KeepThumbnail, Put
from deployments.store.reader import StoreReader
from deployments.store.store import Store

DIMENSION = 16
ENCODER = EncoderIdentity("openai/clip-vit-base-patch32", DIMENSION, "ab" * 32)


def photo(data: bytes, chunks: int | None = None) -> EncodedPhoto:
    """A photo whose vectors follow from its bytes, so that a mix-up shows."""
    seed = int.from_bytes(hashlib.sha256(data).digest()[:4], "big")
    generator = np.random.default_rng(seed)
    chunks = 1 + seed % 4 if chunks is None else chunks
    vectors = generator.standard_normal((chunks, DIMENSION), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    whole = Chunk(box=(0, 0, 640, 480), source="whole")
    small, grey = b"small " + data[:100], b"grey " + data[:5000]
    return EncodedPhoto(640, 480, "image/jpeg", False, [whole] * chunks, vectors, small, grey)


def metadata(data: bytes) -> Metadata:
    """What the tests say of a photo; it follows from its bytes as well."""
    return {"size": len(data), "first": data[:1].hex(), "small": len(data) < 100, "half": 0.5}


def put(id: str, data: bytes) -> Put:
    return Put(id, data, f"{id}.jpg", photo(data), metadata(data))


def keep(id: str, data: bytes) -> KeepThumbnail:
    """As the service does for a photo that was stored without its thumbnail."""
    return KeepThumbnail(id, hashlib.sha256(data).hexdigest(), photo(data).thumbnail)


def keep_preview(id: str, data: bytes) -> KeepPreview:
    """As the service does for a photo that was stored without its preview."""
    return KeepPreview(id, hashlib.sha256(data).hexdigest(), photo(data).preview)


def preview_of(data: bytes, kept: bool = True) -> Preview:
    """What the store says of the preview of a photo; without its bytes if it has none."""
    sha256 = hashlib.sha256(data).hexdigest()
    return Preview(sha256, 640, 480, photo(data).preview if kept else None)


def float16(data: bytes) -> np.ndarray:
    return photo(data).vectors.astype(np.float16)


def vectors_of(store: StoreReader, id: str) -> np.ndarray:
    """Return the stored vectors of a photo, float16 `[chunks, dimension]`."""
    with store.reading() as txn:
        value = txn.get(id.encode(), db=store.dbs.records)
        vectors = txn.get(id.encode(), db=store.dbs.vectors)
    return decode_vectors(decode_record(id, value), vectors, store.encoder.dimension)


def assert_whole(store: Store, id: str, data: bytes) -> None:
    record, original = store.original(id)
    assert original == data
    assert record == store.record(id)
    assert (record.id, record.bytes, record.metadata) == (id, len(data), metadata(data))
    assert record.sha256 == hashlib.sha256(data).hexdigest()
    np.testing.assert_array_equal(vectors_of(store, id), float16(data))
    assert store.thumbnail(id) == photo(data).thumbnail
    assert store.previews([id]) == [preview_of(data)]


Content = dict[str, tuple[np.ndarray, Metadata]]


class Replica:
    """What an index does with changes: it holds what they say, and where it has got to."""

    def __init__(self) -> None:
        self.position: Position | None = None
        self.content: Content = {}

    def advance(self, store: StoreReader, max_bytes: int) -> bool:
        """Apply the next changes; returns whether there may be more."""
        before = self.position
        answer = store.changes(before, max_bytes)
        assert answer.last == store.sequence
        if answer.anew:
            self.content = {}
        self.content = replay(self.content, answer.changes)
        self.position = answer.position
        sequences = [change.sequence for change in answer.changes]
        assert sequences == sorted(set(sequences))
        assert not sequences or sequences[-1] <= answer.position.sequence <= answer.last
        return answer.position != before

    def catch_up(self, store: StoreReader, max_bytes: int = 2**20) -> Content:
        while self.advance(store, max_bytes):
            pass
        assert self.position.sequence == store.sequence
        return self.content


def at(store: Store, sequence: int) -> Position:
    """Where one is who has followed the store from its beginning."""
    return Position(store.history, sequence, base=0)


def replay(content: Content, changes: list[Change]) -> Content:
    content = dict(content)
    for change in changes:
        if change.vectors is None:
            assert change.metadata == {}
            content.pop(change.id, None)
        else:
            content[change.id] = change.vectors, change.metadata
    return content


def assert_same_content(content: Content, photos: dict[str, bytes]) -> None:
    assert set(content) == set(photos)
    for id, (vectors, said) in content.items():
        np.testing.assert_array_equal(vectors, float16(photos[id]))
        assert said == metadata(photos[id])


def assert_counts(store: Store, photos: dict[str, bytes]) -> None:
    stats = store.stats()
    assert stats.photos == len(photos)
    assert stats.chunks == sum(len(float16(data)) for data in photos.values())
    assert stats.original_bytes == sum(map(len, photos.values()))


def make_old(folder: Path, photos: dict[str, bytes], format: int) -> None:
    """A store as older versions wrote it: `photos`, after one that was put and deleted."""
    folder.mkdir()
    names = (b"meta", b"originals", b"records", b"vectors", b"log")
    if format > 2:
        names += (b"thumbnails",)
    with (
        lmdb.open(str(folder), max_dbs=len(names), map_size=2**20) as env,
        env.begin(write=True) as txn,
    ):
        meta, originals, records, vectors, log, *thumbnails = (
            env.open_db(name, txn=txn) for name in names
        )
        txn.put(b"format", b"%d" % format, db=meta)
        if format > 1:
            txn.put(b"history", json.dumps("0" * 32).encode(), db=meta)
            txn.put(b"cut", b"1", db=meta)
        txn.put(b"encoder", json.dumps(asdict(ENCODER)).encode(), db=meta)
        totals = {
            "chunks": sum(len(float16(data)) for data in photos.values()),
            "original_bytes": sum(map(len, photos.values())),
        }
        txn.put(b"totals", json.dumps(totals).encode(), db=meta)
        txn.put((2).to_bytes(8, "big"), b"Dgone", db=log)
        for sequence, (id, data) in enumerate(photos.items(), 3):
            key, described = id.encode(), photo(data)
            record = {
                "id": id,
                "filename": f"{id}.jpg",
                "media_type": "image/jpeg",
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
                "width": 640,
                "height": 480,
                "animated": False,
                "indexed_at": "2026-01-01T00:00:00.000+00:00",
                "sequence": sequence,
                "chunks": [chunk.model_dump() for chunk in described.chunks],
            }
            if format > 1:
                record["metadata"] = metadata(data)
            payload, rows = json.dumps(record).encode(), float16(data).tobytes()
            txn.put(key, data, db=originals)
            txn.put(key, checksum(id, payload) + payload, db=records)
            txn.put(key, checksum(id, rows) + rows, db=vectors)
            for db in thumbnails:
                small = described.thumbnail
                txn.put(key, checksum(id, small) + small, db=db)
            txn.put(sequence.to_bytes(8, "big"), b"P" + key, db=log)


OLD = {"a": b"one", "b": b"2" * 5000}
