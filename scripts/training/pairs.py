"""What the encoder is trained on: two overlapping windows of each photo, one of them distorted."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from training.chance import Chance
from training.photos import Photos
from training.wear import brightened, mirrored, recoloured, saturated, worn
from training.windows import cut, draw_anywhere, draw_tiles, draw_windows, jittered

# Photos whose pairs are drawn at a time: their canvases and samples take 2.5 GB.
AT_A_TIME = 512


@dataclass(frozen=True)
class PairSettings:
    """How hard the pairs are.

    Attributes:
        size: side of the encoder's input, pixels.
        sides: smallest and largest side of a query, as shares of the photo's.
        oblong: how much the shape of a query differs from the photo's, see `draw_windows`.
        tiled: share of the pairs whose chunk lies as a tile may lie. The chunk of the others is
            the query's window, with the inaccuracy of a detector.
        least_overlap: least intersection over union of a tile and the query.
        jitter: most that a corner of a detection moves, as a share of the detection's sides.
        recoloured: share of the pairs whose photo gets other colours.
        turned: share of the queries that are turned.
        degrees: most that they are turned, either way.
        mirrored: share of the queries that are mirrored.
        other_sides: smallest and largest side of the third window, as shares of the photo's.
    """

    size: int
    sides: tuple[float, float] = (0.12, 0.9)
    oblong: float = 0.3
    tiled: float = 0.6
    least_overlap: float = 0.3
    jitter: float = 0.13
    recoloured: float = 0.4
    turned: float = 0.3
    degrees: float = 22
    mirrored: float = 0.25
    other_sides: tuple[float, float] = (0.25, 0.7)


@dataclass(frozen=True)
class Pairs:
    """Parts of photos, uint8 `[n, 3, size, size]` each. The same number means the same photo.

    Attributes:
        chunks: as they are indexed.
        queries: which should find the chunks.
        others: anywhere in the photos, clean. They are wrong answers to the other photos' queries.
    """

    chunks: torch.Tensor
    queries: torch.Tensor
    others: torch.Tensor


def draw_pairs(photos: Photos, settings: PairSettings, chance: Chance) -> Pairs:
    """Draw a pair of each photo, on the photos' device."""
    numbers = torch.arange(len(photos), device=photos.sizes.device)
    drawn = [_draw_some(photos.some(part), settings, chance) for part in numbers.split(AT_A_TIME)]
    return Pairs(*(torch.cat(parts) for parts in zip(*drawn, strict=True)))


def _draw_some(
    photos: Photos, settings: PairSettings, chance: Chance
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    n, sizes = len(photos), photos.sizes
    windows = draw_windows(sizes, settings.sides, settings.oblong, chance)
    tiles = draw_tiles(windows, sizes, settings.least_overlap, chance)
    detections = jittered(windows, sizes, settings.jitter, chance)
    chunk_windows = torch.where(chance.happens(settings.tiled, n, 1), tiles, detections)
    turns = chance.uniform(-settings.degrees, settings.degrees, n)
    turns = torch.where(chance.happens(settings.turned, n), turns, 0)

    canvases = photos.canvases.float()
    queries = cut(canvases, windows, settings.size, turns)
    chunks = cut(canvases, chunk_windows, settings.size)
    other_windows = draw_anywhere(sizes, settings.other_sides, chance)
    others = cut(canvases, other_windows, settings.size)

    chunks, queries, others = recoloured((chunks, queries, others), settings.recoloured, chance)
    as_if_the_photo_were = chance.happens(0.5, n)
    chunks, queries = (mirrored(part, as_if_the_photo_were) for part in (chunks, queries))
    touched = chance.happens(0.3, n)
    chunks = brightened(chunks, torch.where(touched, chance.uniform(0.8, 1.25, n), 1))
    chunks = saturated(chunks, torch.where(touched, chance.uniform(0.7, 1.3, n), 1))
    queries = mirrored(queries, chance.happens(settings.mirrored, n))
    queries = worn(queries, windows[:, 2:] - windows[:, :2], chance)
    return _bytes(chunks), _bytes(queries), _bytes(others)


def _bytes(pictures: torch.Tensor) -> torch.Tensor:
    return pictures.clamp(0, 255).round().to(torch.uint8)
