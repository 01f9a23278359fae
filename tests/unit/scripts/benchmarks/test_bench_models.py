"""The ceiling: which variants there are, that they are what they say, and the rate they allow."""

from __future__ import annotations

import pytest
import torch
from benchmarks import networks as module
from benchmarks.networks import BACKENDS, Variant, best, ceiling_rate, rows, time_variants, variants
from transformers import CLIPVisionConfig

from deployments.encoder.encoder import Encoder
from deployments.settings import EncoderSettings
from tests.support.paths import ROOT

TINY = Variant("detector", 64, 96, "torch", "float32", "contiguous", 1)


@pytest.fixture(scope="module")
def networks(slow):
    return {
        "detector": module.load_detector(),
        "encoder": module.load_encoder(ROOT / "models" / "compact"),
    }


def test_every_combination_is_there_once():
    found = variants(112, ["float32", "bfloat16"], [1, 8])
    assert len(found) == len(set(found)) == 2 * 2 * ((2 * 2 + 1) + (2 + 1))
    assert {way.memory_format for way in found if way.network == "encoder"} == {"contiguous"}
    shapes = {(way.network, way.height, way.width) for way in found}
    assert shapes == {("detector", 416, 416), ("detector", 320, 416), ("encoder", 112, 112)}


def test_each_variant_is_timed_and_its_ratio_is_to_the_plainest(networks, monkeypatch):
    monkeypatch.setattr(module, "TURN_S", 0)
    ways = [
        TINY,
        TINY._replace(memory_format="channels_last", batch=2),
        Variant("encoder", 112, 112, "torch", "float32", "contiguous", 2),
    ]
    found = rows(ways, time_variants(networks, ways))
    assert [row["batch"] for row in found] == [1, 2, 2]
    assert all(row["per_second"] == pytest.approx(1000 / row["ms"]) for row in found)
    assert found[0]["ratio"] == 1
    assert found[1]["ratio"] == pytest.approx(found[1]["per_second"] / found[0]["per_second"])
    assert found[2]["ratio"] is None  # there is no batch of 1 to compare with


def test_turns_go_round_and_the_median_of_all_but_the_first_counts(monkeypatch):
    ways = [TINY, TINY._replace(batch=4)]
    speeds = {1: iter([100, 3, 1, 2]), 4: iter([100, 8, 9, 7])}
    order = []

    def forwards(forward, seconds):
        batch = forward()
        order.append((batch, seconds > 0))
        return next(speeds[batch])

    monkeypatch.setattr(module, "forwards_per_second", forwards)
    monkeypatch.setitem(BACKENDS, "torch", lambda *_: lambda batch: lambda: len(batch))
    assert time_variants({"detector": None}, ways) == [2, 4 * 8]
    assert order == [(1, False), (4, False)] + 3 * [(1, True), (4, True)]


@torch.inference_mode()
def test_formats_change_the_way_not_the_result(networks):
    batch = torch.rand(2, 3, 64, 96)
    expected = networks["detector"](batch)
    for memory_format, laid in module.FORMATS.items():
        seen = []
        network = networks["detector"]
        run = BACKENDS["torch"](network, "float32", memory_format)(batch)
        handle = torch.nn.modules.module.register_module_forward_pre_hook(
            lambda module, inputs, seen=seen: seen.append((module, inputs))
        )
        torch.testing.assert_close(run(), expected, rtol=1e-3, atol=1e-2)
        handle.remove()
        assert seen[0][1][0].is_contiguous(memory_format=laid)
        weight = next(p for p in seen[0][0].parameters() if p.ndim == 4 and p.shape[2] > 1)
        assert weight.is_contiguous(memory_format=laid)
    run = BACKENDS["torch"](networks["encoder"], "bfloat16", "contiguous")(
        torch.rand(1, 3, 112, 112)
    )
    assert run().image_embeds.dtype == torch.bfloat16


@torch.inference_mode()
def test_openvino_computes_the_same(networks):
    for name, atol in (("detector", 1e-2), ("encoder", 1e-3)):
        network = networks[name]
        size = (2, 3, 64, 96) if name == "detector" else (2, 3, 112, 112)
        batch = torch.randint(0, 256, size) / 255
        output = network(batch)
        expected = output if name == "detector" else output.image_embeds
        run = BACKENDS["openvino"](network, "float32", "contiguous")(batch + 0.001)
        torch.testing.assert_close(run(), expected, rtol=1e-3, atol=atol)


def test_vit_b_32_is_an_encoder_of_that_shape(tmp_path, monkeypatch):
    smaller = CLIPVisionConfig(num_hidden_layers=1, hidden_size=64, num_attention_heads=1)
    assert CLIPVisionConfig().num_hidden_layers == 12
    assert (CLIPVisionConfig().patch_size, CLIPVisionConfig().hidden_size) == (32, 768)
    monkeypatch.setattr(module, "CLIPVisionConfig", lambda: smaller)
    module.make_vit_b_32(tmp_path / "vit-b-32")
    files = Encoder(EncoderSettings(pretrained_model_name_or_path=str(tmp_path / "vit-b-32"))).files
    assert (files.image_size, files.identity.dimension, files.squash) == (224, 512, False)


def test_the_ceiling_is_the_sum_of_the_times_of_the_fastest_ways():
    photos = {"network": "detector", "height": 320, "width": 416, "backend": "torch"}
    crops = {"network": "encoder", "backend": "torch"}
    found = [
        photos | {"batch": 1, "per_second": 4},
        photos | {"batch": 4, "per_second": 5},
        photos | {"height": 64, "width": 64, "batch": 1, "per_second": 50},
        photos | {"backend": "openvino", "batch": 1, "per_second": 50},
        crops | {"batch": 1, "per_second": 20},
        crops | {"batch": 8, "per_second": 100},
        crops | {"backend": "openvino", "batch": 8, "per_second": 200},
    ]
    assert best(found, "encoder", batch=1) == 20
    assert ceiling_rate(found, 30, "torch") == pytest.approx(1 / (1 / 5 + 30 / 100))
    assert ceiling_rate(found, 30, "openvino") == pytest.approx(1 / (1 / 50 + 30 / 200))
