"""OpenVINO against torch, in float32 and in int8, and the script that calibrates for int8."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import quantize
import torch
import yaml
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

import graph
from deployments.compute.device import Placement
from deployments.compute.openvino import CompiledNetwork, convert, int8_file
from deployments.compute.replicas import compute_threads
from deployments.compute.weights import sha256
from deployments.encoder.encoder import Encoder
from deployments.encoder.files import find_encoder
from deployments.errors import ModelUnavailable
from deployments.segmenter.checkpoint import read_checkpoint
from deployments.segmenter.detectors import load_detector
from deployments.segmenter.files import find_detector
from deployments.segmenter.segmenter import Segmenter
from deployments.segmenter.yolov5 import load_network
from deployments.settings import EncoderSettings, SegmenterSettings
from tests.support.graph.graph_in_process import arguments
from tests.support.networks.checkpoints import save_checkpoint, tiny_network
from tests.support.networks.detections import assert_same, check, some_photos
from tests.support.paths import ROOT

CPU = torch.device("cpu")


def detector(path, dtype=torch.float32, backend="openvino"):
    name = "int8" if dtype == torch.int8 else "float32"
    settings = SegmenterSettings(
        model_name_or_path=str(path), image_size=320, batch_size=4, backend=backend, dtype=name
    )
    return load_detector(find_detector(settings), settings, Placement(backend, CPU, dtype))


def run(*command, **environment):
    """Run Python in a process of its own."""
    return subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "CI"} | environment,
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny YOLOv5 with random weights, whose largest stride is 64."""
    network, architecture = tiny_network(heads=4, classes=3)
    return save_checkpoint(tmp_path_factory.mktemp("yolov5") / "tiny.pt", network, architecture)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny CLIP image tower with random weights."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=48,
        patch_size=8,
        projection_dim=32,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def crops(number, size, seed=0):
    """Coarse patterns, uint8 `[number, size, size, 3]`."""
    coarse = np.random.default_rng(seed).integers(0, 256, (number, 8, 8, 3), np.uint8)
    return coarse.repeat(size // 8, 1).repeat(size // 8, 2)


def cosines(a, b):
    return (a * b).sum(1)


# Float32 against torch


@pytest.fixture(scope="module")
def both(slow):
    """YOLOv5s in torch and in OpenVINO."""
    return detector("yolov5s", backend="torch"), detector("yolov5s")


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("canvas", [(320, 320), (224, 320), (320, 96), (32, 64), (448, 32)])
def test_a_canvas_of_any_size_in_any_batch(both, canvas, batch):
    pixels = torch.randint(0, 256, (batch, *canvas, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected, found = (one.network(pixels) for one in both)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[..., :4], expected[..., :4], atol=0.02, rtol=0)
    torch.testing.assert_close(found[..., 4:], expected[..., 4:], atol=1e-4, rtol=0)


def test_the_same_detections(both):
    thresholds = [0.2, 0.3, 0.1, 0.4, 0.05, 0.01, 0.01]
    expected, found = (one.detect(some_photos(), thresholds) for one in both)
    assert sum(len(one.labels) for one in expected) > 10
    for a, b in zip(expected, found, strict=True):
        assert_same(a, b)


def test_a_checkpoint_with_another_stride(checkpoint):
    found = detector(checkpoint)
    for photo, one in zip(some_photos(), found.detect(some_photos(), [0.3] * 7), strict=True):
        check(one, photo, 0.3)
    pixels = torch.randint(0, 256, (3, 128, 192, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = detector(checkpoint, backend="torch").network(pixels)
    torch.testing.assert_close(found.network(pixels), expected, atol=0.02, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 32])
def test_the_same_vectors(batch_size):
    torchs, openvinos = (
        Encoder(
            EncoderSettings(
                pretrained_model_name_or_path="models/compact",
                backend=backend,
                dtype="float32",
                batch_size=batch_size,
            )
        )
        for backend in ("torch", "openvino")
    )
    assert torchs.files == openvinos.files  # a store takes either
    pictures = crops(37, 112)
    np.testing.assert_allclose(
        openvinos.encode_images(pictures), torchs.encode_images(pictures), atol=1e-4
    )
    assert openvinos.encode_images([]).shape == (0, 256)
    oblong = [pictures[0][:50], pictures[1][:, :9]]
    np.testing.assert_allclose(
        openvinos.encode_images(oblong), torchs.encode_images(oblong), atol=1e-4
    )


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float16"])
def test_other_number_formats(clip, dtype):
    """Where the CPU has no instructions for one, it is float32."""
    exact = Encoder(
        EncoderSettings(pretrained_model_name_or_path=str(clip), device="cpu", dtype="float32")
    ).encode_images(crops(5, 48))
    found = Encoder(
        EncoderSettings(pretrained_model_name_or_path=str(clip), backend="openvino", dtype=dtype)
    ).encode_images(crops(5, 48))
    assert cosines(exact, found).min() > 0.998


@pytest.mark.parametrize("passes", [1, 2])
def test_from_several_threads(clip, passes):
    """One after the other, or at the same time."""
    encoder = Encoder(
        EncoderSettings(
            pretrained_model_name_or_path=str(clip), backend="openvino", dtype="float32"
        ),
        passes=passes,
    )
    pictures = [crops(1 + seed % 3, 48, seed) for seed in range(24)]
    expected = [encoder.encode_images(some) for some in pictures]
    with compute_threads(1) as one, compute_threads(1) as other:
        threads = [one, other] * 12
        found = [t.submit(encoder.encode_images, p) for t, p in zip(threads, pictures, strict=True)]
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_array_equal(a, b.result())


def test_two_processes_with_a_thread_each_use_two_cores(both):
    """Bound to cores, both would run on the first one."""
    compiled = both[1].network.compiled
    assert compiled.get_property("NUM_STREAMS") == 1
    assert not compiled.get_property("ENABLE_CPU_PINNING")


# int8


@pytest.fixture(scope="module")
def config(tmp_path_factory, checkpoint, clip):
    """A config that wants both networks in int8."""
    folder = tmp_path_factory.mktemp("config")
    int8 = {"backend": "openvino", "dtype": "int8"}
    changes = {
        "segmenter": int8 | {"model_name_or_path": str(checkpoint), "image_size": 320},
        "encoder": int8 | {"pretrained_model_name_or_path": str(clip)},
    }
    application = {"import_path": "graph:build", "args": arguments(folder / "store", changes)}
    file = folder / "serve_config.yaml"
    file.write_text(yaml.safe_dump({"applications": [application]}))
    return file


@pytest.fixture(scope="module")
def quantised(slow, tmp_path_factory, photos, config):
    """A cache folder after scripts/quantize.py, and what the script printed."""
    home = tmp_path_factory.mktemp("home")
    folder = tmp_path_factory.mktemp("photos")
    for name in ("astronaut.png", "coffee.png", "chelsea.png"):
        shutil.copy(photos / name, folder)
    (folder / "broken.png").write_text("no picture")
    done = run(
        "scripts/quantize.py",
        folder,
        "--config",
        config,
        HOME=str(home),
        XDG_CACHE_HOME=str(home / ".cache"),
    )
    assert done.returncode == 0, done.stderr
    return home, done


@pytest.fixture
def cache(quantised, monkeypatch):
    home, _ = quantised
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    return home / ".cache" / "inset" / "int8"


def test_quantising_names_its_files_by_the_digest(cache, quantised, checkpoint, clip):
    digests = [
        sha256(checkpoint),
        find_encoder(EncoderSettings(pretrained_model_name_or_path=str(clip))).identity.digest,
    ]
    files = {cache / f"{digest}.{suffix}" for digest in digests for suffix in ("xml", "bin")}
    assert set(cache.iterdir()) == files
    _, done = quantised
    for digest in digests:
        assert str(int8_file(digest)) in done.stdout
    assert "broken.png is left out" in done.stderr


def test_nothing_is_reported_to_anyone(quantised):
    """OpenVINO's telemetry begins with an id for this user, in ~/intel."""
    home, _ = quantised
    assert [path.name for path in home.iterdir()] == [".cache"]


def in_int8(network):
    """What share of a network's convolutions and products of matrices is in int8."""
    layers = network.compiled.get_runtime_model().get_ops()
    infos = [layer.get_rt_info() for layer in layers]
    heavy = [
        info["runtimePrecision"].astype(str) in ("i8", "u8")
        for info in infos
        if info["layerType"].astype(str) in ("Convolution", "FullyConnected")
    ]
    return sum(heavy) / len(heavy)


def test_int8_is_what_was_calibrated(cache, checkpoint, clip):
    found = detector(checkpoint, dtype=torch.int8)
    assert in_int8(detector(checkpoint).network) == 0
    assert in_int8(found.network) > 0.8
    photos = some_photos()
    for photo, one in zip(photos, found.detect(photos, [0.3] * 7), strict=True):
        check(one, photo, 0.3)
    pixels = torch.randint(0, 256, (2, 320, 192, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    with torch.inference_mode():
        exact, near = (d.network(pixels) for d in (detector(checkpoint), found))
    assert not torch.equal(exact, near)
    assert (exact[..., :4] - near[..., :4]).abs().mean() < 2

    encoder = Encoder(
        EncoderSettings(pretrained_model_name_or_path=str(clip), backend="openvino", dtype="int8")
    )
    assert in_int8(encoder.tower) > 0.8
    vectors = encoder.encode_images(crops(9, 48))
    exact = Encoder(
        EncoderSettings(pretrained_model_name_or_path=str(clip), dtype="float32")
    ).encode_images(crops(9, 48))
    assert cosines(exact, vectors).min() > 0.98
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_a_segmenter_in_int8(cache, checkpoint, photos):
    segmenter = Segmenter(
        SegmenterSettings(
            model_name_or_path=str(checkpoint), backend="openvino", dtype="int8", image_size=320
        )
    )
    (photo,) = segmenter.segment([(photos / "coffee.png").read_bytes()])
    assert len(photo.chunks) > 30


def test_quantising_without_anything_to_do(photos, config, tmp_path, monkeypatch, capsys):
    (tmp_path / "a.txt").write_text("no picture")
    for options, words in [
        ([photos], "serve_config.yaml wants no network in int8: set backend: openvino and dtype"),
        ([tmp_path, "--config", config], "There are no photos in there."),
        (
            [photos, "--config", tmp_path / "a.txt"],
            f"{tmp_path / 'a.txt'} is not a config of Inset",
        ),
    ]:
        monkeypatch.setattr("sys.argv", ["quantize.py", *map(str, options)])
        assert quantize.main() == 1
        assert words in capsys.readouterr().err


# What can't be


@pytest.mark.slow
def test_int8_that_was_not_calibrated(tmp_path, monkeypatch, checkpoint, clip):
    yolov5s = find_detector(SegmenterSettings()).path
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sentence = r"scripts/quantize\.py PHOTOS"
    with pytest.raises(ModelUnavailable, match=sentence) as error:
        detector(yolov5s, dtype=torch.int8)
    assert f"yolov5s ({int8_file(sha256(yolov5s))})" in str(error.value)
    with pytest.raises(ModelUnavailable, match=sentence):
        Encoder(
            EncoderSettings(
                pretrained_model_name_or_path=str(clip), backend="openvino", dtype="int8"
            )
        )
    # The whole service ends with it, before a replica starts.
    int8 = {"backend": "openvino", "dtype": "int8"}
    models = {"segmenter": {"model_name_or_path": str(checkpoint)}, "encoder": {}}
    for section in models:
        with pytest.raises(ModelUnavailable, match=sentence):
            graph.build(arguments(tmp_path, models | {section: int8 | models[section]}))


def test_a_damaged_file_of_int8(cache, tmp_path, monkeypatch, checkpoint):
    name = sha256(checkpoint)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = int8_file(name)
    file.parent.mkdir(parents=True)
    file.write_text("<net")
    with pytest.raises(ModelUnavailable, match=r"make it again with scripts/quantize\.py"):
        detector(checkpoint, dtype=torch.int8)


def test_a_detector_that_is_no_checkpoint(tmp_path, checkpoint):
    (tmp_path / "config.json").write_text("{}")
    network = load_network(read_checkpoint(checkpoint), CPU, torch.float32)
    with torch.inference_mode():
        torch.jit.trace(network, torch.zeros(1, 3, 64, 64)).save(tmp_path / "export.pt")
    for path in (tmp_path, tmp_path / "export.pt"):
        with pytest.raises(ModelUnavailable, match="runs YOLOv5 checkpoints only"):
            detector(path)
        changes = {"segmenter": {"model_name_or_path": str(path), "backend": "openvino"}}
        with pytest.raises(ModelUnavailable, match=r"set segmenter\.backend to torch"):
            graph.build(arguments(tmp_path, changes))


@pytest.mark.slow
def test_it_is_imported_only_where_it_is_asked_for(clip, checkpoint):
    """And where it isn't installed, that is a sentence."""
    code = f"""
import sys
from deployments.encoder.encoder import Encoder
from deployments.segmenter.segmenter import Segmenter
from deployments.settings import EncoderSettings, SegmenterSettings
encoder = EncoderSettings(pretrained_model_name_or_path={str(clip)!r})
segmenter = SegmenterSettings(model_name_or_path={str(checkpoint)!r})
Encoder(encoder), Segmenter(segmenter)
assert "openvino" not in sys.modules and "deployments.compute.openvino" not in sys.modules
sys.modules["openvino"] = None  # as if it weren't installed
for make, settings in ((Encoder, encoder), (Segmenter, segmenter)):
    try:
        make(settings.model_copy(update={{"backend": "openvino"}}))
    except Exception as error:
        print(type(error).__name__, error)
"""
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("ModelUnavailable backend: openvino needs the package openvino")
        assert "pip install -e '.[openvino]'" in line


def test_a_network_of_ones_own_with_its_statistics():
    """The same arithmetic as before torch's: pixels to 1, less the mean, over the deviation."""
    network = torch.nn.Conv2d(3, 2, 3).eval().requires_grad_(False)
    mean, std = (0.1, 0.5, 0.4), (0.2, 0.25, 1)
    compiled = CompiledNetwork(convert(network, 16), torch.float32, mean=mean, std=std)
    pixels = torch.randint(0, 256, (3, 3, 9, 20), dtype=torch.uint8)
    values = (pixels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    laid = pixels.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(compiled(laid), network(values), atol=1e-4, rtol=0)
