"""Train the compact encoder: a small CLIP image tower that finds a picture in the photo it is from.

    scripts/train_encoder.py PHOTOS [PHOTOS ...] --out models/mine

The network is trained on the task itself. Two overlapping windows are cut from each photo: one as a
chunk is indexed; one as a query comes in, scaled, turned, recoloured, framed, partly covered and
recompressed. The network learns that these two belong together, and that parts of other photos
don't (InfoNCE, van den Oord et al. 2018, arXiv:1807.03748); a third window of each photo is one
more wrong answer to the others' queries. What one gets is the moving average of its weights.

Three things keep the network from memorising the photos: the colours of all windows of a photo are
changed, in the same way; half of the patches are left out at random, except at the end (Li et al.
2023, arXiv:2212.00794), which also halves the time; and weight decay.

All photos lie in the memory of the device, 0.44 MB each, and everything is computed there. With the
defaults, 12,000 photos and one H200, it takes eight minutes; a smaller GPU wants a smaller
--batch. On a CPU it is the same, but takes days: for fewer --steps and a smaller --batch.

Every batch follows from the seed and its number. So a training that was interrupted continues from
its last checkpoint as if nothing had happened.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from common.options import positive
from tqdm import tqdm
from training.learning import Batches, Recipe, Training
from training.photos import Photos, load_photos
from training.student import CONFIG, IMAGE_SIZE
from training.validation import Validation
from transformers import CLIPVisionModelWithProjection as CLIPVision

from deployments.compute.device import resolve_device
from deployments.encoder.files import CLIP_MEAN, CLIP_STD
from deployments.files import replacing

SHOWN_EVERY = 20  # steps; asking a GPU for the loss makes it wait


def train(
    training: Training,
    batches: Batches,
    validation: Validation,
    checkpoint: Path,
    *,
    validate_every: int,
) -> None:
    """Train until the recipe's last step; save a checkpoint after each validation.

    Args:
        checkpoint: file, replaced as a whole.
        validate_every: steps.
    """
    recipe = training.recipe
    losses: list[torch.Tensor] = []
    with tqdm(
        initial=training.step * recipe.batch,
        total=recipe.steps * recipe.batch,
        unit="pair",
        unit_scale=True,
    ) as bar:
        while training.step < recipe.steps:
            losses.append(training.learn(batches[training.step]))
            bar.update(recipe.batch)
            if training.step % SHOWN_EVERY == 0:
                bar.set_postfix({"loss": f"{mean(losses[-SHOWN_EVERY:]):.3f}"}, refresh=False)
            if training.step % validate_every == 0 or training.step == recipe.steps:
                point = {"step": training.step, "loss": mean(losses)}
                point |= validation.recall(training.average)
                training.curve.append({key: round(value, 4) for key, value in point.items()})
                bar.write(json.dumps(training.curve[-1]))
                # An interruption keeps the last checkpoint.
                with replacing(checkpoint) as file:
                    torch.save(training.state(), file)
                losses = []


def mean(losses: list[torch.Tensor]) -> float:
    return torch.stack(losses).mean().item()


def save_encoder(training: Training, folder: Path, photos: int, held_out: int) -> None:
    """Write the encoder in the format of transformers, in float16, and how it was trained.

    Args:
        photos: how many it was trained on.
        held_out: how many it was validated with.
    """
    encoder = CLIPVision(copy.deepcopy(CONFIG))  # saving an encoder changes its configuration
    encoder.load_state_dict(training.average.encoder.state_dict())
    encoder.half().save_pretrained(folder)
    preprocessing = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "resample": 3,
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    }
    history = {
        "recipe": asdict(training.recipe),
        "photos": photos,
        "held_out": held_out,
        "curve": training.curve,
    }
    for name, content in (("preprocessor_config", preprocessing), ("training", history)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", nargs="+", type=Path, help="folders of photos, with all below")
    parser.add_argument("--out", type=Path, required=True, help="folder for the encoder")
    parser.add_argument("--checkpoint", type=Path, default=Path("training.checkpoint"))
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--steps", type=positive, default=Recipe.steps, help="(%(default)s)")
    parser.add_argument(
        "--batch", type=positive, default=Recipe.batch, help="pairs in a step (%(default)s)"
    )
    parser.add_argument(
        "--held-out",
        type=positive,
        default=400,
        help="photos to validate with, at most a quarter of all (%(default)s)",
    )
    parser.add_argument("--validate-every", type=positive, default=500, metavar="STEPS")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:n")
    return parser


def restore_checkpoint(training: Training, file: Path) -> None:
    """Continue from a checkpoint.

    Raises:
        SystemExit: it is of a training with another recipe.
    """
    state = torch.load(file, map_location=training.device, weights_only=True)
    if state["recipe"] != asdict(training.recipe):
        sys.exit(
            f"{file} is of another training ({state['recipe']}): name another --checkpoint, or "
            "remove it."
        )
    training.restore(state)


def held_apart(photos: Photos, count: int) -> tuple[Photos, Photos]:
    """Return the photos to validate with, and the others."""
    count = min(count, len(photos) // 4)
    return photos.some(slice(count)), photos.some(slice(count, None))


def main() -> None:
    args = make_parser().parse_args()
    recipe = Recipe(seed=args.seed, steps=args.steps, batch=args.batch)
    try:
        device = resolve_device(args.device)
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        training = Training(recipe, device)
        if args.checkpoint.exists():
            restore_checkpoint(training, args.checkpoint)
        held_out, photos = held_apart(load_photos(args.photos, device), args.held_out)
        batches = Batches(photos, recipe)
    except ValueError as error:
        sys.exit(str(error))
    validation = Validation(held_out, distractors=photos.some(slice(len(held_out))))
    train(training, batches, validation, args.checkpoint, validate_every=args.validate_every)
    save_encoder(training, args.out, len(photos), len(held_out))


if __name__ == "__main__":
    main()
