"""How many photos a second the photo encoder takes: each of its stages alone, and all together."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.gpu.decoders import AHEAD, Decoders
from benchmarks.gpu.networks import make_detector, write_checkpoint, write_tower
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.speed import per_second
from deployments.compute.device import upload
from deployments.segmenter.checkpoint import Checkpoint
from deployments.segmenter.letterbox import lay_on_canvases, square_letterbox

if TYPE_CHECKING:
    from deployments.photo_encoder.photo_encoder import PhotoEncoder

Rows = list[dict[str, Any]]

OBJECTS = 6  # of a photo, on average
TRAINED_THRESHOLD = 0.1  # the service's, for trained weights
CROPS = 32  # of a photo, at most, in one pass of the encoder


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


def make_photo_encoder(
    folder: Path,
    sizes: Sizes,
    encoder: str,
    detector: Checkpoint,
    threshold: float,
    device: torch.device,
    dtype: str,
) -> PhotoEncoder:
    """Return the service's own way from bytes to vectors, with an encoder of random weights.

    Args:
        folder: gets the files of the networks.
        encoder: a name in `sizes.encoders`.
        threshold: the confidence that a detection must exceed.
    """
    from deployments.photo_encoder.photo_encoder import PhotoEncoder
    from deployments.settings import EncoderSettings, SegmenterSettings

    place: dict[str, Any] = {"device": device.type, "dtype": dtype}
    write_checkpoint(detector, folder / "detector.pt")
    write_tower(sizes.encoders[encoder], folder / "encoder")
    return PhotoEncoder(
        SegmenterSettings(
            model_name_or_path=str(folder / "detector.pt"),
            image_size=sizes.image_size,
            confidence_threshold=threshold,
            batch_size=sizes.batch,
            **place,
        ),
        EncoderSettings(
            pretrained_model_name_or_path=str(folder / "encoder"),
            batch_size=sizes.batch * CROPS,
            **place,
        ),
    )


@torch.inference_mode()
def choose_threshold(
    detector: Checkpoint, photos: Sequence[np.ndarray], sizes: Sizes, device: torch.device
) -> float:
    """Return the confidence that `OBJECTS` detections of a photo exceed on average.

    Args:
        photos: uint8 `[height, width, 3]` each.
    """
    network = make_detector(detector, device, torch.float32)
    most = OBJECTS * len(photos) + 1
    highest = torch.zeros(most, device=device)
    for photo in photos:
        height, width, _ = photo.shape
        place = square_letterbox(height, width, sizes.image_size, network.stride)
        canvas = lay_on_canvases([upload(photo, device)], [place], device)
        rows = network(canvas.permute(0, 3, 1, 2))
        confidences = (rows[..., 4:5] * rows[..., 5:]).amax(2).flatten()
        highest = torch.cat((highest, confidences)).topk(most).values
    return highest[-1].item()


@torch.inference_mode()
def stages(made: PhotoEncoder, batch: Sequence[np.ndarray], seconds: float) -> dict[str, float]:
    """Return the photos a second of each stage, when nothing else runs on the device.

    Args:
        batch: decoded photos, uint8 `[height, width, 3]` each.
    """
    segmenter = made.segmenter
    device = segmenter.placement.device
    thresholds = [segmenter.settings.confidence_threshold] * len(batch)
    photos = [upload(photo, device) for photo in batch]
    found = segmenter.detector.detect(photos, thresholds)
    crops = [of_photo for _, of_photo in segmenter.cut(photos, found)]
    alone = {
        "upload": lambda: [upload(photo, device) for photo in batch],
        "canvases, detector, suppression": lambda: segmenter.detector.detect(photos, thresholds),
        "chunks, crops": lambda: segmenter.cut(photos, found),
        "encoder": lambda: made.encoder.encode_photos(crops),
    }
    return {name: len(batch) * per_second(run, device, seconds) for name, run in alone.items()}


def whole(
    made: PhotoEncoder, photos: Sequence[bytes], batch: int, seconds: float
) -> dict[str, float]:
    """Encode photos for a while, as many batches at the same time as a replica does.

    Returns:
        Photos a second, chunks of a photo, and the CPU time of this process, ms a photo. Those that
        decode are others.
    """
    from deployments.compute.replicas import compute_threads

    endless = itertools.cycle(photos)
    at_once = made.passes

    def encode(images: list[bytes]) -> list[int]:
        return [len(photo.chunks) for photo in made.encode(images)]  # type: ignore[union-attr]

    def run(threads: ThreadPoolExecutor, batches: int) -> list[int]:
        some = [list(itertools.islice(endless, batch)) for _ in range(batches)]
        return [chunks for of_batch in threads.map(encode, some) for chunks in of_batch]

    with compute_threads(None, at_once, device=made.device) as threads:
        run(threads, 2 * at_once)  # to begin with: processes, memory, kernels
        began, cpu, chunks = time.perf_counter(), time.process_time(), []
        while time.perf_counter() - began < seconds:
            chunks += run(threads, 8 * at_once)
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {
        "per_second": len(chunks) / took,
        "chunks": float(np.mean(chunks)),
        "process_ms": 1000 * cpu / len(chunks),
    }


def pipeline(
    encoder: str,
    made: PhotoEncoder,
    photos: Sequence[bytes],
    pixels: Sequence[np.ndarray],
    decoded: Rows,
    seconds: float,
) -> Rows:
    """Measure the stages of a photo encoder, then all of them together, from bytes on.

    Args:
        encoder: its name, for the rows.
        pixels: a batch of decoded photos, uint8 `[height, width, 3]` each.
        decoded: the rows of `decoding`.
        seconds: how long each stage is measured; all together four times as long.
    """
    alone = stages(made, pixels, seconds)
    together = 1 / sum(1 / rate for rate in alone.values())
    best = max(row["per_second"] for row in decoded)
    done = whole(made, photos, len(pixels), 4 * seconds)
    return [
        {"encoder": encoder, "stage": "decoding", "per_second": best},
        *({"encoder": encoder, "stage": name, "per_second": rate} for name, rate in alone.items()),
        {"encoder": encoder, "stage": "these, one after the other", "per_second": together},
        {
            "encoder": encoder,
            "stage": "**all, from bytes to vectors**",
            **done,
            "of_decoding": done["per_second"] / best,
            "of_stages": done["per_second"] / together,
        },
    ]
