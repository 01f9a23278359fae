"""The chunk index against a plain search over a dictionary."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from deployments.chunk_index import index as module
from deployments.chunk_index import segments
from deployments.chunk_index.index import ChunkIndex
from deployments.chunk_index.snapshots import Snapshots
from deployments.records import Position, content_hash
from deployments.settings import ChunkIndexSettings
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
from tests.unit.chunk_index.photos import save


class IndexMachine(RuleBasedStateMachine):
    """Whatever happens to the index, it equals a dictionary. Its segments have few photos."""

    @initialize(
        engine=st.sampled_from(["exact", "approximate"]),
        linked=st.booleans(),
        segment=st.sampled_from([1, 8, 1000]),
        wasted=st.sampled_from([0, 5]),
    )
    def make(self, engine, linked, segment, wasted):
        self.folder = Path(tempfile.mkdtemp())
        self.patch = pytest.MonkeyPatch()
        if linked:
            self.patch.setattr(module, "GRAPH_CHUNKS", 0)
        self.patch.setattr(module, "MOVED_PHOTOS", 2)
        self.patch.setattr(segments, "SEGMENT_CHUNKS", segment)
        self.patch.setattr(segments, "WASTED_CHUNKS", wasted)
        self.settings = ChunkIndexSettings(engine=engine, device="cpu")
        self.index = ChunkIndex(DIMENSION, self.settings)
        self.snapshots = Snapshots(self.folder, self.index.kind)
        self.content: dict[str, tuple[np.ndarray, dict]] = {}

    def teardown(self):
        if hasattr(self, "patch"):
            self.patch.undo()
            shutil.rmtree(self.folder)

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

    @rule()
    def renew_a_little(self):
        self.index.renew()

    @rule()
    def renew_all(self):
        while self.index.renew():
            pass
        for segment in self.index._segments:
            most = max(segments.WASTED_CHUNKS, segments.WASTED_SHARE * segment.rows)
            assert segment.removed <= most or segment.removed == segment.rows

    @rule(photo=ids, vectors=photo_vectors)
    def save_and_load(self, photo, vectors):
        """What is put meanwhile is too late for the snapshot, and put again after loading."""
        parts = self.index.parts()
        self.put(photo, vectors, {})
        assert self.snapshots.write(parts, Position("history", 1, 0))
        self.index = ChunkIndex(DIMENSION, self.settings)
        assert self.snapshots.read(self.index.load)
        self.put(photo, vectors, {})

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


@pytest.mark.parametrize("engine", ["exact", "approximate"])
def test_only_the_photos_that_are_found_are_measured(engine, monkeypatch):
    """However many tie, and whatever others in the same batch ask for."""
    index = ChunkIndex(DIMENSION, ChunkIndexSettings(engine=engine, device="cpu"))
    white = unit(1, 1, 1, 1)
    for number in np.random.default_rng(2).permutation(2000):
        index.put(f"{number:04}", np.stack([white, unit(1, number, 0, 0)]))
    (segment,) = index._segments
    measured, vectors = [], segment.engine.vectors
    monkeypatch.setattr(
        segment.engine, "vectors", lambda photos: measured.append(len(photos)) or vectors(photos)
    )
    few, many = index.search(np.stack([white, white]), [3, 300])
    assert sorted(few.photos) == ["0000", "0001", "0002"]
    assert sorted(many.photos) == [f"{number:04}" for number in range(300)]
    assert sum(measured) == 303


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
    folders = save(index, tmp_path)
    for part, folder in zip(index.parts(), folders, strict=True):
        assert sum(file.stat().st_size for file in folder.iterdir()) < part.about_bytes + 3000
    loaded = ChunkIndex(DIMENSION, ChunkIndexSettings(engine=engine, device="cpu"))
    loaded.load(folders)
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
    folders = save(index, tmp_path)
    (ids,) = tmp_path.glob("*/owners.json")
    ids.write_text('["a", "b"]')
    with pytest.raises(ValueError, match="belong together"):
        ChunkIndex(DIMENSION, ChunkIndexSettings(engine="exact", device="cpu")).load(folders)


@pytest.mark.parametrize(
    ("engine", "name"), [("exact", "ExactEngine"), ("approximate", "ApproximateEngine")]
)
def test_snapshots_of_older_versions_are_still_read(engine, name):
    """They are told apart by these names, which were those of classes."""
    index = ChunkIndex(DIMENSION, ChunkIndexSettings(engine=engine, device="cpu"))
    assert index.kind == {"engine": name, "dimension": DIMENSION}


@pytest.mark.parametrize("engine", ["exact", "approximate"])
@pytest.mark.parametrize("sample", [4, 100])
def test_the_digest_tells_that_rows_and_photos_are_out_of_step(engine, sample, monkeypatch):
    """It is of what the engine has, not only of what was put."""
    monkeypatch.setattr(module, "SAMPLE_PHOTOS", sample)
    rng = np.random.default_rng(2)
    right, wrong = (
        ChunkIndex(DIMENSION, ChunkIndexSettings(engine=engine, device="cpu")) for _ in range(2)
    )
    for number in range(50):
        vectors = np.stack([unit(*rng.normal(size=4)) for _ in range(3)])
        if number == 40:
            assert wrong.digest == right.digest
            wrong._segments[0].engine.owners.ids.append("half a photo")
        for index in (right, wrong):
            index.put(f"photo{number}", vectors)
        if number >= 40:
            assert wrong.digest != right.digest
    right.remove("photo49")
    wrong.remove("photo49")
    assert wrong.digest != right.digest


def test_the_digest_is_that_of_the_store_even_if_the_engine_rounds():
    settings = ChunkIndexSettings(engine="exact", device="cpu", dtype="bfloat16")
    index, vectors = ChunkIndex(DIMENSION, settings), unit(1, 2, 3, 4)[None]
    index.put("a", vectors)
    assert index.digest == f"{content_hash('a', vectors):016x}"


def test_a_snapshot_whose_rows_and_photos_are_out_of_step_is_refused(tmp_path):
    """Older versions wrote such snapshots after a change that had failed halfway."""
    index = ChunkIndex(DIMENSION, ChunkIndexSettings(engine="exact", device="cpu"))
    index.put("a", unit(1, 0, 0, 0)[None])
    index.put("b", unit(0, 0, 1, 0)[None])
    folders = save(index, tmp_path)
    (ids,) = tmp_path.glob("*/owners.json")
    ids.write_text('["b", "a"]')
    with pytest.raises(ValueError, match="belong together"):
        ChunkIndex(DIMENSION, ChunkIndexSettings(engine="exact", device="cpu")).load(folders)
