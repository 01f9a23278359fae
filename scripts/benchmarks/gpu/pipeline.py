"""All stages of photos on one GPU, from bytes to vectors, at the same time.

The cores decode the next photos; the copy engine uploads those that are decoded; the detector runs
on one batch; and the crops of the batch before are cut and encoded. Each has a stream of its own.
One thread drives all of it. It waits for the GPU twice: for the detections, while the crops of the
batch before keep the GPU busy, and before a third batch begins.

The stages are the service's own functions; only the order of the calls is written here.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.gpu.decoders import Batches
from deployments.compute.crops import MATRICES_ON, scale_crops
from deployments.compute.device import upload
from deployments.segmenter.chunks import choose_boxes
from deployments.segmenter.letterbox import Letterbox, lay_on_canvases, letterbox
from deployments.segmenter.suppression import select

TILES = (3,)
MAX_TILES = 64
OVERLAP = 0.3
IOU_THRESHOLD = 0.45
# OpenAI's statistics of the training images, on the scale of grey levels.
MEAN = np.array([0.48145466, 0.4578275, 0.40821073]) * 255
STD = np.array([0.26862954, 0.26130258, 0.27577711]) * 255


class Prediction(NamedTuple):
    """The output of the detector for photos whose canvases have one size.

    Attributes:
        numbers: places of the photos in their batch.
        places: where each photo lies on its canvas.
        rows: float32 `[n, anchors, 5 + classes]`.
    """

    numbers: list[int]
    places: list[Letterbox]
    rows: torch.Tensor


@dataclass
class Batch:
    """Photos between stages. It holds the memory that the streams use, until it is done.

    Attributes:
        photos: uint8 `[height, width, 3]`.
        predictions: of the detector.
        boxes: those of each photo's chunks, int `[n, 4]`.
        vectors: float32 `[chunks of all photos, dimension]`, in memory of the CPU once `done`.
        done: happens when the vectors are there; None on a CPU.
    """

    photos: list[torch.Tensor]
    predictions: list[Prediction]
    boxes: list[np.ndarray] = field(default_factory=list)
    vectors: torch.Tensor | None = None
    done: torch.cuda.Event | None = None


class Pipeline:
    """The stages of a photo, from pixels to vectors. Each runs on the current stream.

    Args:
        detector: a YOLOv5.
        encoder: turns float `[n, 3, crop_size, crop_size]` into vectors.
        threshold: the confidence that a detection must exceed.
        image_size: longer side of a photo on the detector's canvas, pixels.
        crop_size: side of the encoder's input, pixels.
        dtype: of the encoder.
        together_on: see `scale_crops`.
    """

    def __init__(
        self,
        detector: Any,
        encoder: Callable[[torch.Tensor], torch.Tensor],
        *,
        threshold: float,
        image_size: int,
        crop_size: int,
        device: torch.device,
        dtype: torch.dtype,
        together_on: Collection[str] = MATRICES_ON,
    ) -> None:
        self.detector = detector
        self.encoder = encoder
        self.threshold = threshold
        self.image_size = image_size
        self.crop_size = crop_size
        self.device = device
        self.dtype = dtype
        self.together_on = together_on
        mean, std = (torch.from_numpy(values).view(1, 3, 1, 1) for values in (MEAN, STD))
        self.scale, self.shift = (t.to(device, dtype) for t in (1 / std, -mean / std))
        self.copying, self.detecting, self.encoding = (
            torch.cuda.Stream(device) if device.type == "cuda" else None for _ in range(3)
        )

    def upload(self, pixels: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """Send photos to the device."""
        return [upload(photo, self.device) for photo in pixels]

    def predict(self, photos: Sequence[torch.Tensor]) -> list[Prediction]:
        """Lay photos on canvases, and run the detector on those of one size together."""
        places = [
            letterbox(photo.shape[0], photo.shape[1], self.image_size, self.detector.stride)
            for photo in photos
        ]
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for number, place in enumerate(places):
            groups[place.canvas].append(number)
        predictions = []
        for numbers in groups.values():
            of_group = [places[n] for n in numbers]
            canvases = lay_on_canvases([photos[n] for n in numbers], of_group, self.device)
            rows = self.detector(canvases.permute(0, 3, 1, 2))
            predictions.append(Prediction(numbers, of_group, rows))
        return predictions

    def choose(self, predictions: Sequence[Prediction]) -> list[np.ndarray]:
        """Choose the boxes of each photo's chunks, and wait for them."""
        boxes: dict[int, np.ndarray] = {}
        for numbers, places, rows in predictions:
            found = select(rows, [self.threshold] * len(places), IOU_THRESHOLD)
            boxes.update(zip(numbers, map(self._boxes, places, found), strict=True))
        return [boxes[number] for number in range(len(boxes))]

    def _boxes(self, place: Letterbox, found: np.ndarray) -> np.ndarray:
        height, width = place.image
        corners = place.boxes_on_image(found[:, :4])
        visible = (corners[:, 2:] > corners[:, :2]).all(1)
        chosen = choose_boxes(height, width, corners[visible].tolist(), TILES, MAX_TILES, OVERLAP)
        return np.array([*chosen.objects, *chosen.tiles, chosen.whole])

    def cut(self, photos: Sequence[torch.Tensor], boxes: Sequence[np.ndarray]) -> torch.Tensor:
        """Cut the chunks: uint8 `[chunks of all photos, crop_size, crop_size, 3]`."""
        return torch.cat(
            scale_crops(photos, boxes, self.crop_size, squash=True, together_on=self.together_on)
        )

    def encode(self, crops: torch.Tensor) -> torch.Tensor:
        """Normalise and encode, and start the copy to the CPU: float32 `[n, d]`, L2-normalised."""
        pixels = crops.permute(0, 3, 1, 2).to(self.dtype)
        vectors = self.encoder(torch.addcmul(self.shift, pixels, self.scale))
        return torch.nn.functional.normalize(vectors.float(), dim=1).to("cpu", non_blocking=True)

    @torch.inference_mode()
    def run(self, batches: Batches) -> Generator[Batch, None, None]:
        """Run all stages for batch after batch of photos."""
        encoding: deque[Batch] = deque()
        last: Batch | None = None
        if self.copying:
            torch.cuda.synchronize(self.device)  # the networks were made on another stream
        for pixels in batches:
            batch = self._begin(pixels)
            if last:
                encoding.append(self._encode(last))
            with self._on(self.detecting):
                batch.boxes = self.choose(batch.predictions)
            if len(encoding) > 1:
                yield _waited_for(encoding.popleft())
            last = batch
        if last:
            encoding.append(self._encode(last))
        while encoding:
            yield _waited_for(encoding.popleft())

    def _begin(self, pixels: Sequence[np.ndarray]) -> Batch:
        with self._on(self.copying):
            photos = self.upload(pixels)
        if self.detecting and self.copying:
            self.detecting.wait_stream(self.copying)
        with self._on(self.detecting):
            predictions = self.predict(photos)
        return Batch(photos, predictions)

    def _encode(self, batch: Batch) -> Batch:
        # No need to wait for its photos: its boxes were computed from them.
        with self._on(self.encoding):
            batch.vectors = self.encode(self.cut(batch.photos, batch.boxes))
            if self.encoding:
                batch.done = self.encoding.record_event()
        return batch

    def _on(self, stream: torch.cuda.Stream | None) -> AbstractContextManager[Any]:
        return torch.cuda.stream(stream) if stream else nullcontext()


def _waited_for(batch: Batch) -> Batch:
    if batch.done:
        batch.done.synchronize()
    return batch
