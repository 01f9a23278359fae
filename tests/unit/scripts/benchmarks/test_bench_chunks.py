"""What scripts/bench.py chunks compares: that the vectors are what it says, and the truth true."""

import os

import bench
import numpy as np
import pytest
from benchmarks import chunk_vectors, chunks
from benchmarks.processes import in_new_process


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """What `embed` would have made of 120 photos."""
    folder = tmp_path_factory.mktemp("bench")
    rng = np.random.default_rng(0)
    photos = rng.normal(size=(120, 1, 40)) + 0.5 * rng.normal(size=(120, chunk_vectors.CHUNKS, 40))
    queries = photos[:, 3] + 0.1 * rng.normal(size=(120, 40))
    np.savez(folder / "base.npz", chunks=np.float32(photos), queries=np.float32(queries))
    return folder


def test_tiles_cover_the_picture_and_lie_within_it():
    boxes = list(chunk_vectors.tiles(60, 40))
    assert len(boxes) == chunk_vectors.CHUNKS == 35
    assert boxes[0] == (0, 0, 60, 40)
    covered = np.zeros((40, 60))
    for x1, y1, x2, y2 in boxes[1:]:
        assert 0 <= x1 < x2 <= 60
        assert 0 <= y1 < y2 <= 40
        covered[round(y1) : round(y2), round(x1) : round(x2)] += 1
    assert covered.min() >= 2


def test_photos_are_multiplied_and_the_truth_is_brute_force(work):
    chunk_vectors.prepare(work, [], chunks=7000, dimension=16)
    vectors = chunk_vectors.read(work, 7000, 16)
    assert vectors.chunks.shape == (200, 35, 16)
    lengths = np.linalg.norm(np.float32(vectors.chunks), axis=-1)
    np.testing.assert_allclose(lengths, 1, atol=2e-3)
    assert len({photo.tobytes() for photo in vectors.chunks}) == 200
    similarities = (np.float32(vectors.chunks) @ vectors.queries.T).max(1)
    expected = np.argsort(-similarities, axis=0)[:10].T
    assert (vectors.nearest == expected).mean() > 0.99  # but for ties


def test_the_table_has_a_row_for_each_engine(work, monkeypatch, capsys):
    """In this process: in those that the command starts, loading torch takes most of the time."""

    def in_this_process(measure, *args, environment):
        return measure(*args)

    monkeypatch.setattr(chunks, "in_new_process", in_this_process)
    options = ["--chunks", "7000", "--dimension", "16", "--engines", "exact", "faiss-hnsw"]
    monkeypatch.setattr("sys.argv", ["bench.py", "chunks", "--work", str(work), *options])
    assert bench.main() == 0
    printed = capsys.readouterr().out.splitlines()
    head, rule, *rows = [line for line in printed if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows] == ["exact", "faiss-hnsw"]
    assert len({line.count("|") for line in (head, rule, *rows)}) == 1
    for row in rows:
        assert float(row.split("|")[-2]) > 0.95  # recall
    assert not list(work.glob("saved-*"))


def test_a_new_process_has_an_environment_of_its_own(monkeypatch):
    monkeypatch.delenv("ONLY_THERE", raising=False)
    assert in_new_process(os.getenv, "ONLY_THERE", environment={"ONLY_THERE": "yes"}) == "yes"
    assert "ONLY_THERE" not in os.environ
    assert in_new_process(os.getpid, environment={}) != os.getpid()
    with pytest.raises(ZeroDivisionError):
        in_new_process(divmod, 1, 0, environment={})


def test_without_photos_it_says_what_it_needs(tmp_path):
    with pytest.raises(SystemExit, match="--photos FOLDER"):
        chunk_vectors.prepare(tmp_path, [], 7000, 16)
    with pytest.raises(SystemExit, match="100 are the fewest"):
        chunk_vectors.prepare(tmp_path, [tmp_path], 7000, 16)
