"""How well the network finds photos that it was not trained on."""

from __future__ import annotations

import numpy as np
import torch

from deployments.compute.images import scale_crop
from deployments.encoder.files import CLIP_MEAN, CLIP_STD
from deployments.tiles import tile_boxes
from training.learning import Training
from training.pairs import PairSettings, draw_pair
from training.student import IMAGE_SIZE, normalised


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
