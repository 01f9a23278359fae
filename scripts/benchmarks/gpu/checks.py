"""Check that a GPU computes the same as a CPU, which runs other code, before it is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.networks import make_detector, make_tower
from benchmarks.gpu.sizes import Sizes, make_photos
from deployments.chunk_index.exact import ExactEngine
from deployments.compute.crops import scale_crops
from deployments.decoding.image import decode
from deployments.limits import ImageLimits
from deployments.segmenter.checkpoint import Checkpoint
from deployments.segmenter.letterbox import lay_on_canvases, letterbox
from deployments.segmenter.suppression import select
from deployments.tiles import tile_boxes

Rows = list[dict[str, Any]]

CPU = torch.device("cpu")


@torch.inference_mode()
def checks(sizes: Sizes, detector: Checkpoint, device: torch.device, dtype: torch.dtype) -> Rows:
    """Compare what the device computes in a number format with a CPU's float32.

    Returns:
        A row for each check: `what`, its `value`, the `limit`, and whether it is `fine`.
    """
    return [
        *_check_photos(sizes, device),
        *_check_suppression(device),
        *_check_networks(sizes, detector, device, dtype),
        *_check_search(device),
    ]


def _check_photos(sizes: Sizes, device: torch.device) -> Rows:
    width, height = sizes.photo
    pixels = [decode(photo, ImageLimits()).pixels for photo in make_photos(sizes.photo, 2)]
    photos = [torch.from_numpy(photo) for photo in pixels]
    moved = [photo.to(device) for photo in photos]
    boxes = [np.array([*tile_boxes(width, height, (3,), 64, 0.3), (0, 0, width, height)])] * 2
    size = next(iter(sizes.encoders.values())).image_size
    # Once as on a GPU, whatever the device, and once one crop at a time.
    actual = scale_crops(moved, boxes, size, squash=True, together_on={device.type})
    expected = scale_crops(photos, boxes, size, squash=True, together_on=())
    crops = _levels(torch.cat(actual), torch.cat(expected))
    places = [letterbox(height, width, sizes.image_size * 3 // 4, 32)] * 2
    canvases = _levels(lay_on_canvases(moved, places, device), lay_on_canvases(photos, places, CPU))
    return [
        _check("crops: values that differ by a grey level", (crops >= 1).mean(), 0.1),
        _check("crops: by two", (crops >= 2).mean(), 0.001),
        _check("crops: by more", (crops >= 3).mean(), 0),
        _check("canvases: values that differ by a grey level", (canvases >= 1).mean(), 0.02),
        _check("canvases: by more", (canvases >= 2).mean(), 0),
    ]


def _check_suppression(device: torch.device) -> Rows:
    predictions = torch.rand(6, 3000, 85, generator=torch.Generator().manual_seed(0))
    predictions[..., :4] *= 600
    thresholds = [0.9, 0.8, 0.7, 0.6, 0.95, 1]
    pairs = zip(
        select(predictions.to(device), thresholds, 0.45),
        select(predictions, thresholds, 0.45),
        strict=True,
    )
    unlike = sum(not np.array_equal(one, other) for one, other in pairs)
    return [_check("suppression: photos with other boxes", unlike, 0)]


def _check_networks(
    sizes: Sizes, detector: Checkpoint, device: torch.device, dtype: torch.dtype
) -> Rows:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 3, 96, 128), dtype=torch.uint8, generator=generator)
    shape = next(iter(sizes.encoders.values()))
    values = torch.randn(8, 3, shape.image_size, shape.image_size, generator=generator)
    objectness, vectors = [], []
    for where, kind in ((device, dtype), (CPU, torch.float32)):
        found = make_detector(detector, where, kind)(pixels.to(where))
        objectness.append(found[..., 4].cpu())
        vectors.append(make_tower(shape, where, kind)(values.to(where, kind)).float().cpu())
    on_device, on_cpu = vectors
    cosines = torch.nn.functional.cosine_similarity(on_device, on_cpu)
    return [
        _check("detector: greatest difference of an objectness", _farthest(objectness), 0.05),
        _check("encoder: greatest cosine distance", 1 - cosines.min(), 0.01),
    ]


def _check_search(device: torch.device) -> Rows:
    """Compare searches in vectors that came one photo after the other."""
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(3000, 4, 64))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    queries = vectors[::50, 0].astype(np.float32)
    allowed = generator.random(len(vectors)) < 0.3
    answers = []
    for where in (device.type, "cpu"):
        engine = ExactEngine(vectors.shape[-1], device=where)
        for photo in vectors.astype(np.float16):
            engine.append(photo)
        answers.append(engine.search(queries, 10, None) + engine.search(queries, 10, allowed))
    unlike = sum(
        not np.array_equal(one.photos, other.photos) for one, other in zip(*answers, strict=True)
    )
    return [_check("search: queries that find other photos", unlike, 0)]


def _levels(one: torch.Tensor, other: torch.Tensor) -> np.ndarray:
    return (one.cpu().int() - other.int()).abs().numpy()


def _farthest(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return (tensors[0] - tensors[1]).abs().max()


def _check(what: str, value: Any, limit: float) -> dict[str, Any]:
    value = float(value)
    return {"what": what, "value": value, "limit": limit, "fine": value <= limit}
