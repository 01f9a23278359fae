"""Train the compact encoder: a small CLIP image tower that finds a picture in the photo it is from.

    scripts/train_encoder.py PHOTOS [PHOTOS ...] --out models/compact

The network is trained on the task itself. Two overlapping windows are cut from each photo: one as a
chunk is indexed; one as a query comes in, moved, scaled, turned, recoloured and recompressed. The
network learns that these two belong together, and that those of other photos don't (InfoNCE, van
den Oord et al. 2018, arXiv:1807.03748). It also learns to predict the features of a frozen
EfficientNet-Lite0, which was trained on a million photos.

Three things keep the network from memorising the photos: the colours of both windows of a pair are
changed, in the same way; half of the patches are left out at random, except at the end (Li et al.
2023, arXiv:2212.00794), which also halves the time; and weight decay.

Every batch follows from the seed and its number. So a training that was interrupted continues from
its last checkpoint with the same result. Needs `pip install -e '.[train]'`.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm
from training.learning import Batches, Recipe, Training
from training.pairs import load_photos
from training.student import CONFIG, IMAGE_SIZE
from training.validation import Validation
from transformers import CLIPVisionModelWithProjection as CLIPVision

from deployments.compute.device import resolve_device
from deployments.encoder.files import CLIP_MEAN, CLIP_STD
from deployments.errors import ModelUnavailable
from deployments.files import replacing


def train(
    training: Training,
    photos: list[np.ndarray],
    validation: Validation,
    checkpoint: Path,
    *,
    validate_every: int,
    workers: int,
) -> None:
    """Train until the recipe's last step; save a checkpoint after each validation.

    Args:
        checkpoint: file, replaced as a whole.
        validate_every: steps.
        workers: processes that make pairs.
    """
    batches = DataLoader(
        Batches(photos, training.recipe),
        batch_size=None,
        sampler=range(training.step, training.recipe.steps),
        num_workers=workers,
    )
    bar = tqdm(batches, initial=training.step, total=training.recipe.steps, unit="batch")
    losses = []
    for batch in bar:
        losses.append(training.learn(*batch))
        matching, teacher = np.mean(losses[-20:], axis=0)
        bar.set_postfix({"matching": f"{matching:.3f}", "teacher": f"{teacher:.3f}"}, refresh=False)
        if training.step % validate_every == 0 or training.step == training.recipe.steps:
            matching, teacher = np.mean(losses, axis=0).tolist()
            point = {"step": training.step, "matching": matching, "teacher": teacher}
            point["recall_at_1"] = validation.recall(training)
            training.curve.append({key: round(value, 4) for key, value in point.items()})
            bar.write(json.dumps(training.curve[-1]))
            # An interruption keeps the last checkpoint.
            with replacing(checkpoint) as file:
                torch.save(training.state(), file)
            losses = []


def save_encoder(training: Training, folder: Path) -> None:
    """Write the encoder in the format of transformers, in float16, and how it was trained."""
    encoder = CLIPVision(copy.deepcopy(CONFIG))  # saving an encoder changes its configuration
    encoder.load_state_dict(training.student.encoder.state_dict())
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
    history = {"recipe": asdict(training.recipe), "curve": training.curve}
    for name, content in (("preprocessor_config", preprocessing), ("training", history)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", nargs="+", type=Path, help="folders of photos, with all below")
    parser.add_argument("--out", type=Path, required=True, help="folder for the encoder")
    parser.add_argument("--checkpoint", type=Path, default=Path("training.checkpoint"))
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--batch", type=int, default=Recipe.batch)
    parser.add_argument("--teacher-weight", type=float, default=Recipe.teacher_weight)
    parser.add_argument("--held-out", type=int, default=100, help="photos to validate with")
    parser.add_argument("--validate-every", type=int, default=200, metavar="STEPS")
    parser.add_argument("--workers", type=int, default=1, help="processes that make pairs")
    parser.add_argument("--device", default="auto")
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


def main() -> None:
    args = make_parser().parse_args()
    recipe = Recipe(
        seed=args.seed, steps=args.steps, batch=args.batch, teacher_weight=args.teacher_weight
    )
    try:
        training = Training(recipe, resolve_device(args.device))
    except (ModelUnavailable, ValueError) as error:
        sys.exit(str(error))
    if args.checkpoint.exists():
        restore_checkpoint(training, args.checkpoint)
    photos = load_photos(args.photos)
    order = np.random.default_rng(0).permutation(len(photos))
    held_out = [photos[number] for number in order[: args.held_out]]
    photos = [photos[number] for number in order[args.held_out :]]
    if len(photos) < recipe.batch:
        sys.exit(f"{len(photos)} photos are too few for batches of {recipe.batch}.")
    validation = Validation(held_out, photos[: args.held_out // 2])
    train(
        training,
        photos,
        validation,
        args.checkpoint,
        validate_every=args.validate_every,
        workers=args.workers,
    )
    save_encoder(training, args.out)


if __name__ == "__main__":
    main()
