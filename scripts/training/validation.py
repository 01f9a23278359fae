"""How well the network finds photos that it was not trained on."""

from __future__ import annotations

import torch

from deployments.compute.crops import scale_crop
from deployments.tiles import tile_boxes
from training.chance import Chance
from training.pairs import PairSettings, draw_pairs
from training.photos import Photos
from training.student import IMAGE_SIZE, Student, normalised

QUERIES = 3  # of each photo
AT_A_TIME = 2048  # crops


class Validation:
    """Photos that are not trained on, as they would be indexed, and queries from them.

    Args:
        photos: queries are made of each.
        distractors: photos that are indexed as well.
    """

    def __init__(self, photos: Photos, distractors: Photos) -> None:
        settings = PairSettings(IMAGE_SIZE)
        chance = Chance(7, photos.sizes.device)
        drawn = [draw_pairs(photos, settings, chance).queries for _ in range(QUERIES)]
        self.queries = torch.cat(drawn)
        self.answers = torch.arange(len(photos), device=self.queries.device).repeat(QUERIES)
        chunks = [
            chunks_of(some.pixels(number))
            for some in (photos, distractors)
            for number in range(len(some))
        ]
        self.chunks, self.counts = torch.cat(chunks), list(map(len, chunks))

    @torch.inference_mode()
    def recall(self, student: Student) -> dict[str, float]:
        """Return the shares of queries whose own photo came first, and among the first five."""
        queries = embed(student, self.queries)
        vectors = embed(student, self.chunks).split(self.counts)
        nearest = torch.stack([(queries @ of_photo.T).amax(1) for of_photo in vectors], dim=1)
        best = nearest.topk(min(5, len(vectors)), dim=1).indices == self.answers[:, None]
        return {
            "recall_at_1": best[:, 0].float().mean().item(),
            "recall_at_5": best.any(1).float().mean().item(),
        }


def embed(student: Student, crops: torch.Tensor) -> torch.Tensor:
    """Return the embeddings of uint8 `[n, 3, s, s]`."""
    return torch.cat([student(normalised(part)) for part in crops.split(AT_A_TIME)])


def chunks_of(photo: torch.Tensor) -> torch.Tensor:
    """Cut a photo's tiles and the whole of it, as the segmenter does: uint8 `[n, 3, s, s]`."""
    height, width = photo.shape[:2]
    boxes = [*tile_boxes(width, height, (2, 3), max_tiles=64, overlap=0.5), (0, 0, width, height)]
    crops = [scale_crop(photo, box, IMAGE_SIZE, squash=True) for box in boxes]
    return torch.stack(crops).permute(0, 3, 1, 2)
