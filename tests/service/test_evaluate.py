"""scripts/evaluate.py: whole runs on a few photos, without a service and with one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import evaluate
import pytest
from evaluation.encoders import Pixels
from PIL import Image

from tests.support.paths import ROOT
from tests.support.photos.pictures import encode, pixels
from tests.support.service.http_client import delete_everything

GROUPS = ["object", "patch", "patch, not turned"]


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "scripts" / "evaluate.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def without_times(figures: dict) -> dict:
    return {key: value for key, value in figures.items() if not key.startswith("ms")}


@pytest.fixture(scope="module")
def real(photos, tmp_path_factory) -> Path:
    """Three photos, the box of an object in two of them, and three other pictures."""
    folder = tmp_path_factory.mktemp("real")
    for name in ("labels", "images", "others"):
        (folder / name).mkdir()
    for name, box in {
        "coffee.png": "41 0.5 0.45 0.42 0.6",
        "chelsea.png": "15 0.45 0.5 0.5 0.8",
        "rocket.jpg": "",
    }.items():
        shutil.copy(photos / name, folder / "images" / name)
        (folder / "labels" / name).with_suffix(".txt").write_text(box)
    for number in range(3):
        (folder / "others" / f"{number}.png").write_bytes(encode(pixels(f"other {number}")))
    return folder


@pytest.fixture(scope="module")
def in_process(real) -> list[dict]:
    """Rows of `pixels` and of the default encoder, each without tiles and with them."""
    out, picture = real / "out.json", real / "misses.png"
    options = ["--images", real / "images", "--labels", real / "labels"]
    options += ["--distractors", real / "others", "--json", out, "--failures", picture]
    options += ["--encoder", "pixels", "--encoder", ROOT / "models" / "compact"]
    outcome = run(*options, "--segmenter", '{"tiles": []}', "--segmenter", "{}")
    assert outcome.returncode == 0, outcome.stderr
    content = json.loads(out.read_text())
    assert (content["seed"], content["photos"], content["distractors"]) == (0, 3, 3)
    lines = [line for line in outcome.stdout.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 3 * 4 + 2 + 4
    assert Image.open(picture).width > 1000
    return content["rows"]


@pytest.mark.slow
def test_a_run_gives_sane_figures_of_each_encoder_and_tiles(in_process):
    assert [(row["encoder"], row["segmenter"]) for row in in_process] == [
        ("pixels", "tiles []"),
        ("pixels", "as by default"),
        ("models/compact", "tiles []"),
        ("models/compact", "as by default"),
    ]
    for row in in_process:
        assert [row[group]["queries"] for group in GROUPS] == [2, 9, 6]
        assert row["photos_per_second"] > 0
        assert row["index_bytes_per_photo"] == pytest.approx(
            2 * row["dimension"] * row["chunks_per_photo"]
        )
        for group in GROUPS:
            figures = row[group]
            assert 0 <= figures["recall@1"] <= figures["recall@5"] <= figures["recall@10"] <= 1
            assert figures["recall@10"] == 1  # of six photos
    without, tiled, *_ = in_process
    assert tiled["dimension"] == without["dimension"] == Pixels.size**2 * 3
    assert tiled["chunks_per_photo"] > without["chunks_per_photo"] + 5
    assert tiled["patch"]["covered"] > without["patch"]["covered"]
    assert tiled["patch, not turned"]["recall@1"] >= 0.5
    assert tiled["object"]["covered"] == 1


def test_a_service_gives_the_same_figures(in_process, real, client, service, monkeypatch, capsys):
    """Run in this process, which has loaded torch already."""

    def run_here(*arguments: object) -> str:
        monkeypatch.setattr("sys.argv", ["evaluate.py", *map(str, arguments)])
        status, errors = evaluate.main(), capsys.readouterr().err
        assert status == 0, errors
        return errors

    out = real / "service.json"
    options = ["--images", real / "images", "--labels", real / "labels"]
    options += ["--distractors", real / "others", "--json", out]
    by_distance = ["--url", service.url, "--verify", "none", "--kinds", "object", "patch"]
    # What other tests have stored would be found too.
    delete_everything(client)
    assert "other photos" not in run_here(*options, *by_distance)
    (row,) = json.loads(out.read_text())["rows"]
    expected = in_process[3]
    assert (row["encoder"], row["dimension"]) == (expected["encoder"], expected["dimension"])
    assert row["chunks_per_photo"] == pytest.approx(expected["chunks_per_photo"], abs=0.01)
    for group in GROUPS:
        assert without_times(row[group]) == pytest.approx(without_times(expected[group]), abs=0.01)
        assert 0 < row[group]["ms_p50"] <= row[group]["ms_p95"]
    found = [found for one in row["answers"] for found in one["found"]]
    assert len(found) == 6 * len(row["answers"])
    assert all(one.keys() == {"photo", "box"} for one in found)

    again = run_here(*options[:4], *by_distance)
    assert "The service holds 3 other photos" in again
    assert "they are distractors too" in again
