"""scripts/evaluate.py --service: all kinds of queries, by a service that lives as long as that."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from evaluation.kinds import ALL_KINDS, KINDS

from tests.support.paths import ROOT
from tests.support.running.waiting import wait_until

pytestmark = pytest.mark.slow

LABELS = {"coffee.png": "41 0.5 0.45 0.42 0.6", "chelsea.png": "15 0.45 0.5 0.5 0.8"}
ABSENT = ("motorcycle_left.png", "hubble_deep_field.jpg")


@pytest.fixture(scope="module")
def folder(photos, tmp_path_factory) -> Path:
    """Four photos, the box of an object in two of them, one more, and two that are `absent`."""
    folder = tmp_path_factory.mktemp("own")
    for name, files in {
        "images": (*LABELS, "rocket.jpg", "astronaut.png"),
        "others": ("camera.png",),
        "absent": ABSENT,
    }.items():
        (folder / name).mkdir()
        for file in files:
            shutil.copy(photos / file, folder / name / file)
    (folder / "labels").mkdir()
    for file, line in LABELS.items():
        (folder / "labels" / file).with_suffix(".txt").write_text(line)
    return folder


def command(folder: Path, *more: object) -> list[str]:
    options = ["--images", folder / "images", "--distractors", folder / "others", "--service"]
    return [sys.executable, ROOT / "scripts" / "evaluate.py", *map(str, [*options, *more])]


def test_all_kinds_are_measured_by_a_service_of_its_own(folder, tmp_path):
    out, picture, document = (tmp_path / name for name in ("out.json", "misses.png", "table.md"))
    document.write_text("<!-- here: by hand -->\n<!-- end here -->\n")
    options = ["--labels", folder / "labels", "--absent", folder / "absent"]
    options += ["--queries-per-kind", 2, "--absent-queries", 2, "--json", out]
    options += ["--failures", picture, "--failures-of", "perspective", "absent"]
    outcome = subprocess.run(
        command(folder, *options, "--write", f"{document}#here"),
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert outcome.returncode == 0, outcome.stderr
    content = json.loads(out.read_text())
    assert (content["photos"], content["distractors"]) == (4, 1)
    (row,) = content["rows"]
    numbers = {kind: row[kind]["queries"] for kind in ALL_KINDS}
    assert numbers == dict.fromkeys(KINDS, 2) | {"object": 2, "patch": 12, "absent": 2}
    assert [one["kind"] for one in row["answers"]].count("bars") == 2
    for kind in ALL_KINDS:
        assert 0 < row[kind]["ms_p50"] <= row[kind]["ms_p95"]
    for kind in numbers.keys() - {"absent"}:
        assert row[kind]["recall@10"] == 1  # of five photos
    assert row["collage"]["parts"] == 1
    assert row["absent"]["recall@1"] is None
    assert row["absent"]["wrongly_verified"] == 0
    for kind in ("object", "mirrored", "turned-90"):
        assert row[kind]["verified"] > 0
        assert row[kind]["pose"] == 1
        assert row[kind]["corner_share"] < 0.1
    assert "| collage | 2 |" in outcome.stdout
    assert "| collage | 2 |" in document.read_text()
    assert picture.exists()


def test_ctrl_c_ends_it_and_its_service(folder):
    with subprocess.Popen(
        command(folder, "--kinds", "patch"), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "Starting a service" in line:
                break
        own = psutil.Process(process.pid)
        wait_until(lambda: own.children(recursive=True), "serve run")
        family = own.children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert "Interrupted." in process.stderr.read()
    assert not psutil.wait_procs(family, timeout=60)[1]
