"""The chunk index against a plain search over a dictionary; replicas against the store's log."""

import asyncio
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from deployments.chunk_index import maintenance
from deployments.chunk_index.deployment import ChunkIndexDeployment, Search
from deployments.chunk_index.index import ChunkIndex
from deployments.errors import UnknownSequence
from deployments.metadata import Filter
from deployments.query import SearchOptions
from deployments.ranker import Ranker
from deployments.records import Chunk, EncodedPhoto, EncoderIdentity, content_hash
from deployments.settings import ChunkIndexSettings
from deployments.store.format import Delete
from deployments.store.store import Put, Store
from tests.support.examples import examples

pytestmark = pytest.mark.usefixtures("batches_without_replicas")

DIMENSION = 4
ONE = SearchOptions(limit=1, max_chunks=1)


def unit(*values: float) -> np.ndarray:
    """As the store keeps it: float16 values."""
    vector = np.array(values, np.float32)
    return (vector / np.linalg.norm(vector)).astype(np.float16).astype(np.float32)


# Few directions, so that equal distances are common.
direction = st.sampled_from(
    [unit(*row) for row in np.vstack([np.eye(4), -np.eye(4)[:2], [[1, 1, 0, 0], [1, 2, 3, 4]]])]
)
photo_vectors = st.lists(direction, min_size=1, max_size=5).map(np.stack)
ids = st.sampled_from("abcdefgh")
years = st.sampled_from([{}, {"year": 2020}, {"year": 2024}])
filters = st.sampled_from([None, "year>=2022", "year=2020", "year!=2020"])


def parse(condition: str | None) -> Filter | None:
    return None if condition is None else Filter.parse([condition])


def brute_force(content: dict[str, np.ndarray], query: np.ndarray) -> list[tuple[float, str]]:
    """(distance of the nearest chunk, photo), nearest first."""
    return sorted(
        (round(float(max(1 - (vectors @ query).max(), 0)), 5), photo)
        for photo, vectors in content.items()
    )


def assert_found(neighbours, content, query, count):
    """These are the nearest photos, with the distances of all their chunks; ties may go any way."""
    expected = brute_force(content, query)
    assert len(set(neighbours.photos)) == len(neighbours.photos) == min(count, len(content))
    for photo, distances in zip(neighbours.photos, neighbours.distances, strict=True):
        np.testing.assert_allclose(distances, np.clip(1 - content[photo] @ query, 0, 2), atol=1e-5)
    nearest = sorted(distances.min() for distances in neighbours.distances)
    np.testing.assert_allclose(nearest, [d for d, _ in expected[:count]], atol=2e-5)
    if count >= len(expected):
        assert neighbours.horizon == np.inf
    else:
        assert neighbours.horizon == pytest.approx(expected[count][0], abs=2e-5)


class IndexMachine(RuleBasedStateMachine):
    """Any sequence of puts, replacements and removals leaves the index equal to a dictionary."""

    @initialize(engine=st.sampled_from(["exact", "approximate"]), linked=st.booleans())
    def make(self, engine, linked):
        self.index = ChunkIndex(DIMENSION, ChunkIndexSettings(engine=engine, device="cpu"))
        if engine == "approximate" and linked:
            self.index._engine.begin_at = 1
        self.content: dict[str, tuple[np.ndarray, dict]] = {}

    @rule(photo=ids, vectors=photo_vectors, metadata=years)
    def put(self, photo, vectors, metadata):
        self.index.put(photo, vectors, metadata)
        self.content[photo] = vectors, metadata

    @rule(photo=ids)
    def remove(self, photo):
        self.index.remove(photo)
        self.content.pop(photo, None)

    @rule()
    def build(self):
        self.index.build()

    @rule(
        queries=st.lists(direction, min_size=1, max_size=3),
        count=st.integers(1, 10),
        condition=filters,
    )
    def search(self, queries, count, condition):
        filter = parse(condition)
        content = {
            photo: vectors
            for photo, (vectors, metadata) in self.content.items()
            if filter is None or filter.matches(metadata)
        }
        found = self.index.search(np.stack(queries), count, filter)
        for query, neighbours in zip(queries, found, strict=True):
            assert_found(neighbours, content, query, count)

    @invariant()
    def counts(self):
        content = getattr(self, "content", {})
        if content:
            vectors = [vectors for vectors, _ in content.values()]
            assert self.index.photos == len(content)
            assert self.index.chunks == sum(map(len, vectors))
            digest = sum(
                content_hash(id, np.float16(vectors)) for id, (vectors, _) in content.items()
            )
            assert self.index.digest == f"{digest % 2**64:016x}"


TestIndexMachine = IndexMachine.TestCase
TestIndexMachine.settings = settings(max_examples=examples(60), stateful_step_count=30)


@pytest.mark.parametrize("engine", ["exact", "approximate"])
def test_an_empty_index_finds_nothing(engine):
    (neighbours,) = ChunkIndex(DIMENSION, ChunkIndexSettings(engine=engine)).search(
        unit(1, 0, 0, 0)[None], 5
    )
    assert neighbours.photos == []
    assert neighbours.horizon == np.inf


def test_the_callers_array_is_not_followed():
    index = ChunkIndex(DIMENSION)
    vectors = unit(1, 0, 0, 0)[None].astype(np.float16)
    index.put("a", vectors)
    vectors[:] = unit(0, 1, 0, 0)
    (neighbours,) = index.search(unit(1, 0, 0, 0)[None], 1)
    assert neighbours.distances[0][0] == 0


@pytest.mark.parametrize("shape", [(4,), (2, 3), (1, 5), (0, 4)])
def test_vectors_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"\[n, 4\]"):
        ChunkIndex(DIMENSION).put("a", np.zeros(shape, np.float16))


@pytest.mark.parametrize(
    ("engine", "used"),
    [("auto", "approximate"), ("approximate", "approximate"), ("exact", "exact")],
)
def test_an_index_says_which_engine_it_uses(engine, used):
    assert ChunkIndex(DIMENSION, ChunkIndexSettings(engine=engine, device="cpu")).engine == used


def test_an_unknown_engine_is_refused():
    with pytest.raises(ValueError, match="'auto', 'exact' or 'approximate'"):
        ChunkIndex(DIMENSION, ChunkIndexSettings(engine="fast"))


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=examples(10))
def test_half_precision_rounds_distances_within_the_documented_bound(seed):
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((50, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    exact = 1 - vectors @ vectors[0]
    for dtype, bound in (("bfloat16", 0.008), ("float16", 0.001)):
        index = ChunkIndex(64, ChunkIndexSettings(engine="exact", device="cpu", dtype=dtype))
        index.put("a", vectors)
        (neighbours,) = index.search(vectors[:1], 1)
        assert np.abs(neighbours.distances[0] - exact).max() < bound


@pytest.mark.parametrize("engine", ["exact", "approximate"])
def test_a_saved_index_is_loaded_with_ids_metadata_and_what_was_removed(engine, tmp_path):
    rng = np.random.default_rng(6)
    index = ChunkIndex(DIMENSION, ChunkIndexSettings(engine=engine, device="cpu"))
    for number in range(50):
        vectors = rng.standard_normal((3, DIMENSION))
        index.put(
            f"photo{number}", vectors / np.linalg.norm(vectors, axis=1)[:, None], {"number": number}
        )
    for number in range(0, 50, 3):
        index.remove(f"photo{number}")
    index.saver()(tmp_path)
    loaded = ChunkIndex(DIMENSION, ChunkIndexSettings(engine=engine, device="cpu"))
    loaded.load(tmp_path)
    for name in ("photos", "chunks", "removed", "digest"):
        assert getattr(loaded, name) == getattr(index, name), name
    for each in (index, loaded):
        each.put("photo1", unit(0, 0, 0, 1)[None], {"number": 100})
        each.remove("photo2")
    queries = np.stack([unit(0, 0, 0, 1), unit(1, 1, 0, 0)])
    for condition in (None, "number>=40"):
        for one, other in zip(
            index.search(queries, 60, parse(condition)),
            loaded.search(queries, 60, parse(condition)),
            strict=True,
        ):
            assert one.photos == other.photos
            assert len(one.photos) > 5


def test_a_snapshot_whose_parts_do_not_belong_together_is_refused(tmp_path):
    index = ChunkIndex(DIMENSION, ChunkIndexSettings(engine="exact", device="cpu"))
    index.put("a", unit(1, 0, 0, 0)[None])
    index.saver()(tmp_path)
    (tmp_path / "ids.json").write_text('["a", "b"]')
    with pytest.raises(ValueError, match="belong together"):
        ChunkIndex(DIMENSION, ChunkIndexSettings(engine="exact", device="cpu")).load(tmp_path)


# Replicas that follow a store

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
        photo = EncodedPhoto(1, 1, "image/png", False, [chunk] * len(vectors), vectors, b"small")
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
        self.folder = Path(tempfile.mkdtemp())
        self.all = Replicas(self.folder, 2)
        self.content: dict[str, tuple[np.ndarray, dict]] = {}

    def teardown(self):
        self.all.close()
        shutil.rmtree(self.folder)

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
        index = self.all.replicas[number].follower.index
        index._engine.begin_at = 1
        index.build()

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
    for name, value in {"BUILD_CHUNKS": 8, "SNAPSHOT_CHUNKS": 8, "RENEWAL_CHUNKS": 8}.items():
        monkeypatch.setattr(maintenance, name, value)
    (replica,) = alone.replicas
    replica.follower.index._engine.begin_at = 1
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
        folder = alone.folder / "elsewhere"
        (folder / "graph.faiss").mkdir(parents=True)
        monkeypatch.setattr(tempfile, "mkdtemp", lambda **_: str(folder))
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


@pytest.mark.parametrize(
    ("engine", "name"), [("exact", "ExactEngine"), ("approximate", "ApproximateEngine")]
)
def test_snapshots_of_older_versions_are_still_read(engine, name):
    """They are told apart by these names, which were those of classes."""
    index = ChunkIndex(DIMENSION, ChunkIndexSettings(engine=engine, device="cpu"))
    assert index.kind == {"engine": name, "dimension": DIMENSION}
