"""The benchmark of a GPU runs where next to nothing is installed, and does the service's work."""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from contextlib import closing
from dataclasses import replace

import bench_gpu
import numpy as np
import pytest
import torch
from benchmarks.gpu import checks, search, speed, throughput
from benchmarks.gpu.decoders import AHEAD, DECODERS, LIMITS
from benchmarks.gpu.networks import (
    VIT_B_32,
    Tower,
    make_detector,
    make_tower,
    operations,
    random_yolov5,
    read_shape,
)
from benchmarks.gpu.sizes import COMPACT, FULL, TINY, make_photos, read_photos
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from deployments.compute.device import DTYPES
from deployments.compute.weights import yolov5_weights
from deployments.decoding.image import decode
from deployments.segmenter.checkpoint import read_checkpoint
from deployments.segmenter.letterbox import square_letterbox
from tests.support.paths import ROOT

CPU = torch.device("cpu")
# The parts that need torch, NumPy and Pillow alone, and what else the service needs.
BARE = ("checks", "ceilings", "decoding", "search")
MISSING = (
    "ray",
    "pydantic",
    "transformers",
    "lmdb",
    "faiss",
    "fastapi",
    "starlette",
    "httpx",
    "filelock",
    "huggingface_hub",
    "safetensors",
    "tqdm",
    "skimage",
    "psutil",
    "yaml",
)


@pytest.mark.slow
def test_it_runs_with_torch_numpy_and_pillow_alone(tmp_path):
    file = tmp_path / "gpu.json"
    options = [
        "--device",
        "cpu",
        "--seconds",
        "0.01",
        "--encoders",
        COMPACT,
        "--dtypes",
        "float32",
        "--parts",
        *BARE,
        "--json",
        str(file),
    ]
    script = ROOT / "scripts" / "bench_gpu.py"
    code = (
        "import runpy, sys\n"
        f"sys.modules.update(dict.fromkeys({MISSING}))\n"  # importing one is an ImportError now
        f"sys.argv = [{str(script)!r}, *{options}]\n"
        f"sys.path[0] = {str(script.parent)!r}\n"
        f"runpy.run_path({str(script)!r}, run_name='__main__')\n"
        f"assert not any(sys.modules[name] for name in {MISSING})\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    tables = json.loads(file.read_text())["tables"]
    assert tuple(tables) == BARE
    for name in BARE:
        columns = bench_gpu.COLUMNS[name]
        assert f"| {' | '.join(title for title, _ in columns.values())} |" in ran.stdout
        assert all(set(row) <= set(columns) for row in tables[name])
    assert all(row["fine"] for row in tables["checks"]), tables["checks"]
    assert len(tables["checks"]) == 9
    for row in tables["ceilings"][1:]:
        assert ("per_second" in row) == (row["mode"] == "eager")  # there are no graphs on a CPU
    assert {row["network"] for row in tables["ceilings"][1:]} == {"yolov5s", COMPACT}
    assert "models/compact, float32, graph, batch 2:" in ran.stderr


def test_without_a_gpu_it_says_so(monkeypatch):
    parser = argparse.ArgumentParser()
    bench_gpu.add_arguments(parser)
    arguments = parser.parse_args([])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"Torch sees no GPU.*--device cpu"):
        bench_gpu.run(arguments)


def test_searches_are_timed_one_size_after_the_other():
    rows = search.searches(TINY, CPU, 0.001)
    assert [(row["vectors"], row["queries"]) for row in rows] == [
        (vectors, queries) for vectors in TINY.vectors for queries in TINY.queries
    ]
    assert all(row["ms"] > 0 for row in rows)


def test_made_up_vectors_are_found_by_themselves():
    engine = search.make_engine(60, 16, CPU)
    assert engine.owners.ids == ["0", "1", "2"]
    found = engine.search(engine.vectors(np.array([2])), 1, None)
    assert [each.photos.tolist() for each in found] == [[2]] * 10


def test_where_the_memory_is_too_small_a_row_is_empty(monkeypatch, capsys):
    def full(*_):
        raise torch.OutOfMemoryError("no room\nand a long story")

    monkeypatch.setattr(search, "make_engine", full)
    rows = search.searches(TINY, CPU, 0.001)
    assert rows == [{"vectors": vectors, "dimension": 16} for vectors in TINY.vectors]
    assert capsys.readouterr().err == "100 vectors: no room\n3,000 vectors: no room\n"


# The networks


@pytest.mark.slow
def test_the_random_yolov5s_is_yolov5s():
    trained = read_checkpoint(yolov5_weights("yolov5s"))
    made = random_yolov5(0.5)
    shapes = [{n: t.shape for n, t in one.state.items()} for one in (made, trained)]
    assert shapes[0] == shapes[1]
    assert torch.equal(made.anchors, trained.anchors)
    # The same weights give the same numbers: the layers are connected in the same way.
    same = replace(trained, architecture=made.architecture, stride=made.stride)
    networks = [make_detector(one, CPU, torch.float32) for one in (trained, same)]
    pixels = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(*(network(pixels) for network in networks))
        made = make_detector(made, CPU, torch.float32)(pixels)
    assert made[..., 4].std() > 1e-3  # not the same everywhere


@pytest.mark.slow
@torch.inference_mode()
def test_the_tower_is_clips():
    reference = CLIPVisionModelWithProjection.from_pretrained(ROOT / COMPACT, dtype=torch.float32)
    shape = read_shape(ROOT / COMPACT)
    tower = Tower(shape).eval()
    names = {
        "vision_model.": "",
        "embeddings.": "",
        "encoder.": "",
        "self_attn.": "",
        "mlp.": "",
        "position_embedding.weight": "position_embedding",
    }
    state = {}
    for name, tensor in reference.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        state[name] = tensor
    state.pop("position_ids", None)
    tower.load_state_dict(state)
    pixels = torch.randn(2, 3, shape.image_size, shape.image_size)
    expected = reference(pixel_values=pixels).image_embeds
    torch.testing.assert_close(tower(pixels), expected, rtol=1e-4, atol=1e-4)


def test_vit_b_32_has_the_sizes_that_are_transformers_defaults():
    config = CLIPVisionConfig()
    assert (
        config.image_size,
        config.patch_size,
        config.hidden_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.intermediate_size,
        config.projection_dim,
        config.hidden_act == "quick_gelu",
    ) == VIT_B_32


def test_operations_are_counted():
    linear = torch.nn.Linear(30, 50)
    assert operations(linear, torch.zeros(1, 30)) == 2 * 30 * 50
    tower = make_tower(TINY.encoders[COMPACT], CPU, torch.float32)
    side = TINY.encoders[COMPACT].image_size
    one, three = (operations(tower, torch.zeros(n, 3, side, side)) for n in (1, 3))
    assert three == 3 * one


# Decoding


@pytest.mark.parametrize("kind", DECODERS)
def test_photos_come_round_and_round_in_their_order(kind):
    photos = [*make_photos((40, 30), 3), *make_photos((20, 50), 2)]
    expected = [decode(photo, LIMITS).pixels for photo in photos]
    decoder = DECODERS[kind](photos, workers=2, batch=6)
    try:
        for count in (9, 2):  # what is left of a run must not write into the next one
            with closing(decoder.batches(CPU)) as batches:
                numbers = itertools.count()
                before: list = []
                for batch in itertools.islice(batches, count):
                    assert len(batch) == 6
                    # The last ones are still there when the next have come.
                    for photo, number in before:
                        np.testing.assert_array_equal(photo, expected[number % 5])
                    before = list(zip(batch, numbers, strict=False))
                    for photo, number in before:
                        np.testing.assert_array_equal(photo, expected[number % 5])
    finally:
        decoder.close()


def test_decoding_is_counted_after_the_first_batches():
    class Decoder:
        asked = 0

        def batches(self, device):
            for _ in itertools.count():
                self.asked += 1
                yield [None] * 3

    decoder = Decoder()
    (row,) = throughput.decoding({"some": decoder}, CPU, workers=2, seconds=0.05)
    assert row["per_second"] <= 3 * (decoder.asked - AHEAD) / 0.05
    assert row["per_worker"] == row["per_second"] / 2


def test_photos_of_a_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.JPG").write_bytes(b"one")
    (tmp_path / "c.txt").write_bytes(b"none")
    assert read_photos(tmp_path) == [b"one"]
    with pytest.raises(SystemExit, match="no JPEGs"):
        read_photos(tmp_path / "empty")


def test_made_up_photos_are_of_a_cameras_size_and_differ():
    photos = make_photos(FULL.photo, 3)
    assert len(set(photos)) == 3
    assert all(60_000 < len(photo) < 250_000 for photo in photos)
    assert decode(photos[0], LIMITS).pixels.shape == (480, 640, 3)


# The pipeline


@pytest.fixture
def made(tmp_path):
    """The service's photo encoder with tiny networks, and a threshold that finds some objects."""
    detector = random_yolov5(TINY.width)
    photos = [decode(photo, LIMITS).pixels for photo in make_photos(TINY.photo, 4)]
    threshold = throughput.choose_threshold(detector, photos, TINY, CPU)
    return throughput.make_photo_encoder(
        tmp_path, TINY, COMPACT, detector, threshold, CPU, "float32"
    )


def test_the_threshold_is_one_that_finds_some_objects(made, monkeypatch):
    """So many candidates; here none is suppressed."""
    photos = make_photos(TINY.photo, 4)
    monkeypatch.setattr(made.segmenter.detector, "_iou_threshold", 1.0)
    # As on a GPU; on a CPU the canvases have other shapes.
    monkeypatch.setattr(
        made.segmenter.detector,
        "_place",
        lambda height, width: square_letterbox(height, width, TINY.image_size, 32),
    )
    found = [
        [chunk.source for chunk in photo.chunks].count("detection") for photo in made.encode(photos)
    ]
    # One by one or together, the last digits differ.
    assert sum(found) == pytest.approx(throughput.OBJECTS * 4, abs=2)


def test_all_stages_are_measured_alone_and_together(made):
    photos = make_photos(TINY.photo, 5)
    pixels = [decode(photo, LIMITS).pixels for photo in photos[:2]]
    decoded = [{"workers": name, "per_second": rate} for name, rate in [("a", 70), ("b", 9e9)]]
    rows = throughput.pipeline("some", made, photos, pixels, decoded, 0.01)
    stages = {row["stage"]: row for row in rows}
    *alone, together, done = list(stages.values())[1:]
    assert stages["decoding"]["per_second"] == 9e9
    assert together["per_second"] == pytest.approx(1 / sum(1 / row["per_second"] for row in alone))
    assert done["of_decoding"] == done["per_second"] / 9e9
    assert done["of_stages"] == pytest.approx(done["per_second"] / together["per_second"])
    assert 17 < done["chunks"] <= 17 + 2 * throughput.OBJECTS
    assert {row["encoder"] for row in rows} == {"some"}


# The tables


def test_a_mode_that_fails_leaves_its_row_empty_and_says_why(monkeypatch, capsys):
    def broken(network, example):
        raise RuntimeError("no such thing\nand a long story")

    monkeypatch.setitem(speed.MODES, "broken", broken)
    sizes = TINY._replace(encoders={COMPACT: TINY.encoders[COMPACT]}, batches=(1,), crops=())
    rows = speed.ceilings(
        sizes, random_yolov5(TINY.width), CPU, ["float32"], ["eager", "broken"], 0.001
    )
    assert [(row["network"], row.get("mode"), "per_second" in row) for row in rows[1:]] == [
        ("yolov5s", "eager", True),
        ("yolov5s", "broken", False),
        (COMPACT, "eager", True),
        (COMPACT, "broken", False),
    ]
    eager, peak = rows[1], rows[0]
    assert eager["share"] == pytest.approx(eager["teraflops"] / peak["teraflops"])
    assert "yolov5s, float32, broken, batch 1: no such thing\n" in capsys.readouterr().err


def test_rates_are_of_what_ran():
    count = 0

    def run():
        nonlocal count
        count += 1

    rate = speed.per_second(run, CPU, 0.02)
    assert 0 < rate < count / 0.02


def test_a_wrong_result_is_not_fine(monkeypatch):
    monkeypatch.setattr(checks, "select", lambda rows, *_: [rows[:1].numpy()] * next(numbers))
    numbers = iter([6, 6])
    assert checks._check_suppression(CPU)[0]["fine"]
    good = checks._check_networks(TINY, random_yolov5(TINY.width), CPU, DTYPES["float32"])
    assert [row["value"] for row in good] == [0, pytest.approx(0, abs=1e-6)]

    def other(shape, device, dtype):
        return make_tower(shape._replace(quick=dtype == torch.bfloat16), device, dtype)

    monkeypatch.setattr(checks, "make_tower", other)
    monkeypatch.setattr(checks, "_levels", lambda *_: np.array([0, 3]))
    assert [row["fine"] for row in checks._check_photos(TINY, CPU)] == [False] * 5
