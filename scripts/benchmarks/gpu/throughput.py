"""How many photos a second the stages of a pipeline take: each alone, and all at once."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.decoders import AHEAD, Batches, Decoders
from benchmarks.gpu.networks import make_detector, make_tower
from benchmarks.gpu.pipeline import Pipeline
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.speed import per_second
from deployments.segmenter.checkpoint import Checkpoint

Rows = list[dict[str, Any]]

OBJECTS = 6  # of a photo, on average
TRAINED_THRESHOLD = 0.1  # the service's, for trained weights


def decoding(
    decoders: Mapping[str, Decoders], device: torch.device, workers: int, seconds: float
) -> Rows:
    """Measure how many photos the cores decode while they have nothing else to do."""
    found = []
    for name, decoder in decoders.items():
        with closing(decoder.batches(device)) as batches:
            for _ in range(AHEAD):
                next(batches)
            began, count = time.perf_counter(), 0
            while time.perf_counter() - began < seconds:
                count += len(next(batches))
            rate = count / (time.perf_counter() - began)
        found.append(
            {"workers": name, "number": workers, "per_second": rate, "per_worker": rate / workers}
        )
    return found


def make_pipeline(
    sizes: Sizes,
    encoder: str,
    detector: Checkpoint,
    trained: bool,
    photos: Sequence[np.ndarray],
    device: torch.device,
    dtype: torch.dtype,
) -> Pipeline:
    """Return a pipeline that scales crops as on a GPU, whatever the device.

    Args:
        encoder: a name in `sizes.encoders`.
        trained: whether the detector is trained. Otherwise the threshold is such that it finds
            `OBJECTS` in a photo on average.
        photos: to choose the threshold by, uint8 `[height, width, 3]` each.
    """
    shape = sizes.encoders[encoder]
    pipeline = Pipeline(
        make_detector(detector, device, dtype),
        make_tower(shape, device, dtype),
        threshold=TRAINED_THRESHOLD,
        image_size=sizes.image_size,
        crop_size=shape.image_size,
        device=device,
        dtype=dtype,
        together_on={device.type},
    )
    if not trained:
        pipeline.threshold = choose_threshold(pipeline, photos, sizes.batch)
    return pipeline


@torch.inference_mode()
def choose_threshold(pipeline: Pipeline, photos: Sequence[np.ndarray], batch: int) -> float:
    """Return the confidence that `OBJECTS` detections of a photo exceed on average."""
    most = OBJECTS * len(photos) + 1
    highest = torch.zeros(most, device=pipeline.device)
    for start in range(0, len(photos), batch):
        some = pipeline.upload(photos[start : start + batch])
        for _, _, rows in pipeline.predict(some):
            confidences = (rows[..., 4:5] * rows[..., 5:]).amax(2).flatten()
            highest = torch.cat((highest, confidences)).topk(most).values
    return highest[-1].item()


@torch.inference_mode()
def stages(pipeline: Pipeline, batch: Sequence[np.ndarray], seconds: float) -> dict[str, float]:
    """Return the photos a second of each stage on the device, when nothing else runs there."""
    photos = pipeline.upload(batch)
    predictions = pipeline.predict(photos)
    boxes = pipeline.choose(predictions)
    crops = pipeline.cut(photos, boxes)
    alone = {
        "upload": lambda: pipeline.upload(batch),
        "canvases, detector": lambda: pipeline.predict(photos),
        "suppression, boxes": lambda: pipeline.choose(predictions),
        "crops": lambda: pipeline.cut(photos, boxes),
        "normalise, encoder": lambda: pipeline.encode(crops),
    }
    return {
        name: len(batch) * per_second(run, pipeline.device, seconds) for name, run in alone.items()
    }


def whole(pipeline: Pipeline, batches: Batches, seconds: float) -> dict[str, float]:
    """Run all stages for a while.

    Returns:
        Photos a second, chunks of a photo, and the CPU time of the driving thread, ms a photo.
    """
    with closing(pipeline.run(batches)) as results:
        for _ in range(AHEAD):
            next(results)
        began, cpu = time.perf_counter(), time.thread_time()
        photos = chunks = 0
        while time.perf_counter() - began < seconds:
            done = next(results)
            photos += len(done.photos)
            chunks += sum(map(len, done.boxes))
        took, cpu = time.perf_counter() - began, time.thread_time() - cpu
    return {
        "per_second": photos / took,
        "chunks": chunks / photos,
        "thread_ms": 1000 * cpu / photos,
    }


def pipelines(
    encoder: str,
    pipeline: Pipeline,
    decoders: Mapping[str, Decoders],
    decoded: Rows,
    batch: list[np.ndarray],
    seconds: float,
) -> Rows:
    """Measure the stages of a pipeline, then all of them with each kind of decoders.

    The stages on the GPU share it, so together they allow no more than the sum of their times. The
    bus and the cores work at the same time.

    Args:
        encoder: its name, for the rows.
        decoded: the rows of `decoding`.
        batch: decoded photos, uint8 `[height, width, 3]` each.
        seconds: how long each stage is measured; the pipeline four times as long.
    """
    alone = stages(pipeline, batch, seconds)
    on_gpu = 1 / sum(1 / rate for name, rate in alone.items() if name != "upload")
    found: Rows = [
        {"stage": f"decoding in {row['workers']}", "per_second": row["per_second"]}
        for row in decoded
    ]
    found += [{"stage": name, "per_second": rate} for name, rate in alone.items()]
    found.append({"stage": "the GPU's together", "per_second": on_gpu})
    done = whole(pipeline, itertools.repeat(batch), seconds)
    found.append({"stage": "all, photos decoded before", **done})
    for row in decoded:
        with closing(decoders[row["workers"]].batches(pipeline.device)) as batches:
            done = whole(pipeline, batches, 4 * seconds)
        rate = done["per_second"]
        found.append(
            {
                "stage": f"**all, decoding in {row['workers']}**",
                **done,
                "of_stage": rate / min(row["per_second"], *alone.values()),
                "of_bound": rate / min(row["per_second"], alone["upload"], on_gpu),
            }
        )
    return [{"encoder": encoder, **row} for row in found]
