"""The segmenter: image bytes to boxes and crops."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from ray import serve

from deployments.detectors import Detections, load_detector
from deployments.device import COMPUTING_REPLICA, compute_thread, resolve_device, resolve_dtype
from deployments.errors import BadParameter, InsetError
from deployments.images import DecodedImage, decode, outer_box, scale_crop
from deployments.records import Chunk, ImageLimits, SegmentedPhoto
from deployments.settings import HEALTH_CHECK_S, SegmenterSettings

DECODING_THREADS = 4


class Segmenter:
    """Detects objects in photos, and cuts them out at the encoder's input size.

    Args:
        model_name_or_path: see `detectors.load_detector`.
        confidence_threshold: what a detection's confidence must exceed, 0 to 1.
        iou_threshold: overlap (0 to 1) from which the less confident of two boxes of a class is
            dropped.
        image_size: side of YOLOv5's input, pixels, a multiple of 32.
        batch_size: photos that are decoded and run through the network together at most.
        device: see `device.resolve_device`.
        dtype: see `device.resolve_dtype`.
        crop_size: side of the crops, pixels.
        limits: what is refused before it is decoded.

    Raises:
        ValueError: a value outside its range.
        ModelUnavailable: the detector can't be loaded.
    """

    def __init__(
        self,
        model_name_or_path: str = "yolov5s",
        *,
        confidence_threshold: float = 0.3,
        iou_threshold: float = 0.45,
        image_size: int = 640,
        batch_size: int = 32,
        device: str = "auto",
        dtype: str = "auto",
        crop_size: int = 224,
        limits: ImageLimits = ImageLimits(),  # noqa: B008  (frozen)
    ) -> None:
        _require(0 <= confidence_threshold <= 1, "confidence_threshold", "between 0 and 1")
        _require(0 <= iou_threshold <= 1, "iou_threshold", "between 0 and 1")
        _require(image_size > 0 and image_size % 32 == 0, "image_size", "a multiple of 32")
        _require(batch_size >= 1, "batch_size", "at least 1")
        _require(crop_size >= 1, "crop_size", "at least 1")
        self.confidence_threshold = confidence_threshold
        self.batch_size = batch_size
        self.crop_size = crop_size
        self.limits = limits
        self.device = resolve_device(device)
        self.detector = load_detector(
            model_name_or_path,
            image_size=image_size,
            iou_threshold=iou_threshold,
            batch_size=batch_size,
            device=self.device,
            dtype=resolve_dtype(dtype, self.device),
        )
        self._threads = ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="decode")

    def segment(
        self,
        images: Sequence[bytes],
        confidence_thresholds: Sequence[float | None] | None = None,
    ) -> list[SegmentedPhoto | InsetError]:
        """Cut photos into chunks: each detected object, then the whole picture.

        Args:
            images: encoded images, of any format Pillow reads.
            confidence_thresholds: for each image, in the place of the segmenter's own; None is
                the segmenter's own.

        Returns:
            One result for each image, in order. A bad image's is its error, which harms no other.

        Raises:
            ValueError: not as many thresholds as images.
        """
        if confidence_thresholds is None:
            confidence_thresholds = [None] * len(images)
        if len(confidence_thresholds) != len(images):
            raise ValueError(f"{len(confidence_thresholds)} thresholds for {len(images)} images")
        thresholds = [
            self.confidence_threshold if threshold is None else threshold
            for threshold in confidence_thresholds
        ]
        results: list[SegmentedPhoto | InsetError] = []
        # No more than a batch of decoded photos is held: each takes up to 3 bytes a pixel.
        for start in range(0, len(images), self.batch_size):
            batch = slice(start, start + self.batch_size)
            results += self._segment_batch(images[batch], thresholds[batch])
        return results

    def _segment_batch(
        self, images: Sequence[bytes], thresholds: Sequence[float]
    ) -> list[SegmentedPhoto | InsetError]:
        decoded = list(self._threads.map(self._decode, images, thresholds))
        good = [i for i, image in enumerate(decoded) if isinstance(image, DecodedImage)]
        found = self.detector.detect(
            [decoded[i].pixels for i in good], [thresholds[i] for i in good]
        )
        results: list[SegmentedPhoto | InsetError] = list(decoded)
        for i, detections in zip(good, found, strict=True):
            results[i] = self._cut(decoded[i], detections)
        return results

    def _decode(self, data: bytes, threshold: float) -> DecodedImage | InsetError:
        try:
            if not 0 <= threshold <= 1:
                raise BadParameter(
                    f"confidence_threshold must be between 0 and 1, not {threshold}."
                )
            return decode(data, self.limits)
        except InsetError as error:
            return error

    def _cut(self, image: DecodedImage, detections: Detections) -> SegmentedPhoto:
        """Cut the chunks from the full-resolution pixels."""
        height, width = image.pixels.shape[:2]
        chunks = [
            Chunk(
                box=outer_box(tuple(box), width, height),
                source="detection",
                confidence=confidence,
                label=label,
            )
            for box, confidence, label in zip(
                detections.boxes.tolist(),
                detections.confidences.tolist(),
                detections.labels,
                strict=True,
            )
        ]
        chunks.append(Chunk(box=(0, 0, width, height), source="whole"))
        pixels = torch.from_numpy(image.pixels).to(self.device)
        crops = torch.stack([scale_crop(pixels, chunk.box, self.crop_size) for chunk in chunks])
        return SegmentedPhoto(
            width, height, image.media_type, image.animated, chunks, np.asarray(crops.cpu())
        )


def _require(condition: bool, name: str, rule: str) -> None:
    if not condition:
        raise ValueError(f"{name} must be {rule}")


@serve.deployment(
    name="Segmenter",
    max_ongoing_requests=16,
    max_queued_requests=256,
    health_check_period_s=HEALTH_CHECK_S,
    ray_actor_options=COMPUTING_REPLICA,
)
class SegmenterDeployment:
    """A `Segmenter` behind batches of photos.

    Args:
        share: of the cores, unless `settings.threads` says how many.
    """

    def __init__(
        self, settings: SegmenterSettings, crop_size: int, limits: ImageLimits, share: float
    ) -> None:
        self.segmenter = Segmenter(
            settings.model_name_or_path,
            confidence_threshold=settings.confidence_threshold,
            iou_threshold=settings.iou_threshold,
            image_size=settings.image_size,
            batch_size=settings.batch_size,
            device=settings.device,
            dtype=settings.dtype,
            crop_size=crop_size,
            limits=limits,
        )
        self._thread = compute_thread(settings.threads, share=share)
        self._segment.set_max_batch_size(settings.batch_size)
        self._segment.set_batch_wait_timeout_s(settings.batch_wait_ms / 1000)

    async def segment(self, data: bytes, confidence_threshold: float | None) -> SegmentedPhoto:
        """Cut a photo into chunks.

        Raises:
            BadParameter, TooLarge, NotAnImage, BrokenImage
        """
        result = await self._segment((data, confidence_threshold))
        if isinstance(result, InsetError):
            raise result
        return result

    async def ping(self) -> None:
        """Answer, to show that it can."""

    @serve.batch
    async def _segment(
        self, items: list[tuple[bytes, float | None]]
    ) -> list[SegmentedPhoto | InsetError]:
        images, thresholds = zip(*items, strict=True)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self.segmenter.segment, images, thresholds)
