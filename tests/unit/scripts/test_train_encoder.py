"""The training: that it learns, goes on where it was, and writes what the service loads."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from train_encoder import main, save_encoder
from training.learning import Batches, Recipe, Training, learning_rate
from training.validation import Validation

from deployments.encoder.encoder import Encoder
from deployments.settings import EncoderSettings

RECIPE = Recipe(steps=6, batch=8, warmup=2, teacher_weight=0)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photos():
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (12, 8, 12, 3), dtype=np.uint8)
    return [
        np.asarray(Image.fromarray(picture).resize((160, 120), Image.Resampling.BICUBIC))
        for picture in coarse
    ]


def learn(training, photos, steps):
    batches = Batches(photos, training.recipe)
    return [training.learn(*batches[training.step])[0] for _ in range(steps)]


def test_each_photo_comes_equally_often(photos):
    batches = Batches(photos, RECIPE)
    order = [batches._photo(number) for number in range(48)]
    assert np.bincount(order).tolist() == [4] * 12
    assert order[:12] != order[12:24]


def test_it_goes_on_as_if_it_had_not_been_interrupted(photos):
    whole = Training(RECIPE, CPU)
    losses = learn(whole, photos, 4)
    first = Training(RECIPE, CPU)
    begun = learn(first, photos, 2)
    second = Training(RECIPE, CPU)
    second.restore(first.state())
    assert begun + learn(second, photos, 2) == pytest.approx(losses, rel=1e-3)


def test_it_learns(photos):
    recipe = Recipe(steps=30, batch=8, warmup=3, teacher_weight=0)
    training, batch = Training(recipe, CPU), Batches(photos, recipe)[0]
    losses = [training.learn(*batch)[0] for _ in range(30)]
    assert np.mean(losses[-3:]) < 0.5 * losses[0]


def test_the_learning_rate_rises_and_falls():
    rates = [learning_rate(step, Recipe(steps=100, warmup=10)) for step in range(100)]
    assert max(rates) == rates[9] == rates[10] == Recipe.learning_rate
    assert rates[0] < rates[5] < rates[9] > rates[50] > rates[99]
    assert rates[99] < 1e-6


def test_the_service_loads_what_it_writes(photos, tmp_path):
    training = Training(RECIPE, CPU)
    save_encoder(training, tmp_path)
    encoder = Encoder(
        EncoderSettings(pretrained_model_name_or_path=str(tmp_path), dtype="float32", device="cpu")
    )
    assert encoder.files.squash
    assert encoder.files.image_size == 112
    validation = Validation(photos[:2], photos[2:4])
    with torch.inference_mode():
        expected = validation._embed(training, validation.queries).numpy()
    vectors = encoder.encode_images(validation.queries)
    assert vectors.shape == (10, 256)
    assert (vectors * expected).sum(1).min() > 0.999  # its weights are rounded to float16
    assert 0 <= validation.recall(training) <= 1


def test_the_command(photos, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, photo in enumerate(photos):
        Image.fromarray(photo).save(folder / f"{number}.png")

    def run(*arguments):
        command = ["train_encoder.py", str(folder), "--out", str(tmp_path / "out"), "--held-out=2"]
        command += ["--checkpoint", str(tmp_path / "checkpoint"), "--teacher-weight=0"]
        monkeypatch.setattr("sys.argv", [*command, "--workers=0", *arguments])
        main()

    run("--steps=3", "--batch=4", "--validate-every=2")
    history = json.loads((tmp_path / "out" / "training.json").read_text())
    assert [point["step"] for point in history["curve"]] == [2, 3]
    with pytest.raises(SystemExit, match="is of another training"):
        run("--steps=4", "--batch=4")
    (tmp_path / "checkpoint").unlink()
    with pytest.raises(SystemExit, match="too few for batches of 64"):
        run("--steps=3", "--batch=64")
