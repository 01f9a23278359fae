"""How the network learns: batches, the teacher, and the steps."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from evaluation.encoders import IMAGENET_MEAN, IMAGENET_STD, load_efficientnet_lite0
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

from deployments.compute.device import resolve_dtype
from deployments.encoder.files import CLIP_MEAN, CLIP_STD
from training.pairs import PairSettings, WindowPair, draw_pair
from training.student import IMAGE_SIZE, PATCHES_ON_SIDE, Student, normalised

# Of cosine similarities, so the temperature is at least 0.01, as CLIP's.
MAX_SCALE = 100


@dataclass(frozen=True)
class Recipe:
    """All that determines the result, except the photos.

    Attributes:
        steps: batches in all.
        batch: pairs in a batch, each of another photo.
        learning_rate: its maximum, from which it decays to zero along a cosine.
        warmup: steps until the maximum.
        weight_decay: AdamW's, of matrices only.
        whole_from: share of the steps after which all patches are used.
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
