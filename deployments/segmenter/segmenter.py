"""The segmenter: image bytes to boxes and crops."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from ray import serve

from deployments.compute.batching import batched
from deployments.compute.device import (
    COMPUTING_REPLICA,
    compute_threads,
    download,
    passes_at_once,
    pinned,
    resolve_device,
    resolve_dtype,
    upload,
)
from deployments.compute.images import DecodedImage, contrast, decode, outer_box, scale_crops
from deployments.errors import BadParameter, InsetError
from deployments.limits import ImageLimits
from deployments.records import Chunk, SegmentedPhoto
from deployments.segmenter.detectors import Detections, load_detector
from deployments.segmenter.suppression import apart
from deployments.segmenter.thumbnails import make_thumbnail
from deployments.settings import HEALTH_CHECK_S, SegmenterSettings, check_backend
from deployments.tiles import fewest_tiles, tile_boxes

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
        backend: what runs the detector: `torch`, or `openvino` on the CPU.
        device: see `device.resolve_device`.
        dtype: see `device.resolve_dtype`.
        tiles: scales at which overlapping tiles of the photo are chunks too, different numbers
            from 2 to 16, see `tiles.tile_boxes`; none, no tiles.
        max_tiles: most tiles of a photo, at least `tiles.fewest_tiles` of these scales.
        min_tile_contrast: tiles whose grey values deviate less (a clear sky) are dropped:
            standard deviation, 0 to 127.5; 0 drops none.
        crop_size: side of the crops, pixels.
        squash: how crops become square, see `images.scale_crops`.
        limits: what is refused before it is decoded.

    Raises:
        ValueError: a value outside its range.
        ModelUnavailable: the detector can't be loaded.
    """

    def __init__(
        self,
        model_name_or_path: str = "yolov5s",
        *,
        confidence_threshold: float = 0.1,
        iou_threshold: float = 0.45,
        image_size: int = 640,
        batch_size: int = 1,
        backend: str = "torch",
        device: str = "auto",
        dtype: str = "auto",
        tiles: Sequence[int] = (2, 3),
        max_tiles: int = 64,
        min_tile_contrast: float = 0,
        crop_size: int = 224,
        squash: bool = False,
        limits: ImageLimits = ImageLimits(),  # noqa: B008  (frozen)
    ) -> None:
        _require(0 <= confidence_threshold <= 1, "confidence_threshold", "between 0 and 1")
        _require(0 <= iou_threshold <= 1, "iou_threshold", "between 0 and 1")
        _require(image_size > 0 and image_size % 32 == 0, "image_size", "a multiple of 32")
        _require(batch_size >= 1, "batch_size", "at least 1")
        _require(
            len(set(tiles)) == len(tiles) and all(2 <= scale <= 16 for scale in tiles),
            "tiles",
            "different numbers from 2 to 16",
        )
        fewest = fewest_tiles(tiles)
        _require(max_tiles >= fewest, "max_tiles", f"at least {fewest}: so many are these tiles")
        _require(min_tile_contrast >= 0, "min_tile_contrast", "at least 0")
        _require(crop_size >= 1, "crop_size", "at least 1")
        check_backend(backend, device, dtype)
        self.confidence_threshold = confidence_threshold
        self.batch_size = batch_size
        self.tiles = tiles
        self.max_tiles = max_tiles
        self.min_tile_contrast = min_tile_contrast
        self.crop_size = crop_size
        self.squash = squash
        self.limits = limits
        self.device = resolve_device("cpu" if backend == "openvino" else device)
        self.detector = load_detector(
            model_name_or_path,
            image_size=image_size,
            iou_threshold=iou_threshold,
            batch_size=batch_size,
            device=self.device,
            dtype=resolve_dtype(dtype, self.device),
            backend=backend,
        )
        self._threads = ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="decode")

    def segment(
        self,
        images: Sequence[bytes],
        confidence_thresholds: Sequence[float | None] | None = None,
    ) -> list[SegmentedPhoto | InsetError]:
        """Cut photos into chunks: each detected object, tiles, then the whole picture.

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
        results: list[Any] = list(self._threads.map(self._open, images, thresholds))
        good = [i for i, result in enumerate(results) if not isinstance(result, InsetError)]
        opened: list[tuple[DecodedImage, bytes]] = [results[i] for i in good]
        photos = [upload(image.pixels, self.device) for image, _ in opened]
        found = self.detector.detect(photos, [thresholds[i] for i in good])
        cut = self._cut(photos, found)
        for i, (image, thumbnail), (chunks, crops) in zip(good, opened, cut, strict=True):
            height, width = image.pixels.shape[:2]
            results[i] = SegmentedPhoto(
                width, height, image.media_type, image.animated, chunks, crops, thumbnail
            )
        return results

    def thumbnail(self, data: bytes) -> bytes:
        """Make the thumbnail of a photo, the same as `segment` does.

        Raises:
            TooLarge, NotAnImage, BrokenImage
        """
        return make_thumbnail(decode(data, self.limits).pixels)

    def _open(self, data: bytes, threshold: float) -> tuple[DecodedImage, bytes] | InsetError:
        """Decode a photo, and make its thumbnail."""
        try:
            if not 0 <= threshold <= 1:
                raise BadParameter(
                    f"confidence_threshold must be between 0 and 1, not {threshold}."
                )
            image = decode(data, self.limits)
            thumbnail = make_thumbnail(image.pixels)
            return replace(image, pixels=pinned(image.pixels, self.device)), thumbnail
        except InsetError as error:
            return error

    def _cut(
        self, photos: list[torch.Tensor], found: list[Detections]
    ) -> list[tuple[list[Chunk], np.ndarray]]:
        """Cut the chunks from the full-resolution pixels, and bring them to the CPU at once."""
        chunks = [
            self._chunks(*photo.shape[:2], detections)
            for photo, detections in zip(photos, found, strict=True)
        ]
        boxes = [np.array([chunk.box for chunk in of_photo]) for of_photo in chunks]
        crops = download(scale_crops(photos, boxes, self.crop_size, self.squash))
        return [self._without_flat_tiles(*of_photo) for of_photo in zip(chunks, crops, strict=True)]

    def _chunks(self, height: int, width: int, detections: Detections) -> list[Chunk]:
        objects = [
            Chunk(
                box=outer_box(box, width, height),
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
        tiles = tile_boxes(width, height, self.tiles, self.max_tiles)
        others = apart(tiles, [chunk.box for chunk in objects])
        return [
            *objects,
            *(Chunk(box=box, source="tile") for box in others),
            Chunk(box=(0, 0, width, height), source="whole"),
        ]

    def _without_flat_tiles(
        self, chunks: list[Chunk], crops: np.ndarray
    ) -> tuple[list[Chunk], np.ndarray]:
        if not self.min_tile_contrast:
            return chunks, crops
        kept = [
            number
            for number, chunk in enumerate(chunks)
            if chunk.source != "tile" or contrast(crops[number]) >= self.min_tile_contrast
        ]
        return [chunks[number] for number in kept], crops[kept]


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
    """A `Segmenter` behind batches of photos."""

    def __init__(
        self,
        settings: SegmenterSettings,
        crop_size: int,
        squash: bool,
        limits: ImageLimits,
    ) -> None:
        # OpenVINO takes as many threads as torch has in the thread that loads it.
        with compute_threads(settings.threads) as loading:
            self.segmenter = loading.submit(
                Segmenter,
                settings.model_name_or_path,
                confidence_threshold=settings.confidence_threshold,
                iou_threshold=settings.iou_threshold,
                image_size=settings.image_size,
                batch_size=settings.batch_size,
                backend=settings.backend,
                device=settings.device,
                dtype=settings.dtype,
                tiles=settings.tiles,
                max_tiles=settings.max_tiles,
                min_tile_contrast=settings.min_tile_contrast,
                crop_size=crop_size,
                squash=squash,
                limits=limits,
            ).result()
        passes = passes_at_once(settings.threads, settings.backend, self.segmenter.device)
        self._threads = compute_threads(settings.threads, passes)
        self._segment = batched(
            self._segment_together,
            at_once=passes,
            wait_s=settings.batch_wait_ms / 1000,
            max_batch_size=settings.batch_size,
        )

    async def segment(self, data: bytes, confidence_threshold: float | None) -> SegmentedPhoto:
        """Cut a photo into chunks.

        Raises:
            BadParameter, TooLarge, NotAnImage, BrokenImage
        """
        result = await self._segment((data, confidence_threshold))
        if isinstance(result, InsetError):
            raise result
        return result

    async def thumbnail(self, data: bytes) -> bytes:
        """See `Segmenter.thumbnail`."""
        return await asyncio.to_thread(self.segmenter.thumbnail, data)

    async def ping(self) -> None:
        """Answer, to show that it can."""

    async def _segment_together(
        self, items: list[tuple[bytes, float | None]]
    ) -> list[SegmentedPhoto | InsetError]:
        images, thresholds = zip(*items, strict=True)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self.segmenter.segment, images, thresholds)
