"""The parts of the benchmark of a service on a GPU that need no service."""

from __future__ import annotations

import json
import sys
import time
from email.parser import BytesParser

import bench
import pytest
import torch
from benchmarks import gpu_service
from benchmarks.closed_loop import Answer, Stretch
from benchmarks.gpu.networks import random_yolov5, write_checkpoint
from benchmarks.gpu.sizes import TINY, make_photos

from deployments.segmenter.checkpoint import read_checkpoint


def test_the_checkpoint_that_is_written_is_the_one_that_is_read(tmp_path):
    made = random_yolov5(TINY.width)
    write_checkpoint(made, tmp_path / "random.pt")
    found = read_checkpoint(tmp_path / "random.pt")
    assert (found.names, found.stride) == (made.names, made.stride)
    assert json.dumps(found.architecture) == json.dumps(made.architecture)
    torch.testing.assert_close(found.anchors, made.anchors)
    assert found.state.keys() == made.state.keys()
    for name, tensor in made.state.items():
        torch.testing.assert_close(found.state[name], tensor)


def test_the_segmenter_finds_objects_with_random_weights(tmp_path):
    options = gpu_service.make_detector(tmp_path / "r.pt", make_photos(TINY.photo, 3), TINY)
    assert options["model_name_or_path"] == str(tmp_path / "r.pt")
    assert 0 < options["confidence_threshold"] < 1


def test_photos_go_together_as_parts_of_a_form():
    photos = [b"one\r\n--photo?", b"\xff\xd8 two"]
    head = f"Content-Type: multipart/form-data; boundary={gpu_service.BOUNDARY}\r\n\r\n".encode()
    message = BytesParser().parsebytes(head + gpu_service.multipart(photos))
    assert [part.get_payload(decode=True) for part in message.get_payload()] == photos
    assert {part.get_param("name", header="content-disposition") for part in message.walk()} == {
        None,
        "file",
    }


def test_of_a_request_with_several_photos_each_counts():
    images = [{"status": "created", "chunks": [1, 2]}, {"status": "failed"}]
    found = gpu_service.chunks_of_each(json.dumps({"images": images}).encode())
    assert found == [2]
    answers = [Answer(0, 1, 200, [2]), Answer(0, 2, 200, [4, 6]), Answer(0, 3, 503, None)]
    figures = gpu_service.index_figures(Stretch(answers, 2), together=2)
    assert (figures["photos"], figures["errors"], figures["per_second"]) == (3, 3, 1.5)
    assert figures["chunks"] == 4
    assert figures["p50"] == pytest.approx(1500)


def test_goals_are_reached_or_not():
    indexed = [{"of_decoding": 0.5}, {"of_decoding": 0.71}]
    searched = [
        {"clients": 1, "p50": 15.5, "per_second": 60},
        {"clients": 64, "p50": 50, "per_second": 1000.5},
    ]
    rows = gpu_service.compare(indexed, searched)
    assert [(row["value"], row["reached"]) for row in rows] == [
        (0.71, "yes"),
        (1000.5, "yes"),
        (15.5, "no"),
    ]


def test_the_gpu_is_watched_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with gpu_service.watching_gpu() as busy:
        pass
    assert busy == []
    program, told = tmp_path / "nvidia-smi", tmp_path / "told"
    program.write_text(
        f"#!/bin/sh\necho 40\necho '[N/A]'\necho 60\n: > {told}\nexec /bin/sleep 60\n"
    )
    program.chmod(0o755)
    with gpu_service.watching_gpu() as busy:
        while not told.exists():
            time.sleep(0.01)
    assert busy == [0.4, 0.6]


def test_a_folder_without_jpegs_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench.py", "gpu-service", "--photos", str(tmp_path)])
    with pytest.raises(SystemExit, match="no JPEGs"):
        bench.main()
