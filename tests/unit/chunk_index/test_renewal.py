"""What removed photos take is freed one segment at a time, and that goes on after a restart."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.chunk_index import index as module
from deployments.chunk_index import segments
from deployments.chunk_index.index import ChunkIndex
from deployments.chunk_index.snapshots import Snapshots
from deployments.records import Position
from deployments.settings import ChunkIndexSettings
from tests.support.running.examples import examples
from tests.support.stored.vectors import parse
from tests.unit.chunk_index.photos import DIMENSION, unit

CHUNKS = 4  # of a photo
SEGMENT = 20  # photos


@pytest.fixture(autouse=True)
def small_segments(monkeypatch):
    monkeypatch.setattr(module, "GRAPH_CHUNKS", 0)
    monkeypatch.setattr(segments, "SEGMENT_CHUNKS", CHUNKS * SEGMENT)
    monkeypatch.setattr(segments, "WASTED_CHUNKS", 0)


@pytest.fixture(params=["exact", "approximate"])
def index(request) -> ChunkIndex:
    return make(request.param)


def make(engine: str) -> ChunkIndex:
    return ChunkIndex(DIMENSION, ChunkIndexSettings(engine=engine, device="cpu"))


def vectors_of(number: int) -> np.ndarray:
    rng = np.random.default_rng(number)
    return unit(rng.normal(size=(CHUNKS, DIMENSION))).astype(np.float16)


def fill(index: ChunkIndex, numbers: range) -> None:
    for number in numbers:
        index.put(f"{number:04}", vectors_of(number), {"number": number, "text": f"text {number}"})
    while index.build():
        pass


def remove_some(index: ChunkIndex, photos: int) -> None:
    """Remove three of five photos."""
    for number in range(photos):
        if number % 5 < 3:
            index.remove(f"{number:04}")


def assert_left(index: ChunkIndex, numbers: list[int]) -> None:
    """These photos are found by their vectors and metadata, and no others."""
    assert index.photos == len(numbers)
    for number in numbers[::7]:
        query = vectors_of(number)[:1].astype(np.float32)
        for condition in (None, f"number={number}", f"text=text {number}"):
            (found,) = index.search(query, len(numbers) + 1, parse(condition))
            wanted = numbers if condition is None else [number]
            assert sorted(found.photos) == [f"{number:04}" for number in wanted]


def rows(index: ChunkIndex) -> int:
    return index.chunks + index.removed


def test_a_renewal_holds_one_more_segment_at_most(index):
    fill(index, range(200))
    remove_some(index, 200)
    before, held, waited = rows(index), [], []
    while index.renew():
        held.append(rows(index))
        waited.append(len(index._segments))
        index.build()
    assert max(held) <= before + CHUNKS * SEGMENT
    assert max(waited) <= 200 / SEGMENT + 2
    assert index.removed <= rows(index) * segments.WASTED_SHARE
    assert_left(index, [number for number in range(200) if number % 5 >= 3])


def test_a_renewal_goes_on_after_a_restart(index, tmp_path):
    """No photo is moved twice."""
    fill(index, range(200))
    remove_some(index, 200)
    snapshots, moved, steps = Snapshots(tmp_path, index.kind), 0, 0
    while step := index.renew():
        moved += step
        steps += 1
        if steps % 4 == 0:
            assert snapshots.write(index.parts(), Position("history", steps, 0))
            digest, held = index.digest, rows(index)
            index = make(index.engine)
            assert snapshots.read(index.load)
            assert (index.digest, rows(index)) == (digest, held)
        index.build()
    assert steps > 8
    assert moved <= CHUNKS * 80  # those that are left
    assert_left(index, [number for number in range(200) if number % 5 >= 3])


def test_photos_that_come_and_go_take_no_more_with_time(index):
    """Neither vectors nor what is known of them, nor ids, nor metadata."""
    alive = 50
    for number in range(1000):
        index.put(f"{number:04}", vectors_of(number), {f"key {number}": 1, "text": f"{number}"})
        if number >= alive:
            index.remove(f"{number - alive:04}")
        if number % 10 == 0:
            index.build()
            while index.renew():
                pass
    photos = 1.5 * alive + 2 * SEGMENT
    assert rows(index) <= CHUNKS * photos
    every = index._segments
    assert sum(len(segment.engine.owners.ids) for segment in every) <= photos
    assert sum(len(segment._columns._columns) for segment in every) <= photos + len(every)
    assert [segment.engine.owners._known for segment in every[:-1]] == [None] * len(every[:-1])


def test_a_segment_whose_photos_were_all_removed_is_dropped_at_once(index):
    fill(index, range(60))
    for number in range(20):
        index.remove(f"{number:04}")
    assert not index.renew()
    assert index.removed == 0
    assert_left(index, [*range(20, 60)])


def test_a_sealed_segment_is_written_once(index, tmp_path):
    """Whatever is removed from it; but one that is emptied is no longer kept."""
    snapshots = Snapshots(tmp_path, index.kind)
    fill(index, range(70))  # three are full

    def written(sequence: int) -> int:
        """Return how many parts are new."""
        before = {path.stat().st_ino for path in tmp_path.glob("*/*/*")}
        assert snapshots.write(index.parts(), Position("history", sequence, 0))
        after = [path for path in tmp_path.glob("*/*/*") if path.stat().st_ino not in before]
        return len({path.parent for path in after})

    assert written(1) == 5
    fill(index, range(70, 72))
    index.remove("0003")
    assert written(2) == 2  # the open one, and which photos are present
    index = make(index.engine)
    assert snapshots.read(index.load)
    assert written(3) == 2
    for number in range(12):
        index.remove(f"{number:04}")
    while index.renew():
        pass
    assert written(4) == 2  # the photos that are left are in the open one
    assert snapshots.read(make(index.engine).load)


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 30))
@settings(max_examples=examples(20))
def test_photos_that_tie_in_several_segments_are_found_by_id(seed, count):
    """Equal vectors are kept once in each of them."""
    rng = np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "SEGMENT_CHUNKS", 5)
        index = make(rng.choice(["exact", "approximate"]))
        for number in rng.permutation(25):
            index.put(f"{number:02}", vectors_of(0)[: 1 + number % 2])
            if number % 3:
                index.build()
    (found,) = index.search(vectors_of(0)[:1].astype(np.float32), count)
    assert sorted(found.photos) == [f"{number:02}" for number in range(min(count, 25))]
    assert len(index._segments) > 5


def test_segments_in_which_nothing_is_left_are_dropped_at_once(index):
    fill(index, range(3 * SEGMENT))
    for number in range(3 * SEGMENT - 1):
        index.remove(f"{number:04}")
    while index.renew():
        pass
    assert rows(index) == CHUNKS
    assert_left(index, [3 * SEGMENT - 1])
