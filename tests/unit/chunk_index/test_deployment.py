"""Replicas of the chunk index against the store's log, which they follow."""

import asyncio
import shutil
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import faiss
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from ray.serve.exceptions import RequestCancelledError

from deployments.chunk_index import follower, index, maintenance, segments
from deployments.chunk_index.deployment import ChunkIndexDeployment, Search
from deployments.chunk_index.owners import Starts
from deployments.chunk_index.snapshots import RESERVE_BYTES
from deployments.errors import Unavailable, UnknownSequence
from deployments.query import SearchOptions
from deployments.ranker import Ranker
from deployments.records import Chunk, EncodedPhoto, EncoderIdentity
from deployments.settings import ChunkIndexSettings
from deployments.store.operations import Delete, Put
from deployments.store.store import Store
from tests.support.running.examples import examples
from tests.support.stored.vectors import (
    DIMENSION,
    assert_found,
    direction,
    filters,
    ids,
    parse,
    photo_vectors,
    unit,
    years,
)

pytestmark = pytest.mark.usefixtures("batches_without_replicas")

ONE = SearchOptions(limit=1, max_chunks=1)

ENCODER = EncoderIdentity("test", DIMENSION, "00")


class StoreHandle:
    """Answers `changes.remote` as the deployment of a store does, a few changes at a time."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.changes = SimpleNamespace(remote=self._changes)

    async def _changes(self, position, wait_s, follower, kept):
        assert follower
        changes = self.store.changes(position, max_bytes=1000)
        if wait_s and changes.position == position:
            await asyncio.sleep(0.002)  # a moment, in the place of a long poll
            changes = self.store.changes(position, max_bytes=1000)
        return changes


class Replicas:
    """Some replicas of the index on an event loop of their own, beside one store."""

    def __init__(self, folder: Path, count: int, engine: str = "approximate") -> None:
        self.folder = folder
        self.loop = asyncio.new_event_loop()
        self.handle = StoreHandle(Store(folder / "store", ENCODER))
        self.settings = ChunkIndexSettings(engine=engine, device="cpu", path=str(folder / "index"))
        self.replicas = [self.start() for _ in range(count)]

    def run(self, coroutine):
        return self.loop.run_until_complete(asyncio.wait_for(coroutine, 20))

    def start(self):
        replica = object.__new__(ChunkIndexDeployment.func_or_class)
        self.run(replica.__init__(self.settings, DIMENSION, Ranker(), self.handle))
        return replica

    def stop(self, replica):
        for task in replica._tasks:
            task.cancel()
        self.run(asyncio.wait(replica._tasks))
        replica._threads.shutdown()
        replica.maintenance._threads.shutdown()

    def restart(self, number: int) -> None:
        self.stop(self.replicas[number])
        self.replicas[number] = self.start()

    def close(self) -> None:
        for replica in self.replicas:
            self.stop(replica)
        self.handle.store.close()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()

    def put(self, id: str, vectors: np.ndarray, metadata: dict | None = None) -> int:
        chunk = Chunk(box=(0, 0, 1, 1), source="whole")
        photo = EncodedPhoto(1, 1, "image/png", False, [chunk] * len(vectors), vectors, b"", b"")
        (stored,) = self.handle.store.apply([Put(id, id.encode(), None, photo, metadata or {})])
        return stored.record.sequence

    def delete(self, id: str) -> int:
        (sequence,) = self.handle.store.apply([Delete(id)])
        assert isinstance(sequence, int)
        return sequence

    def search(self, replica, query, count=10, sequence=None, condition=None):
        if sequence is None:
            sequence = self.handle.store.sequence
        filter = parse(condition)
        options = SearchOptions(count, max_chunks=1, filter=filter)
        ranked, known = self.run(replica.rank(query, options, sequence))
        assert known >= sequence
        found = self.run(replica._search(Search(query, count, filter)))
        nearest = sorted(map(min, found.distances))
        assert [photo.distance for photo in ranked] == nearest[:count]
        return found


class ReplicasMachine(RuleBasedStateMachine):
    """Two replicas always answer like a dictionary, whatever happens to them or to the log."""

    def __init__(self):
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(index, "GRAPH_CHUNKS", 0)
        self.patch.setattr(segments, "SEGMENT_CHUNKS", 12)
        self.patch.setattr(segments, "WASTED_CHUNKS", 2)
        self.folder = Path(tempfile.mkdtemp())
        self.all = Replicas(self.folder, 2)
        self.content: dict[str, tuple[np.ndarray, dict]] = {}

    def teardown(self):
        self.all.close()
        shutil.rmtree(self.folder)
        self.patch.undo()

    @rule(id=ids, vectors=photo_vectors, metadata=years)
    def put(self, id, vectors, metadata):
        if id in self.content:
            self.all.delete(id)
        self.all.put(id, vectors, metadata)
        self.content[id] = vectors, metadata

    @precondition(lambda self: self.content)
    @rule(data=st.data())
    def delete(self, data):
        id = data.draw(st.sampled_from(sorted(self.content)))
        self.all.delete(id)
        del self.content[id]

    @rule(number=st.integers(0, 1), query=direction, count=st.integers(1, 10), condition=filters)
    def search(self, number, query, count, condition):
        filter = parse(condition)
        content = {
            id: vectors
            for id, (vectors, metadata) in self.content.items()
            if filter is None or filter.matches(metadata)
        }
        found = self.all.search(self.all.replicas[number], query, count, condition=condition)
        assert_found(found, content, query, count)

    @rule(number=st.integers(0, 1))
    def link(self, number):
        self.all.replicas[number].follower.index.build()

    @rule(number=st.integers(0, 1))
    def save(self, number):
        replica = self.all.replicas[number]
        self.all.run(replica.maintenance.save())

    @rule(number=st.integers(0, 1))
    def restart(self, number):
        self.all.restart(number)

    @rule(number=st.integers(0, 1))
    def renew(self, number):
        self.all.run(self.all.replicas[number].maintenance.renew())

    @rule()
    def cut_log(self):
        store = self.all.handle.store
        store.cut_log(store.sequence)


TestReplicasMachine = ReplicasMachine.TestCase
TestReplicasMachine.settings = settings(max_examples=examples(25), stateful_step_count=25)


async def until(condition):
    while not condition():
        await asyncio.sleep(0.02)


@pytest.fixture
def alone(tmp_path):
    replicas = Replicas(tmp_path, 1)
    yield replicas
    replicas.close()


def test_each_search_of_a_batch_finds_as_many_as_it_asks_for(alone):
    (replica,) = alone.replicas
    east = unit(1, 0, 0, 0)
    for id in "dcba":
        sequence = alone.put(id, east[None])
    alone.run(replica.rank(east, ONE, sequence))
    one, three = alone.run(replica._search_batch([Search(east, 1, None), Search(east, 3, None)]))
    assert one.photos == ["a"]
    assert sorted(three.photos) == ["a", "b", "c"]


def test_a_search_waits_for_the_change_it_must_know(alone):
    (replica,) = alone.replicas
    east = unit(1, 0, 0, 0)

    async def search_first():
        search = asyncio.ensure_future(replica.rank(east, ONE, 1))
        await asyncio.sleep(0.05)
        assert not search.done()
        alone.put("a", east[None])
        return await search

    # Until the store says that there is no change 1, the search waits for it.
    replica.follower.store.changes.remote = slowly = slow(replica.follower.store.changes.remote)
    found, known = alone.run(search_first())
    assert slowly.calls
    assert [photo.id for photo in found] == ["a"]
    assert known == 1


def slow(changes):
    async def answer_late(*args):
        answer_late.calls += 1
        await asyncio.sleep(0.2)
        return await changes(*args)

    answer_late.calls = 0
    return answer_late


def test_a_change_that_the_store_does_not_have_is_not_waited_for(alone):
    (replica,) = alone.replicas
    alone.put("a", unit(1, 0, 0, 0)[None])
    with pytest.raises(UnknownSequence, match=r"change 7 .* last change is 1"):
        alone.run(replica.rank(unit(1, 0, 0, 0), ONE, 7))


def test_another_store_takes_the_place_of_what_was_known(alone, tmp_path):
    """As when an older copy is restored under a running service."""
    (replica,) = alone.replicas
    east = unit(1, 0, 0, 0)
    for id in "abc":
        alone.put(id, east[None])
    assert sorted(alone.search(replica, east).photos) == ["a", "b", "c"]
    alone.handle.store.close()
    alone.handle.store = Store(tmp_path / "other", ENCODER)
    alone.put("d", east[None])
    alone.run(until(lambda: replica.follower.sequence == 1))
    assert alone.search(replica, east).photos == ["d"]
    with pytest.raises(UnknownSequence):
        alone.run(replica.rank(east, ONE, 3))


def test_a_replica_starts_from_its_snapshot_and_reads_only_what_is_newer(alone):
    (replica,) = alone.replicas
    east = unit(1, 0, 0, 0)
    alone.put("a", east[None])
    alone.put("b", east[None])
    alone.search(replica, east)
    alone.run(replica.maintenance.save())
    alone.delete("b")
    sequence = alone.put("c", east[None])
    alone.stop(replica)
    asked = []
    changes = alone.handle.changes.remote

    async def remember(position, *rest):
        asked.append(position)
        return await changes(position, *rest)

    alone.handle.changes.remote = remember
    alone.replicas[0] = alone.start()
    assert asked[0].sequence == 2
    assert sorted(alone.search(alone.replicas[0], east, sequence=sequence).photos) == ["a", "c"]


def test_building_saving_and_renewing_happen_by_themselves(alone, monkeypatch):
    for name, value in {"BUILD_CHUNKS": 8, "SNAPSHOT_CHUNKS": 8}.items():
        monkeypatch.setattr(maintenance, name, value)
    monkeypatch.setattr(index, "GRAPH_CHUNKS", 0)
    monkeypatch.setattr(segments, "SEGMENT_CHUNKS", 50)
    monkeypatch.setattr(segments, "WASTED_CHUNKS", 0)
    (replica,) = alone.replicas
    rng = np.random.default_rng(7)
    for number in range(40):
        alone.put(f"{number}", np.stack([unit(*rng.normal(size=4)) for _ in range(3)]))

    alone.run(
        until(lambda: replica.follower.index.chunks == 120 and replica.follower.index.waiting == 0)
    )
    alone.run(until(lambda: replica.follower.snapshot is not None))
    for number in range(30):
        alone.delete(f"{number}")
    alone.run(until(lambda: replica.follower.index.chunks == 30))
    alone.run(until(lambda: replica.follower.index.removed == 0))
    state = alone.run(replica.stats())
    assert (state.photos, state.chunks, state.sequence) == (10, 30, 70)
    assert state.engine == "approximate"
    assert state.snapshot
    alone.run(replica.check_health())
    known, unfollowed_s = alone.run(replica.lag())
    assert known == 70
    assert 0 <= unfollowed_s < 10


def test_what_was_removed_goes_also_while_the_index_is_too_small_for_a_graph(alone, monkeypatch):
    """Then its chunks wait to be linked, but nothing ever links them."""
    monkeypatch.setattr(maintenance, "BUILD_CHUNKS", 8)
    monkeypatch.setattr(segments, "WASTED_CHUNKS", 8)
    (replica,) = alone.replicas
    for number in range(20):
        alone.put(f"{number}", np.eye(4)[:3])
    alone.run(until(lambda: replica.follower.index.chunks == 60))
    for number in range(19):
        alone.delete(f"{number}")
    alone.run(until(lambda: replica.follower.index.chunks == 3))
    alone.run(until(lambda: replica.follower.index.removed == 0))
    assert replica.follower.index.chunks == 3


@pytest.mark.parametrize("obstacle", ["index", "graph.faiss"])
def test_a_snapshot_that_can_not_be_written_is_tried_again_later(
    alone, caplog, monkeypatch, obstacle
):
    """The system's errors, and FAISS's own."""
    (replica,) = alone.replicas
    alone.search(replica, unit(1, 0, 0, 0), sequence=alone.put("a", unit(1, 0, 0, 0)[None]))
    if obstacle == "index":
        shutil.rmtree(alone.folder / "index", ignore_errors=True)
        (alone.folder / "index").write_text("a file in the way")
    else:
        write = faiss.write_index  # it can't open a folder as a file
        monkeypatch.setattr(
            faiss, "write_index", lambda graph, _, *flags: write(graph, "/", *flags)
        )
    alone.run(replica.maintenance.save())
    assert "can't write a snapshot" in caplog.text
    assert replica.follower.snapshot is None
    assert replica.follower.unsaved == 1
    assert not replica.maintenance.must_save(quiet_s=1000)


def test_a_replica_that_no_longer_follows_is_replaced(alone):
    (replica,) = alone.replicas
    replica._tasks[0].cancel()
    alone.run(asyncio.sleep(0.01))
    with pytest.raises((RuntimeError, asyncio.CancelledError)):
        alone.run(replica.check_health())


def test_a_replica_that_is_stopped_no_longer_follows(alone, caplog):
    """Ray answers a cancelled call with an exception of its own, which must not be retried."""
    replica, asked = alone.replicas[0], asyncio.Event()

    async def changes(*_):
        asked.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise RequestCancelledError("a request") from None

    async def stop() -> None:
        alone.handle.changes.remote = changes
        await asked.wait()
        replica._tasks[0].cancel()
        await asyncio.wait([replica._tasks[0]], timeout=5)

    alone.run(stop())
    assert replica._tasks[0].cancelled()
    assert not caplog.records


def put_some(alone, numbers) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    content = {f"{number}": unit(*rng.normal(size=4))[None] for number in numbers}
    for id, vectors in content.items():
        alone.put(id, vectors, {"year": 2024})
    return content


def assert_all_found(alone, content) -> None:
    (replica,) = alone.replicas
    for vectors in content.values():
        for condition in (None, "year>=2024"):
            found = alone.search(replica, vectors[0], count=20, condition=condition)
            assert_found(found, content, vectors[0], 20)


@pytest.mark.parametrize("saved", [False, True])
def test_an_index_that_a_change_broke_is_thrown_away_and_loaded_anew(
    alone, monkeypatch, caplog, saved
):
    """As when memory ran out after the rows of a photo were written."""
    (replica,) = alone.replicas
    content = put_some(alone, range(5))
    assert_all_found(alone, content)
    if saved:
        alone.run(replica.maintenance.save())
    broken, failed = replica.follower.index, []

    def append(starts, rows, append=Starts.append):
        if not failed:
            failed.append(rows)
            raise MemoryError("out of memory")
        append(starts, rows)

    monkeypatch.setattr(Starts, "append", append)
    content |= put_some(alone, range(5, 10))
    alone.run(until(lambda: failed))
    assert_all_found(alone, content)
    assert replica.follower.index is not broken
    assert (broken.broken, broken.chunks) == (True, 0)
    assert "can't apply change 6 of the store to the index, the put of '5'" in caplog.text
    assert "out of memory" in caplog.text
    alone.run(replica.check_health())
    state = alone.run(replica.stats())
    assert (state.photos, state.snapshot) == (10, 5 if saved else None)


def test_an_index_that_building_broke_is_loaded_anew_without_another_change(alone, monkeypatch):
    (replica,) = alone.replicas
    content = put_some(alone, range(5))
    assert_all_found(alone, content)
    broken = replica.follower.index
    monkeypatch.setattr(index, "GRAPH_CHUNKS", 0)
    monkeypatch.setattr(broken._segments[0].engine, "build", lambda: [][1])
    with pytest.raises(IndexError):
        broken.build()
    alone.run(until(lambda: replica.follower.index is not broken))
    assert_all_found(alone, content)


def test_a_broken_index_is_not_searched_and_not_saved(alone, monkeypatch):
    (replica,) = alone.replicas
    content = put_some(alone, range(3))
    assert_all_found(alone, content)
    monkeypatch.setattr(replica.follower, "_load", lambda: [][1])  # so it stays broken
    replica.follower.index.give_up()
    with pytest.raises(Unavailable, match="loaded anew"):
        alone.run(replica.rank(unit(1, 0, 0, 0), ONE, 3))
    assert not replica.maintenance.must_save(quiet_s=1000)
    alone.run(asyncio.sleep(0.05))
    with pytest.raises(Unavailable):
        alone.run(replica.rank(unit(1, 0, 0, 0), ONE, 3))


def test_a_change_that_never_succeeds_is_told_and_keeps_what_came_before_it(
    alone, monkeypatch, caplog
):
    """It is tried again and again; what was applied before it is not applied again each time."""
    (replica,) = alone.replicas
    monkeypatch.setattr(follower, "RETRY_S", 0.01)
    puts = []

    def put(id, vectors, metadata, put=replica.follower.index.put):
        puts.append(id)
        if id == "2":
            raise ValueError("vectors must be [n, 4], not [1, 5]")
        put(id, vectors, metadata)

    monkeypatch.setattr(replica.follower.index, "put", put)
    put_some(alone, range(4))
    alone.run(until(lambda: puts.count("2") >= 3))
    assert puts.count("0") == puts.count("1") == 1
    assert "3" not in puts
    assert replica.follower.sequence == 2
    assert not replica.follower.index.broken
    assert "can't apply change 3" in caplog.text
    assert "not [1, 5]" in caplog.text


def test_a_replica_that_could_not_follow_for_long_is_replaced(alone, monkeypatch):
    """But not while the store is started again, which takes some seconds."""
    (replica,) = alone.replicas
    monkeypatch.setattr(follower, "RETRY_S", 0.01)
    changes, asked = alone.handle.changes.remote, asyncio.Event()

    async def fail(*_):
        asked.set()
        raise ConnectionError("the store is being started")

    alone.handle.changes.remote = fail
    alone.run(asked.wait())
    replica.follower._followed_at -= follower.UNFOLLOWED_S / 2
    alone.run(replica.check_health())
    replica.follower._followed_at -= follower.UNFOLLOWED_S
    with pytest.raises(RuntimeError, match="could not be followed for 9"):
        alone.run(replica.check_health())
    alone.handle.changes.remote = changes
    alone.run(until(lambda: replica.follower.unfollowed_s < 10))
    alone.run(replica.check_health())


def test_a_replica_with_a_change_that_never_succeeds_is_replaced(alone, monkeypatch):
    (replica,) = alone.replicas
    monkeypatch.setattr(follower, "RETRY_S", 0.01)
    tried = asyncio.Event()

    def put(*_):
        alone.loop.call_soon_threadsafe(tried.set)
        raise ValueError("vectors must be [n, 4], not [1, 5]")

    monkeypatch.setattr(replica.follower.index, "put", put)
    put_some(alone, range(1))
    alone.run(tried.wait())
    replica.follower._followed_at -= follower.UNFOLLOWED_S
    alone.run(asyncio.sleep(0.05))
    with pytest.raises(RuntimeError, match="could not be followed"):
        alone.run(replica.check_health())


def test_a_replica_that_loads_its_index_anew_is_well_however_long_it_takes(alone, monkeypatch):
    (replica,) = alone.replicas
    loading, loaded = asyncio.Event(), threading.Event()

    def load():
        alone.loop.call_soon_threadsafe(loading.set)
        loaded.wait(20)

    monkeypatch.setattr(replica.follower, "_load", load)
    replica.follower.index.give_up()
    alone.run(loading.wait())
    replica.follower._followed_at -= 2 * follower.UNFOLLOWED_S
    alone.run(replica.check_health())
    loaded.set()
    alone.run(until(lambda: not replica.follower.index.broken))
    alone.run(replica.check_health())
    assert replica.follower.unfollowed_s < follower.UNFOLLOWED_S


def test_a_replica_that_tries_in_vain_to_load_its_index_anew_is_replaced(alone, monkeypatch):
    """A change breaks each new index: loading takes most of the time, and never succeeds."""
    (replica,) = alone.replicas
    monkeypatch.setattr(follower, "RETRY_S", 0.01)
    content, tries = put_some(alone, range(5)), []
    assert_all_found(alone, content)

    def append(starts, rows, append=Starts.append):
        append(starts, rows)
        if rows == 2:
            tries.append(rows)
            raise MemoryError

    monkeypatch.setattr(Starts, "append", append)
    alone.put("bad", np.eye(4)[:2])
    alone.run(until(lambda: len(tries) >= 3))
    replica.follower._followed_at -= follower.UNFOLLOWED_S
    with pytest.raises(RuntimeError, match="could not be followed"):
        alone.run(replica.check_health())
    with pytest.raises(Unavailable):
        replica.follower.index.search(unit(1, 0, 0, 0)[None], 1)


def test_a_snapshot_for_which_there_is_no_room_is_tried_again_later(alone, caplog, monkeypatch):
    (replica,) = alone.replicas
    assert_all_found(alone, put_some(alone, range(3)))
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=RESERVE_BYTES))
        alone.run(replica.maintenance.save())
    assert "can't write a snapshot of the index; trying again later" in caplog.text
    assert f"only {RESERVE_BYTES:,} are free" in caplog.text
    assert alone.run(replica.stats()).snapshot_bytes == 0
    alone.run(replica.maintenance.save())
    state = alone.run(replica.stats())
    assert state.snapshot == 3
    assert state.snapshot_bytes > 0


def test_a_renewal_that_fails_is_not_tried_again_at_once(alone, monkeypatch):
    """It needs the memory that was lacking."""
    (replica,) = alone.replicas
    content = put_some(alone, range(5))
    assert_all_found(alone, content)
    tries, make = [], replica.follower.index._make_engine

    def fail():
        tries.append(1)
        raise MemoryError

    monkeypatch.setattr(replica.follower.index, "_make_engine", fail)
    monkeypatch.setattr(segments, "WASTED_CHUNKS", 2)
    for id in list(content)[1:]:
        alone.delete(id)
    alone.run(until(lambda: tries))
    alone.run(asyncio.sleep(3 * maintenance.PAUSE_S))
    assert len(tries) == 1
    assert not replica.follower.index.broken
    assert_all_found(alone, {"0": content["0"]})
    monkeypatch.setattr(replica.follower.index, "_make_engine", make)
    assert alone.run(replica.maintenance.renew())
    assert replica.follower.index.removed == 0
    assert_all_found(alone, {"0": content["0"]})
