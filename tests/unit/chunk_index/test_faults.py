"""A step of a change fails: the index is as before or after it, or it says that it is broken."""

from itertools import count

import numpy as np
import pytest

from deployments.chunk_index import index as index_module
from deployments.chunk_index import segments
from deployments.chunk_index.index import ChunkIndex
from deployments.errors import Unavailable
from deployments.records import content_hash
from deployments.settings import ChunkIndexSettings
from tests.support.paths import ROOT
from tests.support.running.faults import memory_ends_at
from tests.support.stored.vectors import DIMENSION, assert_found, parse, unit
from tests.unit.chunk_index.photos import save

CODE = ROOT / "deployments" / "chunk_index"
RNG = np.random.default_rng(18)
PHOTOS = {
    f"photo{number}": (
        np.stack([unit(*RNG.normal(size=4)) for _ in range(number % 3 + 1)]),
        {"year": 2000 + number, "text": f"text {number}", "odd": bool(number % 2)},
    )
    for number in range(12)
}
FIRST = dict([*PHOTOS.items()][:6])
NEW = {"new": (unit(1, 2, 3, 4)[None], {"year": 2001, "text": "new", "key": "its own"})}

CHANGES = {
    "a new photo": lambda index: index.put("new", *NEW["new"]),
    "a photo in the place of another": lambda index: index.put("photo3", *NEW["new"]),
    "a removal": lambda index: index.remove("photo3"),
    "linking": lambda index: index.build(),
    "a renewal": lambda index: index.renew(),
}
AFTER = {
    "a new photo": FIRST | NEW,
    "a photo in the place of another": FIRST | {"photo3": NEW["new"]},
    "a removal": {id: photo for id, photo in FIRST.items() if id != "photo3"},
    "linking": FIRST,
    "a renewal": FIRST,
}


def make(engine: str) -> ChunkIndex:
    """An index where the next photo needs more room of every kind, and a third was removed."""
    index = ChunkIndex(DIMENSION, ChunkIndexSettings(engine=engine, device="cpu"))
    index.put("gone", np.eye(4, dtype=np.float16).repeat(3, 0), {"year": 2000})
    index.remove("gone")
    for id, (vectors, metadata) in FIRST.items():
        index.put(id, vectors, metadata)
    return index


def holds(index: ChunkIndex, content: dict) -> bool:
    """Whether the index has these photos by its own account."""
    digest = sum(content_hash(id, vectors) for id, (vectors, _) in content.items()) % 2**64
    return index.digest == f"{digest:016x}"


def assert_answers(index: ChunkIndex, content: dict) -> None:
    """Each photo is found by its own vector, and by its metadata."""
    assert index.photos == len(content)
    assert index.chunks == sum(len(vectors) for vectors, _ in content.values())
    conditions = [None, "year<2005", 'text="text 2"', "odd=true", "key=its own"]
    for filter in map(parse, conditions):
        plain = {
            id: vectors
            for id, (vectors, metadata) in content.items()
            if filter is None or filter.matches(metadata)
        }
        queries = [vectors[0] for vectors, _ in content.values()]
        for query, found in zip(queries, index.search(np.stack(queries), 20, filter), strict=True):
            assert_found(found, plain, query, 20)


@pytest.mark.parametrize("engine", ["exact", "approximate"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_happens_completely_or_not_at_all_or_is_told(engine, name, monkeypatch):
    monkeypatch.setattr(index_module, "GRAPH_CHUNKS", 0)
    monkeypatch.setattr(index_module, "MOVED_PHOTOS", 1)
    monkeypatch.setattr(segments, "WASTED_CHUNKS", 0)
    broken = 0
    # A renewal puts a photo anew, in as many steps as all of the others together.
    for step in count(step=3 if name == "a renewal" else 1):
        index = make(engine)
        with memory_ends_at(step, CODE) as fault:
            try:
                CHANGES[name](index)
            except MemoryError:
                assert fault.happened
        if index.broken:
            broken += 1
            with pytest.raises(Unavailable, match="loaded anew"):
                index.search(unit(1, 0, 0, 0)[None], 1)
            with pytest.raises(Unavailable):
                index.parts()
            with pytest.raises(Unavailable):
                index.put("another", *NEW["new"])
        else:
            content = FIRST if holds(index, FIRST) else AFTER[name]
            assert holds(index, content)
            assert_answers(index, content)
            for id, (vectors, metadata) in PHOTOS.items():
                index.put(id, vectors, metadata)
            content = content | PHOTOS
            assert holds(index, content)
            assert_answers(index, content)
        if not fault.happened:
            break
    assert step >= 3
    assert broken or name == "linking"
    assert not index.broken
    assert_answers(index, AFTER[name] | PHOTOS)


def test_a_photo_that_is_refused_breaks_nothing():
    index = make("exact")
    for vectors, metadata in ((np.ones((1, 5)), {}), (unit(1, 0, 0, 0)[None], {"a": None})):
        with pytest.raises((ValueError, KeyError)):
            index.put("photo3", vectors, metadata)
        assert not index.broken
        assert_answers(index, FIRST)


def test_a_snapshot_that_was_loaded_in_half_is_not_searched(tmp_path):
    folders = save(make("exact"), tmp_path)
    (metadata,) = tmp_path.glob("*/metadata.npz")
    metadata.write_bytes(b"")
    index = ChunkIndex(DIMENSION, ChunkIndexSettings(engine="exact", device="cpu"))
    with pytest.raises(ValueError, match="holds no columns"):
        index.load(folders)
    assert index.broken


def test_an_index_that_gave_up_frees_what_it_held():
    index = make("exact")
    index.give_up()
    assert index.broken
    assert (index.photos, index.chunks, index.removed) == (0, 0, 0)
