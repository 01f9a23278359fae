"""The three kinds of detectors, and how a name or a path becomes one of them."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import (
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessorPil,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessorPil,
)
from transformers.models.rt_detr.configuration_rt_detr_resnet import RTDetrResNetConfig

from deployments.compute.device import Placement
from deployments.compute.weights import yolov5_weights
from deployments.errors import ModelUnavailable
from deployments.segmenter import files as detector_files
from deployments.segmenter.canvas_detectors import TorchScriptDetector, YoloV5Detector
from deployments.segmenter.checkpoint import read_checkpoint
from deployments.segmenter.detectors import load_detector
from deployments.segmenter.files import find_detector, is_torchscript
from deployments.segmenter.letterbox import square_letterbox
from deployments.segmenter.transformers_detector import TransformersDetector
from deployments.segmenter.yolov5 import load_network
from deployments.settings import SegmenterSettings
from tests.support.networks.checkpoints import save_checkpoint, tiny_network
from tests.support.networks.detections import assert_same, check, photo, some_photos

CPU = torch.device("cpu")


def load(model, image_size=320, batch_size=4, iou_threshold=0.45):
    settings = SegmenterSettings(
        model_name_or_path=str(model),
        image_size=image_size,
        iou_threshold=iou_threshold,
        batch_size=batch_size,
    )
    placement = Placement("torch", CPU, torch.float32)
    return load_detector(find_detector(settings), settings, placement)


@pytest.fixture(scope="module")
def yolov5s(slow):
    return load("yolov5s")


def test_a_result_does_not_depend_on_the_other_images(yolov5s):
    images = some_photos()
    thresholds = [0.2, 0.3, 0.1, 0.4, 0.05, 0.01, 0.01]
    together = yolov5s.detect(images, thresholds)
    for image, threshold, found in zip(images, thresholds, together, strict=True):
        check(found, image, threshold)
        [alone] = yolov5s.detect([image], [threshold])
        assert_same(found, alone)
    assert "person" in together[0].labels
    assert "cat" in together[1].labels
    assert yolov5s.detect([], []) == []


def test_mirrored_pictures_have_mirrored_boxes(yolov5s):
    straight = photo("coffee.png", (640, 320))
    [a], [b] = (yolov5s.detect([i], [0.2]) for i in (straight, straight.flip(1)))
    assert a.labels[0] == b.labels[0] == "cup"
    x1, y1, x2, y2 = a.boxes[0]
    np.testing.assert_allclose(b.boxes[0], [640 - x2, y1, 640 - x1, y2], atol=12)


def test_images_of_equal_canvas_are_run_together(yolov5s, monkeypatch):
    batches = []
    network = yolov5s.network

    def spy(batch):
        batches.append(tuple(batch.shape))
        assert batch.is_contiguous(memory_format=torch.channels_last)
        return network(batch)

    spy.stride = network.stride
    monkeypatch.setattr(yolov5s, "network", spy)
    square, wide = (torch.zeros(*size, 3, dtype=torch.uint8) for size in [(50, 50), (40, 80)])
    yolov5s.detect([square, wide, square, square, wide, square, square], [0.3] * 7)
    assert batches == [(4, 3, 320, 320), (1, 3, 320, 320), (2, 3, 160, 320)]


def test_on_a_square_canvas_as_on_a_gpu_the_same_objects_are_found(yolov5s, monkeypatch):
    images = [photo("coffee.png", (640, 320)), photo("coffee.png", (320, 640))]
    expected = yolov5s.detect(images, [0.4] * 2)
    monkeypatch.setattr(
        yolov5s, "_place", lambda height, width: square_letterbox(height, width, 320, 32)
    )
    for found, fitted in zip(yolov5s.detect(images, [0.4] * 2), expected, strict=True):
        assert found.labels[0] == fitted.labels[0]
        np.testing.assert_allclose(found.boxes[0], fitted.boxes[0], atol=20)


def test_a_p6_checkpoint(tmp_path):
    network, architecture = tiny_network(heads=4, classes=3)
    path = save_checkpoint(tmp_path / "mine.pt", network, architecture, names=["a", "b", "c"])
    detector = load(path)
    assert isinstance(detector, YoloV5Detector)
    assert detector.network.stride == 64
    for image, found in zip(some_photos(), detector.detect(some_photos(), [0.1] * 7), strict=True):
        check(found, image, 0.1)
        assert set(found.labels) <= {"a", "b", "c"}


@pytest.fixture(scope="module")
def export(slow, tmp_path_factory):
    """YOLOv5s as its export script writes it: traced, a tuple, config.txt beside the code."""

    class Exported(torch.nn.Module):
        def __init__(self):
            super().__init__()
            checkpoint = read_checkpoint(yolov5_weights("yolov5s"))
            self.names = checkpoint.names
            self.network = load_network(checkpoint, CPU, torch.float32)

        def forward(self, x):
            return (self.network(x),)

    model = Exported()
    folder = tmp_path_factory.mktemp("export")
    with torch.inference_mode():
        traced = torch.jit.trace(model, torch.zeros(1, 3, 320, 320))
    names = {str(index): name for index, name in enumerate(model.names)}
    config = json.dumps({"shape": [1, 3, 320, 320], "stride": 32, "names": names})
    traced.save(folder / "named.torchscript", _extra_files={"config.txt": config})
    traced.save(folder / "bare.pt")
    return folder


def test_an_export_finds_what_its_checkpoint_finds(export, yolov5s):
    detector = load(export / "named.torchscript", image_size=640)  # its own 320 counts
    assert isinstance(detector, TorchScriptDetector)
    images = [photo("astronaut.png"), photo("coffee.png", (400, 400))]
    expected = yolov5s.detect(images, [0.2, 0.2])
    assert sum(len(found.labels) for found in expected) >= 2
    for a, b in zip(detector.detect(images, [0.2, 0.2]), expected, strict=True):
        assert_same(a, b)


def test_an_export_pads_to_the_square(export):
    images = some_photos()
    for image, found in zip(
        images, load(export / "named.torchscript").detect(images, [0.1] * 7), strict=True
    ):
        check(found, image, 0.1)


def test_an_export_without_config_has_numbers_for_names(export):
    assert is_torchscript(export / "bare.pt")
    [found] = load(export / "bare.pt").detect([photo("chelsea.png")], [0.3])
    assert found.labels[0] == "15"  # COCO's cat


@pytest.fixture(scope="module")
def yolos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("yolos")
    torch.manual_seed(0)
    config = YolosConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=[64, 96],
        patch_size=16,
        num_detection_tokens=12,
        id2label={0: "left", 1: "right", 2: "both"},
    )
    network = YolosForObjectDetection(config)
    for weights in network.parameters():  # many start as zero: every token would find the same
        torch.nn.init.normal_(weights, std=0.3)
    network.save_pretrained(folder)
    YolosImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 256}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rt_detr(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rt_detr")
    torch.manual_seed(0)
    backbone = RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 16],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = RTDetrConfig(
        backbone_config=backbone,
        encoder_in_channels=[16, 16, 16],
        encoder_hidden_dim=32,
        encoder_ffn_dim=64,
        encoder_attention_heads=2,
        decoder_in_channels=[32, 32, 32],
        d_model=32,
        num_queries=15,
        decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=64,
        id2label={0: "left", 1: "right"},
    )
    RTDetrForObjectDetection(config).save_pretrained(folder)
    RTDetrImageProcessorPil(size={"height": 96, "width": 96}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["yolos", "rt_detr"])
def test_transformers_detectors(request, kind):
    detector = load(request.getfixturevalue(kind), iou_threshold=1)
    assert isinstance(detector, TransformersDetector)
    images = some_photos()
    together = detector.detect(images, [0.0] * 7)
    assert len(together[0].labels) >= 5
    for image, found in zip(images, together, strict=True):
        check(found, image, 0)
        assert set(found.labels) <= {"left", "right", "both"}
        [alone] = detector.detect([image], [0.0])
        assert_same(found, alone, atol=1)


def test_transformers_thresholds_are_each_images_own(yolos):
    detector = load(yolos, iou_threshold=1)
    image = photo("coffee.png")
    [everything] = detector.detect([image], [0.0])
    middle = float(np.median(everything.confidences))
    some, nothing = detector.detect([image, image], [middle, 1.0])
    assert some.labels == everything.labels[: len(some.labels)]
    assert 0 < len(some.labels) < len(everything.labels)
    assert nothing.labels == []


def test_transformers_boxes_that_overlap_are_dropped(yolos):
    image = photo("coffee.png")
    [everything] = load(yolos, iou_threshold=1).detect([image], [0.0])
    [disjoint] = load(yolos, iou_threshold=0).detect([image], [0.0])
    assert 0 < len(disjoint.labels) < len(everything.labels)


@pytest.mark.slow
def test_no_torchvision_is_imported(yolos):
    """Where torchvision is installed, a detector must not depend on it either."""
    code = (
        "import sys, torch; from deployments.segmenter.segmenter import Segmenter;"
        "from deployments.settings import SegmenterSettings;"
        f"d = Segmenter(SegmenterSettings(model_name_or_path={str(yolos)!r}, image_size=64,"
        " device='cpu', dtype='float32')).detector;"
        "d.detect([torch.zeros(9, 9, 3, dtype=torch.uint8)], [0.5]);"
        "assert 'torchvision' not in sys.modules; print(type(d.processor).__name__)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=os.getcwd()
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split()[-1] == "YolosImageProcessorPil"


def test_a_folder_that_wants_to_run_its_own_code_is_refused(yolos, tmp_path):
    config = json.loads((yolos / "config.json").read_text())
    config |= {
        "model_type": "mine",
        "auto_map": {
            "AutoConfig": "evil.Config",
            "AutoModelForObjectDetection": "evil.Model",
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')")
    with pytest.raises(ModelUnavailable, match="can't be loaded"):
        load(tmp_path)
    assert not (tmp_path / "marker").exists()


def test_a_folder_without_weights(yolos, tmp_path):
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((yolos / name).read_bytes())
    with pytest.raises(ModelUnavailable, match="can't be loaded"):
        load(tmp_path)


def test_hub_names_go_through_hub_folder(monkeypatch, yolos):
    monkeypatch.setattr(detector_files, "hub_folder", {"someone/some-detector": yolos}.__getitem__)
    assert isinstance(load("someone/some-detector"), TransformersDetector)


@pytest.mark.parametrize("name", ["yolov5s-custom", "a/b/c", "missing/folder/model.pt", ""])
def test_an_unknown_name_says_what_was_looked_for(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelUnavailable) as failure:
        load(name)
    assert "yolov5n, yolov5s, yolov5m, yolov5l, yolov5x, yolov5n6" in str(failure.value)
    assert str(tmp_path) in str(failure.value)


def test_a_file_that_is_no_model(tmp_path):
    (tmp_path / "a.pt").write_text("hello")
    with pytest.raises(ModelUnavailable, match="not a PyTorch file"):
        load(tmp_path / "a.pt")


def test_a_damaged_export(export, tmp_path):
    data = bytearray((export / "bare.pt").read_bytes())
    data[2000:200_000] = bytes(198_000)
    (tmp_path / "a.torchscript").write_bytes(data)
    with pytest.raises(ModelUnavailable):
        load(tmp_path / "a.torchscript")
