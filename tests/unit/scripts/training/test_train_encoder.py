"""The training: that it learns, goes on where it was, and writes what the service loads."""

import contextlib
import json

import numpy as np
import pytest
import torch
from PIL import Image
from train_encoder import held_apart, main, save_encoder
from training.chance import Chance
from training.learning import Batches, Recipe, Training, learning_rate
from training.pairs import Pairs
from training.photos import SIDE, Photos, load_photos
from training.student import normalised
from training.validation import Validation, embed

from deployments.encoder.encoder import Encoder
from deployments.settings import EncoderSettings

RECIPE = Recipe(steps=6, batch=8, warmup=2)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of coarse noise."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for number, picture in enumerate(random.integers(0, 256, (12, 8, 12, 3), dtype=np.uint8)):
        image = Image.fromarray(picture).resize((160, 120), Image.Resampling.BICUBIC)
        image.save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def photos(folder) -> Photos:
    return load_photos([folder], CPU)


def learn(training, photos, steps):
    batches = Batches(photos, training.recipe)
    return [training.learn(batches[training.step]).item() for _ in range(steps)]


def test_photos_lie_on_canvases(tmp_path, capsys):
    wide = np.random.default_rng(0).integers(0, 256, (650, 1300, 3), dtype=np.uint8)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    photos = load_photos([tmp_path], CPU)
    assert photos.sizes.tolist() == [[SIDE, SIDE / 2]]
    assert f"{tmp_path / 'broken.jpg'} is left out" in capsys.readouterr().err
    scaled = Image.fromarray(wide)
    scaled.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(photos.pixels(0).numpy(), np.asarray(scaled))
    below = photos.canvases[0, :, SIDE // 2 :]
    assert torch.equal(below, photos.canvases[0, :, SIDE // 2 - 1, None].expand_as(below))
    (tmp_path / "wide.png").unlink()
    (tmp_path / "broken.jpg").unlink()
    with pytest.raises(SystemExit, match="no pictures in"):
        load_photos([tmp_path], CPU)


def test_photos_to_validate_with_are_not_trained_on(photos):
    held_out, others = held_apart(photos, 400)
    assert (len(held_out), len(others)) == (3, 9)
    assert torch.equal(torch.cat([held_out.canvases, others.canvases]), photos.canvases)


def test_each_photo_comes_once_in_an_epoch(photos):
    batches = Batches(photos, Recipe(batch=4))
    epochs = np.array([batches.numbers(step) for step in range(6)]).reshape(2, 12)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(12))
    assert epochs[0].tolist() != epochs[1].tolist()
    # What doesn't fill a batch is left for another epoch, so no photo is twice in a batch.
    batches = Batches(photos, Recipe(batch=5))
    for step in range(20):
        assert len(set(batches.numbers(step).tolist())) == 5


def test_a_batch_follows_from_the_seed_and_its_number(photos):
    def batch(step, **recipe):
        return Batches(photos, Recipe(batch=4, **recipe))[step].queries

    assert torch.equal(batch(3), batch(3))
    assert not torch.equal(batch(3), batch(2))
    assert not torch.equal(batch(3), batch(3, seed=1))


def test_it_goes_on_as_if_it_had_not_been_interrupted(photos, tmp_path):
    whole = Training(RECIPE, CPU)
    losses = learn(whole, photos, 4)
    first = Training(RECIPE, CPU)
    begun = learn(first, photos, 2)
    torch.save(first.state(), tmp_path / "state")
    second = Training(RECIPE, CPU)
    second.restore(torch.load(tmp_path / "state", weights_only=True))
    assert begun + learn(second, photos, 2) == pytest.approx(losses, rel=1e-3)
    for one, other in zip(whole.average.parameters(), second.average.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-4)


def test_it_learns(photos):
    recipe = Recipe(steps=30, batch=8, warmup=3)
    training, pairs = Training(recipe, CPU), Batches(photos, recipe)[0]
    losses = [training.learn(pairs).item() for _ in range(30)]
    assert np.mean(losses[-3:]) < 0.6 * losses[0]


def test_another_part_of_the_same_photo_is_no_wrong_answer():
    """Not even if it is the query itself; that of another photo is."""
    training = Training(Recipe(label_smoothing=0), CPU)
    eye = torch.eye(4)
    away = -eye
    with torch.no_grad():
        least = training._contrast(eye, eye, away).item()
        assert training._contrast(eye, eye, eye).item() == pytest.approx(least, abs=1e-4)
        assert training._contrast(eye, eye, eye.roll(1, 0)).item() > least + 0.1


def test_everything_stays_on_the_device(monkeypatch):
    """On the device `meta`, which computes nothing. As on a GPU, tensors of the CPU don't fit."""
    meta = torch.device("meta")

    def without_seed(chance, seed, device):
        chance.device, chance._generator = device, None

    monkeypatch.setattr(Chance, "__init__", without_seed)
    monkeypatch.setattr("training.wear.coarsened", lambda pictures, sides: pictures)  # it looks
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    canvases = torch.empty((8, 3, SIDE, SIDE), dtype=torch.uint8, device=meta)
    photos = Photos(canvases, torch.empty((8, 2), device=meta))
    training = Training(RECIPE, meta)
    pairs = Batches(photos, RECIPE)[0]
    for part in (pairs.chunks, pairs.queries, pairs.others, training.learn(pairs)):
        assert part.device == meta
    with pytest.raises(RuntimeError, match="meta"):
        training.learn(Pairs(pairs.chunks, pairs.queries, torch.zeros(8, 3, 112, 112)))


def test_the_average_follows_the_student(photos):
    training = Training(RECIPE, CPU)
    before = training.average.log_scale.item()
    with torch.no_grad():
        training.student.log_scale.fill_(before + 1)
    training._follow()  # at the first step it keeps a tenth
    assert training.average.log_scale.item() == pytest.approx(before + 0.9)
    training.step = 10**6
    with torch.no_grad():
        training.student.log_scale.fill_(before + 1.9)
    training._follow()
    assert training.average.log_scale.item() == pytest.approx(before + 0.9 + 0.001, abs=1e-5)


def test_the_learning_rate_rises_and_falls():
    rates = [learning_rate(step, Recipe(steps=100, warmup=10)) for step in range(100)]
    assert rates[0] < rates[5] < rates[9] > rates[50] > rates[99]
    assert max(rates) == rates[9]
    assert rates[99] == pytest.approx(Recipe.learning_rate / 50, rel=0.05)


def test_the_service_loads_what_it_writes(photos, tmp_path):
    training = Training(RECIPE, CPU)
    learn(training, photos, 1)
    save_encoder(training, tmp_path, photos=9, held_out=3)
    encoder = Encoder(
        EncoderSettings(pretrained_model_name_or_path=str(tmp_path), dtype="float32", device="cpu")
    )
    assert encoder.files.squash
    assert encoder.files.image_size == 112
    validation = Validation(*(photos.some(slice(start, start + 2)) for start in (0, 2)))
    with torch.inference_mode():
        expected = embed(training.average, validation.queries).numpy()
    vectors = encoder.encode_images(validation.queries.permute(0, 2, 3, 1).contiguous().numpy())
    assert vectors.shape == (6, 256)
    assert (vectors * expected).sum(1).min() > 0.999  # its weights are rounded to float16


def test_recall(photos):
    """Of an encoder that knows pictures by their mean colours; each is of one colour here."""
    colours = torch.linspace(0, 255, 16).view(16, 1, 1, 1).expand(-1, 3, SIDE, SIDE)
    plain = Photos(colours.to(torch.uint8), torch.full((16, 2), 200.0))
    validation = Validation(plain.some(slice(4)), plain.some(slice(4, None)))
    crops = validation.chunks.split(validation.counts)
    validation.queries = torch.cat([crops[number][:1] for number in (0, 1, 2, 15)])
    validation.answers = torch.tensor([0, 1, 3, 0])

    def student(pixels):
        level = pixels.mean((1, 2, 3))
        return torch.nn.functional.normalize(torch.stack([level, torch.ones_like(level)], 1))

    assert validation.recall(student) == {"recall_at_1": 0.5, "recall_at_5": 0.75}


def test_pixels_are_normalised_as_the_service_does(photos, tmp_path):
    training = Training(RECIPE, CPU)
    save_encoder(training, tmp_path, photos=9, held_out=3)
    encoder = Encoder(EncoderSettings(pretrained_model_name_or_path=str(tmp_path), device="cpu"))
    crops = photos.canvases[:2, :, :112, :112]
    images = crops.permute(0, 2, 3, 1).contiguous().numpy()
    expected = encoder.tower.normalise(encoder.squares(images))
    torch.testing.assert_close(normalised(crops), expected.float(), rtol=0, atol=0.02)


def test_the_command(folder, tmp_path, monkeypatch, capsys):
    def run(*arguments):
        command = ["train_encoder.py", str(folder), "--out", str(tmp_path / "out"), "--held-out=2"]
        command += ["--checkpoint", str(tmp_path / "checkpoint"), "--device=cpu"]
        monkeypatch.setattr("sys.argv", [*command, *arguments])
        main()

    run("--steps=3", "--batch=4", "--validate-every=2")
    history = json.loads((tmp_path / "out" / "training.json").read_text())
    assert [point["step"] for point in history["curve"]] == [2, 3]
    assert (history["photos"], history["held_out"]) == (10, 2)
    assert set(history["curve"][0]) == {"step", "loss", "recall_at_1", "recall_at_5"}
    assert "pair/s" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="is of another training"):
        run("--steps=4", "--batch=4")
    (tmp_path / "checkpoint").unlink()
    with pytest.raises(SystemExit, match="too few for batches of 64"):
        run("--steps=3", "--batch=64")


def test_an_interrupted_command_continues(folder, tmp_path, monkeypatch):
    def run(out):
        command = ["train_encoder.py", str(folder), "--out", str(tmp_path / out), "--held-out=2"]
        command += ["--checkpoint", str(tmp_path / f"{out}.checkpoint"), "--device=cpu"]
        command += ["--steps=4", "--batch=4", "--validate-every=2"]
        monkeypatch.setattr("sys.argv", command)
        main()

    run("whole")
    learn = Training.learn

    def interrupted(training, pairs):
        if training.step == 3:
            raise KeyboardInterrupt
        return learn(training, pairs)

    with monkeypatch.context() as patched:
        patched.setattr(Training, "learn", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run("parts")
    run("parts")
    whole, parts = (
        json.loads((tmp_path / out / "training.json").read_text())["curve"]
        for out in ("whole", "parts")
    )
    assert [point["step"] for point in parts] == [2, 4]
    assert [point["loss"] for point in parts] == pytest.approx(
        [point["loss"] for point in whole], rel=1e-2
    )
