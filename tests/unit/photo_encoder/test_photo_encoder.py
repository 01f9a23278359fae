"""From bytes to vectors: a segmenter and an encoder together, with tiny networks."""

import io
import logging
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from deployments.encoder.encoder import Encoder
from deployments.errors import BadParameter, InsetError, NotAnImage
from deployments.photo_encoder.photo_encoder import PhotoEncoder
from deployments.records import EncodedPhoto
from deployments.segmenter.segmenter import SegmentedPhoto, Segmenter
from deployments.settings import EncoderSettings, SegmenterSettings
from tests.support.networks.checkpoints import save_checkpoint, tiny_network
from tests.support.photos.exif import SAID, of_a_phone

SIZE = 32


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> tuple[SegmenterSettings, EncoderSettings]:
    """The settings of two tiny networks with random weights."""
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=8,
        projection_dim=16,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "clip")
    save_checkpoint(folder / "tiny.pt", *tiny_network())
    on_cpu = {"device": "cpu", "dtype": "float32"}
    return (
        SegmenterSettings(
            model_name_or_path=str(folder / "tiny.pt"), image_size=64, batch_size=2, **on_cpu
        ),
        EncoderSettings(pretrained_model_name_or_path=str(folder / "clip"), batch_size=8, **on_cpu),
    )


@pytest.fixture
def encoder(settings: tuple[SegmenterSettings, EncoderSettings]) -> PhotoEncoder:
    return PhotoEncoder(*settings)


def picture(seed: int, width: int = 90, height: int = 70, **options: object) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 10, width // 10, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).save(data, "JPEG", **options)
    return data.getvalue()


def test_a_photo_has_the_vectors_of_its_crops(settings, encoder: PhotoEncoder) -> None:
    """Those that the two parts make one after the other, and all else that the segmenter found."""
    segmenter = Segmenter(settings[0], crop_size=SIZE)
    data = picture(0, exif=of_a_phone())
    (segmented,) = segmenter.segment([data])
    (encoded,) = encoder.encode([data])
    assert isinstance(segmented, SegmentedPhoto)
    assert isinstance(encoded, EncodedPhoto)
    expected = Encoder(settings[1]).encode_images(segmented.crops)
    assert encoded.vectors.dtype == np.float32
    np.testing.assert_allclose(encoded.vectors, expected, atol=1e-5)
    for name in {field.name for field in fields(segmented)} - {"crops"}:
        assert getattr(encoded, name) == getattr(segmented, name), name
    assert encoded.facts == SAID


def test_the_crops_are_cut_as_the_encoder_wants_them(settings, tmp_path: Path) -> None:
    squashing = tmp_path / "clip"
    CLIPVisionModelWithProjection.from_pretrained(
        settings[1].pretrained_model_name_or_path
    ).save_pretrained(squashing)
    (squashing / "preprocessor_config.json").write_text(
        '{"size": {"height": 32, "width": 32}, "do_center_crop": false}'
    )
    other = EncoderSettings(pretrained_model_name_or_path=str(squashing), device="cpu")
    for encoder, squash in ((settings[1], False), (other, True)):
        segmenter = PhotoEncoder(settings[0], encoder).segmenter
        assert (segmenter.crop_size, segmenter.squash) == (SIZE, squash)


def test_errors_are_those_of_their_photos_alone(encoder: PhotoEncoder, monkeypatch, caplog) -> None:
    """Of the first part, of the second, and mistakes of ours; over several batches."""
    tower = encoder.encoder.tower
    reddish = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(reddish, "PNG")

    def overflow(pixels: torch.Tensor) -> torch.Tensor:
        vectors = tower(pixels).clone()
        is_red = (pixels.float().mean((2, 3)) == torch.tensor([255.0, 0, 0])).all(1)
        vectors[is_red] = float("nan")
        return vectors

    decode = encoder.segmenter.decoder.decode

    def decode_or_fail(data: bytes) -> object:
        if data == b"a mistake":
            raise ValueError("a mistake of ours")
        return decode(data)

    monkeypatch.setattr(encoder.encoder, "tower", overflow)
    monkeypatch.setattr(encoder.segmenter.decoder, "decode", decode_or_fail)
    images = [picture(1), b"bad", reddish.getvalue(), picture(2), b"a mistake", picture(3)]
    with caplog.at_level(logging.CRITICAL):
        results = encoder.encode(images, [None, None, None, 2, None, 0.2])
    kinds = [type(result) for result in results]
    assert kinds == [EncodedPhoto, NotAnImage, InsetError, BadParameter, ValueError, EncodedPhoto]
    assert "no usable vector" in results[2].detail
    for number in (0, 5):
        (alone,) = encoder.encode([images[number]], [(None, 0.2)[number > 0]])
        assert results[number].chunks == alone.chunks
        np.testing.assert_allclose(results[number].vectors, alone.vectors, atol=1e-5)


def test_nothing_is_nothing(encoder: PhotoEncoder) -> None:
    assert encoder.encode([]) == []
