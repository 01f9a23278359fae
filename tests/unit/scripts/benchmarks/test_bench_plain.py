"""The yardstick does the service's work: the same chunks, the same photos found."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks import plain as script
from benchmarks import yardstick
from benchmarks.plain import Plain

from deployments.compute.replicas import COMPUTING_REPLICA
from deployments.encoder.encoder import Encoder
from deployments.segmenter.letterbox import square_letterbox
from deployments.segmenter.segmenter import Segmenter
from deployments.settings import EncoderSettings, SegmenterSettings
from tests.support.paths import ROOT

COMPACT = ROOT / "models" / "compact"
NAMES = ["astronaut.png", "coffee.png", "motorcycle_left.png"]


@pytest.fixture(scope="module")
def files(photos):
    return [photos / name for name in NAMES]


@pytest.fixture(scope="module")
def plain(slow, files, tmp_path_factory):
    plain = Plain(COMPACT, SegmenterSettings(), tuned=False)
    plain.folder = tmp_path_factory.mktemp("plain")
    plain.index([file.read_bytes() for file in files], plain.folder)
    return plain


def test_it_makes_the_chunks_that_the_service_makes(plain, files):
    # A square photo: its canvas is the square one for the service, too.
    segmenter = Segmenter(SegmenterSettings(dtype="float32"), crop_size=112, squash=True)
    (expected,) = segmenter.segment([files[0].read_bytes()])
    boxes = [box for number, box in plain.chunks if number == 0]
    assert len(boxes) == len(expected.chunks)
    for box, chunk in zip(boxes, expected.chunks, strict=True):
        np.testing.assert_allclose(box, chunk.box, atol=3)
    vectors = Encoder(
        EncoderSettings(pretrained_model_name_or_path=str(COMPACT), dtype="float32")
    ).encode_images(expected.crops)
    assert (plain.vectors[: len(boxes)] * vectors).sum(1).min() > 0.98


def test_a_tile_that_is_an_object_is_no_chunk_again(plain, files):
    image = script.decode(files[0].read_bytes())
    assert image.size == (512, 512)
    found = np.float32([[0, 0, 139, 139, 0.9, 0]])  # on a canvas of 416 x 416
    boxes = plain._chunks(image, found, square_letterbox(512, 512, 416))
    assert boxes[0] == (0, 0, 172, 172)
    assert boxes[-1] == (0, 0, 512, 512)
    assert len(boxes) == len(set(boxes)) == 1 + (16 - 1) + 1


def test_it_finds_a_photo_by_a_part_and_has_written_everything(plain, files):
    for number, file in enumerate(files):
        image = script.decode(file.read_bytes())
        width, height = image.size
        part = image.crop((width // 4, height // 4, 3 * width // 4, 3 * height // 4))
        part.save(plain.folder / "part.png")
        assert plain.search((plain.folder / "part.png").read_bytes())[0] == number
    np.testing.assert_array_equal(np.load(plain.folder / "vectors.npy"), plain.vectors)
    kept = {path.read_bytes() for path in plain.folder.iterdir()}
    assert {file.read_bytes() for file in files} <= kept


def test_tuned_it_finds_the_same(plain, files, tmp_path):
    tuned = Plain(COMPACT, SegmenterSettings(), tuned=True)
    tuned.index([file.read_bytes() for file in files], tmp_path)
    assert tuned.batch > plain.batch == 1
    counts = [np.bincount([number for number, _ in p.chunks]) for p in (plain, tuned)]
    np.testing.assert_allclose(*counts, atol=4)  # in bfloat16 a faint object comes or goes


def test_only_the_tuned_one_has_the_environment_of_a_replica(files, monkeypatch):
    seen = []

    def in_a_process(order, environment):
        seen.append((order["tuned"], environment))
        return {"photos_per_second": len(seen)}

    monkeypatch.setattr(yardstick, "in_a_process", in_a_process)
    rows = yardstick.measure_both(COMPACT, {}, files, photos=3, seconds=0)
    assert seen == [(False, {}), (True, COMPUTING_REPLICA["runtime_env"]["env_vars"])]
    assert [row["ratio"] for row in rows] == [1, 2]


@pytest.mark.slow
def test_both_rows_are_measured_each_in_its_process(files):
    rows = yardstick.measure_both(COMPACT, {"tiles": []}, files[:1], photos=2, seconds=0)
    assert [row["script"] for row in rows] == ["plain", "plain, tuned"]
    for row in rows:
        assert set(row) == set(yardstick.COLUMNS)
        assert row["photos"] == 2
        assert 1 < row["crops_per_photo"] < 20
        assert row["crops_per_second"] == pytest.approx(
            row["crops_per_photo"] * row["photos_per_second"]
        )
        assert 100 < row["pss"] < 4000
        assert row["p50"] <= row["p95"] <= row["p99"]
    assert rows[0]["ratio"] == 1
    assert rows[1]["ratio"] == rows[1]["photos_per_second"] / rows[0]["photos_per_second"]
