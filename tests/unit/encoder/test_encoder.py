"""The encoder against transformers' own CLIP: model, processor and tokenizer."""

import asyncio
import io
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from deployments.compute.crops import scale_crop
from deployments.compute.sketches import make_sketch
from deployments.decoding.image import decode
from deployments.encoder import encoder as encoder_module
from deployments.encoder.deployment import QueryEncoderDeployment
from deployments.encoder.encoder import Encoder
from deployments.encoder.files import CLIP_MEAN, CLIP_STD, find_encoder
from deployments.errors import (
    BadParameter,
    EncoderMismatch,
    InsetError,
    ModelUnavailable,
)
from deployments.limits import ImageLimits
from deployments.settings import EncoderSettings
from deployments.verification import Look

SIZE = 48


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny CLIP with both towers, random weights, in a folder."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    tower = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    config = CLIPConfig(
        text_config={
            **tower,
            "num_attention_heads": 2,
            "vocab_size": 600,
            "max_position_embeddings": 16,
            "bos_token_id": 512,
            "eos_token_id": 513,
            "pad_token_id": 513,
        },
        vision_config={**tower, "num_attention_heads": 2, "image_size": SIZE, "patch_size": 8},
        projection_dim=32,
    )
    CLIPModel(config).eval().save_pretrained(folder)
    letters = [chr(c) for c in range(256)]
    vocabulary = letters + [letter + "</w>" for letter in letters]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
    )
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(photos):
    """Real photos in odd sizes and shapes, as uint8 arrays."""
    chelsea = Image.open(photos / "chelsea.png").convert("RGB")
    sizes = [(451, 300), (300, 451), (97, 31), (48, 48), (49, 48), (5, 7), (640, 90), (1, 1)]
    return [np.array(chelsea.resize(size)) for size in sizes]


def test_preprocessing_equals_transformers(clip, pictures):
    encoder = Encoder(
        EncoderSettings(pretrained_model_name_or_path=str(clip), device="cpu", dtype="float32")
    )
    ours = encoder.tower.normalise(encoder.squares(pictures))
    processor = CLIPImageProcessorPil.from_pretrained(clip)
    theirs = torch.stack(
        [torch.as_tensor(processor(Image.fromarray(p))["pixel_values"][0]) for p in pictures]
    )
    levels = (ours - theirs) * torch.tensor(CLIP_STD).view(3, 1, 1) * 255
    assert ours.shape == (len(pictures), 3, SIZE, SIZE)
    assert levels.abs().max() <= 2.01
    assert levels.abs().mean() < 0.2


@pytest.fixture
def copy(clip, tmp_path):
    """The tiny CLIP, to be changed."""
    return Path(shutil.copytree(clip, tmp_path / "copy"))


SQUARE = {"height": SIZE, "width": SIZE}


@pytest.mark.parametrize("crop", [{"do_center_crop": False}, {"crop_size": SQUARE}])
def test_squashing_equals_transformers(copy, pictures, crop):
    """All of a picture, and the centre square of what is square already."""
    CLIPImageProcessorPil(size=SQUARE, **crop).save_pretrained(copy)
    encoder = Encoder(
        EncoderSettings(pretrained_model_name_or_path=str(copy), device="cpu", dtype="float32")
    )
    assert encoder.files.squash
    processor = CLIPImageProcessorPil.from_pretrained(copy)
    theirs = torch.stack(
        [torch.as_tensor(processor(Image.fromarray(p))["pixel_values"][0]) for p in pictures]
    )
    levels = (
        (encoder.tower.normalise(encoder.squares(pictures)) - theirs)
        * torch.tensor(CLIP_STD).view(3, 1, 1)
        * 255
    )
    assert levels.abs().max() <= 2.01
    assert levels.abs().mean() < 0.2


def deployed(settings):
    """The deployment of the encoder, as the graph binds it."""
    return QueryEncoderDeployment.func_or_class(settings, ImageLimits(), find_encoder(settings))


def test_a_query_is_squashed_as_its_crop_is(copy, photos):
    CLIPImageProcessorPil(size=SQUARE, do_center_crop=False).save_pretrained(copy)
    settings = EncoderSettings(pretrained_model_name_or_path=str(copy), device="cpu")
    encoder = deployed(settings)
    data, box = (photos / "chelsea.png").read_bytes(), (10, 0, 420, 99)
    pixels = torch.from_numpy(decode(data, ImageLimits()).pixels)
    crop, sketch = encoder._cut_query(data, box, False)
    assert sketch is None
    np.testing.assert_array_equal(crop, scale_crop(pixels, box, SIZE, squash=True))
    assert (crop != scale_crop(pixels, box, SIZE).numpy()).any()


BOX = (30, 20, 331, 240)
PART = (40, 31, 300, 220)


def changed(data, look):
    """What a look shows, as a picture of its own."""
    part = decode(data, ImageLimits()).pixels[PART[1] : PART[3], PART[0] : PART[2]]
    picture = Image.fromarray(part)
    if look.mirrored:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    buffer = io.BytesIO()
    picture.rotate(-90 * look.turned, expand=True).save(buffer, "PNG")
    return buffer.getvalue()


def test_looks_are_encoded_like_queries_of_what_they_show(clip, photos, batches_without_replicas):
    """Several in one batch, and more than a batch holds."""
    settings = EncoderSettings(
        pretrained_model_name_or_path=str(clip), device="cpu", dtype="float32", batch_size=3
    )
    encoder = deployed(settings)
    data = (photos / "chelsea.png").read_bytes()
    looks = [Look(PART, turned, mirrored) for turned in range(4) for mirrored in (False, True)]

    async def encode():
        vectors = await encoder.encode_looks(data, looks)
        alone = [await encoder.encode_query(changed(data, look), None, False) for look in looks]
        part = await encoder.encode_query(data, PART, False)
        return vectors, [one.vector for one in alone], part.vector

    vectors, alone, part = asyncio.run(encode())
    assert vectors.shape == (8, 32)
    np.testing.assert_allclose(vectors[0], part, atol=1e-5)
    np.testing.assert_allclose(vectors, alone, atol=1e-5)
    assert (np.abs(vectors[1:] - vectors[0]).max(1) > 1e-3).all()  # each is another


def test_a_sketch_is_made_of_the_box_if_it_is_asked_for(clip, photos, batches_without_replicas):
    encoder = deployed(EncoderSettings(pretrained_model_name_or_path=str(clip), device="cpu"))
    data = (photos / "chelsea.png").read_bytes()
    pixels = decode(data, ImageLimits()).pixels

    async def sketch(box, sketched):
        return (await encoder.encode_query(data, box, sketched)).sketch

    assert asyncio.run(sketch(None, False)) is None
    for box, expected in ((None, (0, 0, 451, 300)), ((30.5, 20.2, 330.1, 239.5), BOX)):
        made = asyncio.run(sketch(box, True))
        assert made.box == expected
        np.testing.assert_array_equal(made.pixels, make_sketch(pixels, expected).pixels)


@pytest.mark.parametrize(
    "preprocessing",
    [
        {},
        {"size": SIZE, "crop_size": SIZE},
        {"size": {"shortest_edge": SIZE}, "do_center_crop": True},
    ],
)
def test_the_centre_is_cut_out_unless_it_is_said(copy, preprocessing):
    (copy / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    assert not find_encoder(EncoderSettings(pretrained_model_name_or_path=str(copy))).squash
    (copy / "preprocessor_config.json").unlink()
    assert not find_encoder(EncoderSettings(pretrained_model_name_or_path=str(copy))).squash


@pytest.mark.parametrize(
    "preprocessing",
    [
        {"size": {"height": SIZE, "width": SIZE // 2}, "do_center_crop": False},
        {"size": {"height": SIZE + 1, "width": SIZE + 1}},
        {"size": {"shortest_edge": SIZE}, "do_center_crop": False},
        {"do_center_crop": False},
    ],
)
def test_pictures_scaled_in_another_way_are_refused(copy, preprocessing):
    (copy / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    with pytest.raises(ModelUnavailable, match="do_center_crop") as error:
        find_encoder(EncoderSettings(pretrained_model_name_or_path=str(copy)))
    assert json.dumps(preprocessing.get("size")) in str(error.value)
    assert f'{{"height": {SIZE}, "width": {SIZE}}}' in str(error.value)


def test_a_broken_preprocessor_config_is_refused(copy):
    (copy / "preprocessor_config.json").write_text("{")
    with pytest.raises(ModelUnavailable, match=r"preprocessor_config\.json can't be read"):
        find_encoder(EncoderSettings(pretrained_model_name_or_path=str(copy)))


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_image_embeddings_equal_transformers(clip, pictures, backend):
    encoder = Encoder(
        EncoderSettings(
            pretrained_model_name_or_path=str(clip),
            backend=backend,
            device="cpu",
            dtype="float32",
            batch_size=3,
        )
    )
    ours = encoder.encode_images(pictures)
    reference = CLIPModel.from_pretrained(clip).eval()
    processor = CLIPImageProcessorPil.from_pretrained(clip)
    with torch.inference_mode():
        pixel_values = torch.stack(
            [torch.as_tensor(processor(Image.fromarray(p))["pixel_values"][0]) for p in pictures]
        )
        theirs = reference.get_image_features(pixel_values=pixel_values)
    theirs = getattr(theirs, "pooler_output", theirs)
    theirs = torch.nn.functional.normalize(theirs, dim=-1).numpy()
    assert ours.dtype == np.float32
    assert ours.shape == (len(pictures), 32)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)
    assert (ours * theirs).sum(axis=1).min() > 0.9995


def test_the_result_does_not_depend_on_the_batch(clip, pictures):
    one_by_one = Encoder(
        EncoderSettings(
            pretrained_model_name_or_path=str(clip), device="cpu", dtype="float32", batch_size=1
        )
    )
    together = Encoder(
        EncoderSettings(
            pretrained_model_name_or_path=str(clip), device="cpu", dtype="float32", batch_size=32
        )
    )
    np.testing.assert_allclose(
        one_by_one.encode_images(pictures), together.encode_images(pictures), atol=1e-5
    )


@pytest.fixture
def faulty(clip, monkeypatch):
    """An encoder whose tower makes no usable vector of pictures that are quite white or black.

    So it is where numbers overflow in float16, or all become 0.
    """
    encoder = Encoder(
        EncoderSettings(pretrained_model_name_or_path=str(clip), device="cpu", dtype="float32")
    )
    tower = encoder.tower

    def overflow(pixels):
        vectors = tower(pixels).clone()
        vectors[pixels.float().mean((1, 2, 3)) == 255, 3] = float("inf")
        vectors[pixels.float().mean((1, 2, 3)) == 0] = 0
        return vectors

    monkeypatch.setattr(encoder, "tower", overflow)
    return encoder


WHITE, BLACK = (torch.full((1, SIZE, SIZE, 3), value, dtype=torch.uint8) for value in (255, 0))
GREY = torch.full((3, SIZE, SIZE, 3), 100, dtype=torch.uint8)


@pytest.mark.parametrize("bad", [WHITE, BLACK])
def test_a_vector_that_cannot_be_compared_is_its_photos_error_alone(faulty, caplog, bad):
    photos = [GREY, torch.cat([GREY, bad, bad]), GREY[:1]]
    good, error, other = faulty.encode_photos(photos)
    np.testing.assert_allclose(np.linalg.norm(good, axis=1), 1, atol=1e-5)
    assert (good.shape, other.shape) == ((3, 32), (1, 32))
    assert isinstance(error, InsetError)
    assert error.status == 500  # it is no fault of whoever sent the photo
    for part in ("2 of 5 pictures", "float32", "encoder.dtype"):
        assert part in error.detail
    assert caplog.messages == [error.detail]
    with pytest.raises(InsetError, match="1 of 1 pictures"):
        faulty.encode_images(bad)


def test_photos_are_encoded_as_their_crops_are(faulty):
    vectors = faulty.encode_photos([GREY, GREY[:2]])
    np.testing.assert_array_equal(
        np.concatenate(vectors), faulty.encode_images(torch.cat([GREY, GREY[:2]]))
    )
    assert faulty.encode_photos([]) == []


def test_texts_have_usable_vectors_or_an_error(faulty, monkeypatch):
    monkeypatch.setattr(encoder_module, "_normalised", lambda _: torch.full((2, 32), torch.nan))
    with pytest.raises(InsetError, match="2 of 2 texts"):
        faulty.encode_texts(["a cat", "a dog"])


def test_no_pictures_no_embeddings(clip):
    assert Encoder(
        EncoderSettings(pretrained_model_name_or_path=str(clip), device="cpu")
    ).encode_images([]).shape == (0, 32)


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_text_embeddings_equal_transformers(clip, backend):
    encoder = Encoder(
        EncoderSettings(
            pretrained_model_name_or_path=str(clip), backend=backend, device="cpu", dtype="float32"
        )
    )
    texts = ["a cat", "two motorcycles in a garage, and a very long sentence behind them"]
    ours = encoder.encode_texts(texts)
    tokenizer, model = CLIPTokenizer.from_pretrained(clip), CLIPModel.from_pretrained(clip).eval()
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=16, return_tensors="pt")
    with torch.inference_mode():
        theirs = model.get_text_features(**tokens)
    theirs = getattr(theirs, "pooler_output", theirs)
    theirs = torch.nn.functional.normalize(theirs, dim=-1).numpy()
    assert ours.shape == (2, 32)
    assert (ours * theirs).sum(axis=1).min() > 0.9999


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_vectors_stay_close_to_float32(clip, pictures, dtype):
    exact = Encoder(
        EncoderSettings(pretrained_model_name_or_path=str(clip), device="cpu", dtype="float32")
    ).encode_images(pictures)
    rounded = Encoder(
        EncoderSettings(pretrained_model_name_or_path=str(clip), device="cpu", dtype=dtype)
    ).encode_images(pictures)
    assert (exact * rounded).sum(axis=1).min() >= 0.998


def test_half_precision_at_the_size_of_vit_b_32(photos, tmp_path):
    """The depth and width people use, where rounding errors add up; weights are random."""
    torch.manual_seed(0)
    CLIPVisionModelWithProjection(CLIPVisionConfig(projection_dim=512)).save_pretrained(tmp_path)
    pictures = [
        np.array(Image.open(photos / name).convert("RGB"))
        for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
    ]
    exact = Encoder(
        EncoderSettings(pretrained_model_name_or_path=str(tmp_path), device="cpu", dtype="float32")
    ).encode_images(pictures)
    rounded = Encoder(
        EncoderSettings(pretrained_model_name_or_path=str(tmp_path), device="cpu", dtype="bfloat16")
    ).encode_images(pictures)
    assert (exact * rounded).sum(axis=1).min() >= 0.998


@pytest.mark.slow
def test_the_shipped_encoder_needs_no_hub_and_has_no_text_tower():
    encoder = Encoder(EncoderSettings(pretrained_model_name_or_path="models/compact", device="cpu"))
    assert encoder.files.identity.dimension == 256
    assert not encoder.files.has_text
    with pytest.raises(BadParameter, match="no text tower"):
        encoder.encode_texts(["a cat"])


def test_the_digest_tells_encoders_apart(clip, tmp_path):
    here = find_encoder(EncoderSettings(pretrained_model_name_or_path=str(clip))).identity
    assert here == find_encoder(EncoderSettings(pretrained_model_name_or_path=str(clip))).identity
    model = CLIPModel.from_pretrained(clip)
    model.visual_projection.weight.data[0, 0] += 1
    model.save_pretrained(tmp_path)
    there = find_encoder(EncoderSettings(pretrained_model_name_or_path=str(tmp_path))).identity
    assert here.dimension == there.dimension == 32
    assert here.digest != there.digest


@pytest.mark.parametrize("changed", ["weights", "statistics"])
def test_a_replica_that_finds_another_encoder_does_not_start(copy, changed):
    """Somebody replaced the files in between, or another node has others."""
    settings = EncoderSettings(pretrained_model_name_or_path=str(copy), device="cpu")
    found = find_encoder(settings)
    if changed == "weights":
        torch.manual_seed(1)
        CLIPModel(CLIPConfig.from_pretrained(copy)).save_pretrained(copy)
        part = f"identity.*{found.identity.digest}"
    else:
        file = copy / "preprocessor_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"image_mean": [0.5, 0.5, 0.5]}))
        part = r"mean is \(0.5, 0.5, 0.5\) instead of \(0.48"
    with pytest.raises(EncoderMismatch, match=f"not the one that the service .*{part}"):
        QueryEncoderDeployment.func_or_class(settings, ImageLimits(), found)


def test_a_text_tower_that_came_later_is_refused(copy):
    """It is loaded for the first text, when the files may be others."""
    encoder = Encoder(EncoderSettings(pretrained_model_name_or_path=str(copy), device="cpu"))
    torch.manual_seed(1)
    CLIPModel(CLIPConfig.from_pretrained(copy)).save_pretrained(copy)
    with pytest.raises(EncoderMismatch):
        encoder.encode_texts(["a cat"])


def test_the_same_encoder_may_lie_in_another_folder(clip, copy):
    here = find_encoder(EncoderSettings(pretrained_model_name_or_path=str(clip)))
    there = find_encoder(EncoderSettings(pretrained_model_name_or_path=str(copy)))
    there = replace(there, identity=replace(there.identity, name=here.identity.name))
    there.require_same_as(here)
    with pytest.raises(EncoderMismatch, match="revision is 1234 instead of None"):
        replace(there, revision="1234").require_same_as(here)


def test_a_model_that_cannot_be_had_is_one_sentence_soon(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    start = time.monotonic()
    with pytest.raises(ModelUnavailable) as error:
        find_encoder(EncoderSettings(pretrained_model_name_or_path="openai/no-such-clip"))
    assert time.monotonic() - start < 30
    assert "openai/no-such-clip" in str(error.value)
    assert "folder" in str(error.value)


def test_a_folder_that_is_no_clip_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelUnavailable, match="not a CLIP model"):
        find_encoder(EncoderSettings(pretrained_model_name_or_path=str(tmp_path)))


def test_statistics_default_to_openais(clip, tmp_path):
    CLIPModel.from_pretrained(clip).save_pretrained(tmp_path)
    encoder = Encoder(EncoderSettings(pretrained_model_name_or_path=str(tmp_path), device="cpu"))
    np.testing.assert_allclose(encoder.files.mean, CLIP_MEAN)
