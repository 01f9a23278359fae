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
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evaluation.encoders import IMAGENET_MEAN, IMAGENET_STD, load_efficientnet_lite0
from evaluation.training_pairs import PairSettings, WindowPair, draw_pair, load_photos
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import CLIPVisionConfig
from transformers import CLIPVisionModelWithProjection as CLIPVision

from deployments.compute.device import resolve_device, resolve_dtype
from deployments.compute.images import scale_crop
from deployments.encoder.files import CLIP_MEAN, CLIP_STD
from deployments.errors import ModelUnavailable
from deployments.files import replacing
from deployments.tiles import tile_boxes

IMAGE_SIZE = 112
PATCH_SIZE = 16
PATCHES_ON_SIDE = IMAGE_SIZE // PATCH_SIZE
TEACHER_FEATURES = 1280
# Of cosine similarities, so the temperature is at least 0.01, as CLIP's.
MAX_SCALE = 100

CONFIG = CLIPVisionConfig(
    hidden_size=192,
    intermediate_size=768,
    num_hidden_layers=6,
    num_attention_heads=3,
    image_size=IMAGE_SIZE,
    patch_size=PATCH_SIZE,
    projection_dim=256,
    hidden_act="gelu",
)


@dataclass(frozen=True)
class Recipe:
    """All that determines the result, except the photos.

    Attributes:
        steps: batches in all.
        batch: pairs in a batch, each of another photo.
        learning_rate: its maximum, from which it decays to zero along a cosine.
        warmup: steps until the maximum.
        weight_decay: AdamW's, of matrices only.
        whole_from: share of the steps after which no patch is left out.
        teacher_weight: of the loss for the teacher's features.
    """

    seed: int = 0
    steps: int = 1500
    batch: int = 128
    learning_rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.1
    whole_from: float = 0.9
    teacher_weight: float = 1.0


class Batches(Dataset):
    """The batch of each step, which follows from the recipe and the step alone."""

    def __init__(self, photos: list[np.ndarray], recipe: Recipe) -> None:
        self.photos = photos
        self.recipe = recipe
        self.pairs = PairSettings(IMAGE_SIZE)
        self._orders: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self.recipe.steps

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return chunks and their queries, uint8 `[batch, s, s, 3]` each."""
        random = np.random.default_rng((self.recipe.seed, step))
        order = [
            self._photo(number)
            for number in range(step * self.recipe.batch, (step + 1) * self.recipe.batch)
        ]
        drawn: list[WindowPair] = [
            draw_pair(self.photos[photo], self.pairs, random) for photo in order
        ]
        return (
            torch.from_numpy(np.stack([pair.chunk for pair in drawn])),
            torch.from_numpy(np.stack([pair.query for pair in drawn])),
        )

    def _photo(self, number: int) -> int:
        """Return a photo's number; every epoch has all photos, each in another order."""
        epoch, place = divmod(number, len(self.photos))
        if epoch not in self._orders:
            random = np.random.default_rng((self.recipe.seed, 1, epoch))
            self._orders = {epoch: random.permutation(len(self.photos))} | {
                e: order for e, order in self._orders.items() if e == epoch - 1
            }
        return int(self._orders[epoch][place])


class Student(nn.Module):
    """The encoder, and what only training needs: a temperature, and a prediction of the teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = CLIPVision(CONFIG)
        initialise(self.encoder)
        self.to_teacher = nn.Linear(CONFIG.hidden_size, TEACHER_FEATURES)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(
        self, pixels: torch.Tensor, kept_patches: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode pictures, each from a random part of its patches.

        Args:
            pixels: float32 `[n, 3, s, s]`, normalised.
            kept_patches: how many patches of each are used; None: all.

        Returns:
            Embeddings `[n, d]`, L2-normalised, and predictions of the teacher's features
            `[n, 1280]`.
        """
        vision = self.encoder.vision_model
        tokens = vision.embeddings(pixels)
        if kept_patches is not None:
            n, length, width = tokens.shape
            kept = torch.rand(n, length - 1).argsort(dim=1)[:, :kept_patches] + 1
            kept = kept.to(tokens.device).unsqueeze(-1).expand(-1, -1, width)
            tokens = torch.cat([tokens[:, :1], tokens.gather(1, kept)], dim=1)
        hidden = vision.encoder(inputs_embeds=vision.pre_layrnorm(tokens)).last_hidden_state
        pooled = vision.post_layernorm(hidden[:, 0])
        embeddings = self.encoder.visual_projection(pooled)
        return functional.normalize(embeddings.float(), dim=-1), self.to_teacher(pooled)


@torch.no_grad()
def initialise(encoder: CLIPVision) -> None:
    """Set the weights to what trained transformers have in common, as few photos don't teach it.

    Positions are sines and cosines in two dimensions. The products of query and key weights are
    near the identity, those of value and output weights near its negative (mimetic initialisation,
    Trockman and Kolter 2023, arXiv:2305.09828).
    """
    width, heads = CONFIG.hidden_size, CONFIG.num_attention_heads
    vision = encoder.vision_model
    side = PATCHES_ON_SIDE
    frequencies = 1 / 100 ** torch.linspace(0, 1, width // 4)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    waves = [
        wave(axis.flatten()[:, None] * frequencies)
        for axis in (x, y)
        for wave in (torch.sin, torch.cos)
    ]
    positions = vision.embeddings.position_embedding.weight
    positions.zero_()
    positions[1:] = 0.3 * torch.cat(waves, dim=1)
    vision.embeddings.class_embedding.normal_(std=0.02)

    size = width // heads
    for layer in vision.encoder.layers:
        attention = layer.self_attn
        for head in range(heads):
            rows = slice(head * size, (head + 1) * size)
            query, key = factors_near_identity(width, size, noise=0.7, identity=0.7)
            attention.q_proj.weight[rows], attention.k_proj.weight[rows] = query.T, key.T
        out, value = factors_near_identity(width, width, noise=0.4, identity=-0.4)
        attention.v_proj.weight.copy_(value.T)
        attention.out_proj.weight.copy_(out)
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
            linear.bias.zero_()


def factors_near_identity(
    width: int, rank: int, *, noise: float, identity: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the two `[width, rank]` whose product `a @ b.T` is nearest to noise plus identity.

    Args:
        noise: standard deviation of the noise, times the root of `width`.
        identity: factor of the identity.
    """
    matrix = noise * torch.randn(width, width) / width**0.5 + identity * torch.eye(width)
    u, s, v = torch.linalg.svd(matrix)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, v[:rank].T * root


def normalised(
    pixels: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]
) -> torch.Tensor:
    """Normalise uint8 `[n, s, s, 3]` to float32 `[n, 3, s, s]`.

    Args:
        mean, std: of each channel, on a scale of 0 to 1.
    """
    centre, spread = (torch.tensor(values, device=pixels.device) for values in (mean, std))
    return ((pixels.float() / 255 - centre) / spread).permute(0, 3, 1, 2).contiguous()


class Teacher:
    """EfficientNet-Lite0, trained on ImageNet: pooled features, centred and normalised."""

    def __init__(self, device: torch.device) -> None:
        self.network = load_efficientnet_lite0(device)
        self.centre: torch.Tensor | None = None

    @torch.no_grad()
    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return float32 `[n, 1280]` for uint8 `[n, s, s, 3]`.

        The mean over the first call's pictures is subtracted from all features.
        """
        inputs = normalised(pixels, IMAGENET_MEAN, IMAGENET_STD)
        pooled = self.network(inputs.to(memory_format=torch.channels_last))
        if self.centre is None:
            self.centre = pooled.mean(0)
        return functional.normalize(pooled - self.centre, dim=-1)


class Training:
    """A student that learns batch by batch, and all that must be saved to continue later."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.device = device
        self.student = Student().to(device)
        self.teacher = Teacher(device) if recipe.teacher_weight else None
        # Weight decay is for matrices: biases and gains are left alone.
        matrices = [p for p in self.student.parameters() if p.ndim > 1]
        others = [p for p in self.student.parameters() if p.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": recipe.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))
        self.step = 0
        self.curve: list[dict[str, float]] = []

    def learn(self, chunks: torch.Tensor, queries: torch.Tensor) -> tuple[float, float]:
        """Learn from one batch of `Batches`; return both losses, matching and teacher."""
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.step)  # which patches are left out
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.recipe)
        chunks, queries = chunks.to(self.device), queries.to(self.device)
        pixels = normalised(torch.cat([chunks, queries]), CLIP_MEAN, CLIP_STD)
        whole = self.step >= self.recipe.whole_from * self.recipe.steps
        patches = PATCHES_ON_SIDE**2
        bfloat16 = resolve_dtype("auto", self.device) == torch.bfloat16
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            embeddings, predicted = self.student(pixels, None if whole else patches // 2)
        chunk_embeddings, query_embeddings = embeddings.chunk(2)
        matching = self._contrast(query_embeddings, chunk_embeddings)
        unlikeness = self._unlikeness(predicted.float(), chunks)
        self.optimizer.zero_grad()
        (matching + self.recipe.teacher_weight * unlikeness).backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        return matching.item(), unlikeness.item()

    def _contrast(self, queries: torch.Tensor, chunks: torch.Tensor) -> torch.Tensor:
        """Return the loss of InfoNCE both ways: the other pairs of the batch are wrong answers."""
        scale = self.student.log_scale.exp().clamp(max=MAX_SCALE)
        similar = scale * queries @ chunks.T
        answers = torch.arange(len(queries), device=self.device)
        forward = functional.cross_entropy(similar, answers)
        backward = functional.cross_entropy(similar.T, answers)
        return (forward + backward) / 2

    def _unlikeness(self, predicted: torch.Tensor, chunks: torch.Tensor) -> torch.Tensor:
        """Return the mean cosine distance of both windows' predictions from the teacher's features.

        The features are those of the chunk for both.
        """
        if self.teacher is None:
            return predicted.new_zeros(())
        taught = len(chunks) // 4  # the teacher is slow
        wanted = self.teacher.features(chunks[:taught])
        both = torch.stack([of_window[:taught] for of_window in predicted.chunk(2)])
        return 1 - functional.cosine_similarity(both, wanted, dim=-1).mean()

    def state(self) -> dict[str, Any]:
        """Return what `restore` continues from: tensors, numbers and strings only."""
        return {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "curve": self.curve,
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "teacher_centre": self.teacher and self.teacher.centre,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state of a training with the same recipe."""
        self.step, self.curve = state["step"], state["curve"]
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.teacher is not None:
            self.teacher.centre = state["teacher_centre"]


def learning_rate(step: int, recipe: Recipe) -> float:
    """Return the learning rate of a step: it rises linearly, then falls along a cosine."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.learning_rate * (1 + math.cos(math.pi * done)) / 2


class Validation:
    """Photos that are not trained on, as they would be indexed, and queries from them.

    Args:
        photos: five queries are made of each.
        distractors: photos that are indexed as well.
    """

    def __init__(self, photos: list[np.ndarray], distractors: list[np.ndarray]) -> None:
        random = np.random.default_rng(7)
        settings = PairSettings(IMAGE_SIZE, recoloured=0.0)
        self.queries = np.stack(
            [draw_pair(photo, settings, random).query for photo in photos for _ in range(5)]
        )
        self.answers = torch.arange(len(photos)).repeat_interleave(5)
        self.chunks = [chunks_of(photo) for photo in [*photos, *distractors]]

    @torch.inference_mode()
    def recall(self, training: Training) -> float:
        """Return the share of queries whose own photo has the nearest chunk."""
        queries = self._embed(training, self.queries)
        nearest = torch.stack(
            [(queries @ self._embed(training, crops).T).amax(1) for crops in self.chunks], dim=1
        )
        return (nearest.argmax(1) == self.answers).float().mean().item()

    def _embed(self, training: Training, crops: np.ndarray) -> torch.Tensor:
        parts = torch.from_numpy(crops).to(training.device).split(256)
        return torch.cat(
            [training.student(normalised(part, CLIP_MEAN, CLIP_STD))[0].cpu() for part in parts]
        )


def chunks_of(photo: np.ndarray) -> np.ndarray:
    """Cut a photo's tiles and the whole of it, as the segmenter does: uint8 `[n, s, s, 3]`."""
    height, width = photo.shape[:2]
    boxes = [*tile_boxes(width, height, (2, 3), max_tiles=64), (0, 0, width, height)]
    pixels = torch.from_numpy(photo)
    return np.stack([scale_crop(pixels, box, IMAGE_SIZE, squash=True).numpy() for box in boxes])


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
            # An interruption leaves the checkpoint before.
            with replacing(checkpoint) as file:
                torch.save(training.state(), file)
            losses = []


def main() -> None:
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
    args = parser.parse_args()
    recipe = Recipe(
        seed=args.seed, steps=args.steps, batch=args.batch, teacher_weight=args.teacher_weight
    )
    try:
        training = Training(recipe, resolve_device(args.device))
    except (ModelUnavailable, ValueError) as error:
        sys.exit(str(error))
    if args.checkpoint.exists():
        state = torch.load(args.checkpoint, map_location=training.device, weights_only=True)
        if state["recipe"] != asdict(recipe):
            sys.exit(
                f"{args.checkpoint} is of another training ({state['recipe']}): name another "
                "--checkpoint, or remove it."
            )
        training.restore(state)
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
