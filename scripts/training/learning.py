"""How the network learns: which photos are in a batch, and what a step does."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from deployments.compute.device import resolve_dtype
from training.chance import Chance
from training.pairs import Pairs, PairSettings, draw_pairs
from training.photos import Photos
from training.student import IMAGE_SIZE, PATCHES_ON_SIDE, Student, normalised

# Of cosine similarities, so the temperature is at least 0.01, as CLIP's.
MAX_SCALE = 100


@dataclass(frozen=True)
class Recipe:
    """All that determines the result, except the photos and the kind of device.

    Attributes:
        steps: batches in all.
        batch: pairs in a batch, each of another photo.
        learning_rate: its maximum, from which it falls along a cosine to a fiftieth.
        warmup: steps in which it rises.
        weight_decay: AdamW's, of matrices only.
        label_smoothing: share of the certainty that is spread over all answers.
        whole_from: share of the steps after which all patches are used.
        average: most that the moving average of the weights keeps of itself in a step.
    """

    seed: int = 0
    steps: int = 3733
    batch: int = 2048
    learning_rate: float = 1.5e-3
    warmup: int = 150
    weight_decay: float = 0.1
    label_smoothing: float = 0.02
    whole_from: float = 0.85
    average: float = 0.999


class Batches:
    """The batch of each step, which follows from the recipe and the step alone.

    Raises:
        ValueError: there are fewer photos than a batch has.
    """

    def __init__(self, photos: Photos, recipe: Recipe) -> None:
        if len(photos) < recipe.batch:
            raise ValueError(f"{len(photos)} photos are too few for batches of {recipe.batch}.")
        self.photos = photos
        self.recipe = recipe
        self.settings = PairSettings(IMAGE_SIZE)

    def __getitem__(self, step: int) -> Pairs:
        numbers = torch.from_numpy(self.numbers(step)).to(self.photos.sizes.device)
        chance = Chance(_seed(self.recipe, step, of_pairs=True), numbers.device)
        return draw_pairs(self.photos.some(numbers), self.settings, chance)

    def numbers(self, step: int) -> np.ndarray:
        """Return the photos of a step. No photo comes twice in an epoch, nor in a batch."""
        steps = len(self.photos) // self.recipe.batch  # of an epoch
        epoch, place = divmod(step, steps)
        order = np.random.default_rng((self.recipe.seed, epoch)).permutation(len(self.photos))
        return order[place * self.recipe.batch : (place + 1) * self.recipe.batch]


class Training:
    """A student that learns batch by batch, and all that must be saved to continue later.

    Attributes:
        average: the moving average of the student's weights, which is what one gets in the end.
        step: number of batches that were learned.
        curve: how it went, see `scripts/train_encoder.py`.
    """

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)  # the initial weights
        self.recipe = recipe
        self.device = device
        self.student = Student().to(device)
        self.average = copy.deepcopy(self.student).eval().requires_grad_(False)
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

    def learn(self, pairs: Pairs) -> torch.Tensor:
        """Learn from a batch on the same device; return the loss, which is still there."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.recipe)
        pixels = normalised(torch.cat([pairs.chunks, pairs.queries, pairs.others]))
        bfloat16 = resolve_dtype("auto", self.device) == torch.bfloat16
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            embeddings = self.student(pixels, self._kept_patches(len(pixels)))
        chunks, queries, others = embeddings.chunk(3)
        loss = self._contrast(chunks, queries, others)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self._follow()
        self.step += 1
        return loss.detach()

    def _kept_patches(self, n: int) -> torch.Tensor | None:
        """Draw a half of each picture's patches; None for all of them, towards the end."""
        if self.step >= self.recipe.whole_from * self.recipe.steps:
            return None
        chance = Chance(_seed(self.recipe, self.step, of_pairs=False), self.device)
        return chance.orders(n, PATCHES_ON_SIDE**2)[:, : PATCHES_ON_SIDE**2 // 2]

    def _contrast(
        self, chunks: torch.Tensor, queries: torch.Tensor, others: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss of InfoNCE both ways: all parts of other photos are wrong answers."""
        scale = self.student.log_scale.exp().clamp(max=MAX_SCALE)
        n = len(queries)
        answers = torch.arange(n, device=self.device)
        # Another part of the same photo is neither right nor wrong.
        own = torch.eye(n, dtype=torch.bool, device=self.device)
        wrong = (queries @ others.T).masked_fill(own, -1)
        right = queries @ chunks.T
        smoothing = self.recipe.label_smoothing
        forward = functional.cross_entropy(
            scale * torch.cat([right, wrong], dim=1), answers, label_smoothing=smoothing
        )
        backward = functional.cross_entropy(scale * right.T, answers, label_smoothing=smoothing)
        return (forward + backward) / 2

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the average towards the student; quickly at first, when it is far away."""
        kept = min(self.recipe.average, (1 + self.step) / (10 + self.step))
        pairs = zip(self.average.parameters(), self.student.parameters(), strict=True)
        for average, current in pairs:
            average.lerp_(current, 1 - kept)

    def state(self) -> dict[str, Any]:
        """Return what `restore` continues from: tensors, numbers and strings only."""
        return {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "curve": self.curve,
            "student": self.student.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state of a training with the same recipe."""
        self.step, self.curve = state["step"], state["curve"]
        self.student.load_state_dict(state["student"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])


def learning_rate(step: int, recipe: Recipe) -> float:
    """Return the learning rate of a step: it rises linearly, and falls along a cosine."""
    rising = min(1, (step + 1) / recipe.warmup)
    falling = (1 + math.cos(math.pi * step / recipe.steps)) / 2
    return recipe.learning_rate * rising * (0.02 + 0.98 * falling)


def _seed(recipe: Recipe, step: int, *, of_pairs: bool) -> int:
    sequence = np.random.SeedSequence((recipe.seed, step, of_pairs))
    return int(sequence.generate_state(1, np.uint32)[0])
