"""The segmenter: turns image bytes into boxes and crops."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from deployments.compute.crops import scale_crops
from deployments.compute.device import pinned, place, upload
from deployments.compute.jpegs import scale_down
from deployments.compute.previews import make_preview
from deployments.decoding.decoder import Decoder
from deployments.decoding.facts import FACTS
from deployments.decoding.image import DecodedImage
from deployments.errors import BadParameter
from deployments.limits import PREVIEW_SIDE, ImageLimits
from deployments.outcomes import Outcome
from deployments.records import Chunk, EncodedPhoto, Facts
from deployments.segmenter.chunks import choose_boxes, contrasts
from deployments.segmenter.detection import Detections
from deployments.segmenter.detectors import load_detector
from deployments.segmenter.files import find_detector
from deployments.segmenter.thumbnails import make_thumbnail
from deployments.settings import SegmenterSettings


@dataclass(frozen=True, slots=True)
class SegmentedPhoto:
    """What the segmenter makes of a photo: an `EncodedPhoto` with crops in place of vectors.

    Attributes:
        crops: uint8 `[len(chunks), s, s, 3]`, RGB, one for each chunk, on the segmenter's device.
    """

    width: int
    height: int
    media_type: str
    animated: bool
    chunks: list[Chunk]
    crops: torch.Tensor
    thumbnail: bytes
    preview: bytes
    skipped: int = 0
    facts: Facts = field(default_factory=dict)

    def encoded(self, vectors: np.ndarray) -> EncodedPhoto:
        """Return the photo with the vectors of its crops instead of these."""
        return EncodedPhoto(
            self.width,
            self.height,
            self.media_type,
            self.animated,
            self.chunks,
            vectors,
            self.thumbnail,
            self.preview,
            self.skipped,
            self.facts,
        )


@dataclass(frozen=True, slots=True)
class OpenedPhoto:
    """A decoded photo, and the small pictures that were made of it."""

    image: DecodedImage
    thumbnail: bytes
    preview: bytes


class Segmenter:
    """Detects objects in photos, and cuts the chunks out at the encoder's input size.

    Args:
        settings: the detector, what runs it, and which parts of a photo become chunks.
        crop_size: side of the crops, pixels.
        squash: how crops become square, see `crops.scale_crops`.
        limits: larger images are refused before they are decoded.
        facts: what photos are asked about themselves, see `facts.read_facts`; what else they say
            goes no further.
        passes: how many passes of the detector run at the same time.

    Attributes:
        decoder: decodes the photos.
        placement: what runs the detector, and where.

    Raises:
        ModelUnavailable: the detector can't be loaded.
        ValueError: `crop_size` is below 1.
    """

    def __init__(
        self,
        settings: SegmenterSettings = SegmenterSettings(),  # noqa: B008  (frozen)
        *,
        crop_size: int = 224,
        squash: bool = False,
        limits: ImageLimits = ImageLimits(),  # noqa: B008  (frozen)
        facts: Sequence[str] = FACTS,
        passes: int = 1,
    ) -> None:
        if crop_size < 1:
            raise ValueError(f"crop_size must be at least 1, not {crop_size}")
        self.settings = settings
        self.crop_size = crop_size
        self.squash = squash
        self.facts = facts
        self.placement = place(settings, passes)
        self.detector = load_detector(find_detector(settings), settings, self.placement)
        self.decoder = Decoder(limits)
        self._threads = ThreadPoolExecutor(self.decoder.processes, thread_name_prefix="decode")

    def segment(
        self,
        images: Sequence[bytes],
        confidence_thresholds: Sequence[float | None] | None = None,
    ) -> list[Outcome[SegmentedPhoto]]:
        """Cut photos into chunks: each detected object, tiles, then the whole photo.

        Args:
            images: encoded images, see docs/formats.md.
            confidence_thresholds: one for each image; None means that of the settings.

        Returns:
            One result for each image, in order: the photo, or its error (an InsetError unless it
            should not happen). An error doesn't affect the other images.

        Raises:
            ValueError: there are not as many thresholds as images.
        """
        if confidence_thresholds is None:
            confidence_thresholds = [None] * len(images)
        if len(confidence_thresholds) != len(images):
            raise ValueError(f"{len(confidence_thresholds)} thresholds for {len(images)} images")
        thresholds = [
            self.settings.confidence_threshold if threshold is None else threshold
            for threshold in confidence_thresholds
        ]
        results: list[Outcome[SegmentedPhoto]] = []
        # Hold at most one batch of decoded photos: each takes 3 bytes a pixel.
        batch_size = self.settings.batch_size
        for start in range(0, len(images), batch_size):
            batch = slice(start, start + batch_size)
            results += self._segment_batch(images[batch], thresholds[batch])
        return results

    def _segment_batch(
        self, images: Sequence[bytes], thresholds: Sequence[float]
    ) -> list[Outcome[SegmentedPhoto]]:
        results: list[Any] = list(self._threads.map(self._open, images, thresholds))
        good = [i for i, result in enumerate(results) if not isinstance(result, Exception)]
        opened: list[OpenedPhoto] = [results[i] for i in good]
        photos = [upload(photo.image.pixels, self.placement.device) for photo in opened]
        found = self.detector.detect(photos, [thresholds[i] for i in good])
        cut = self.cut(photos, found)
        for i, photo, (chunks, crops) in zip(good, opened, cut, strict=True):
            height, width = photo.image.pixels.shape[:2]
            results[i] = SegmentedPhoto(
                width,
                height,
                photo.image.media_type,
                photo.image.animated,
                chunks,
                crops,
                photo.thumbnail,
                photo.preview,
                photo.image.skipped,
                {name: photo.image.facts.get(name) for name in self.facts},
            )
        return results

    def thumbnail(self, data: bytes) -> bytes:
        """Make the thumbnail of a photo, as `segment` does.

        Raises:
            TooLarge, NotAnImage, BrokenImage, Unavailable
        """
        return make_thumbnail(self.decoder.decode(data).pixels)

    def _open(self, data: bytes, threshold: float) -> Outcome[OpenedPhoto]:
        """Decode a photo and make its thumbnail and preview, or return the error."""
        try:
            if not 0 <= threshold <= 1:
                raise BadParameter(
                    f"confidence_threshold must be between 0 and 1, not {threshold}."
                )
            image = self.decoder.decode(data)
            small = scale_down(image.pixels, PREVIEW_SIDE)
            thumbnail, preview = make_thumbnail(small), make_preview(small)
            image = replace(image, pixels=pinned(image.pixels, self.placement.device))
            return OpenedPhoto(image, thumbnail, preview)
        except Exception as error:  # whatever it is, it is this photo's alone
            return error

    def cut(
        self, photos: list[torch.Tensor], found: list[Detections]
    ) -> list[tuple[list[Chunk], torch.Tensor]]:
        """Choose the chunks of photos, and cut them from the full-resolution pixels.

        Args:
            photos: uint8 `[height, width, 3]` each, on one device.
            found: the objects in each of them.

        Returns:
            Of each photo the chunks, and their crops, see `SegmentedPhoto`.
        """
        chunks = [
            self._chunks(photo.shape[0], photo.shape[1], detections)
            for photo, detections in zip(photos, found, strict=True)
        ]
        boxes = [np.array([chunk.box for chunk in of_photo]) for of_photo in chunks]
        crops = scale_crops(photos, boxes, self.crop_size, self.squash)
        return [self._without_flat_tiles(*of_photo) for of_photo in zip(chunks, crops, strict=True)]

    def _chunks(self, height: int, width: int, detections: Detections) -> list[Chunk]:
        boxes = choose_boxes(
            height,
            width,
            detections.boxes.tolist(),
            self.settings.tiles,
            self.settings.max_tiles,
            self.settings.tile_overlap,
        )
        found = zip(boxes.objects, detections.confidences.tolist(), detections.labels, strict=True)
        return [
            *(
                Chunk(box=box, source="detection", confidence=confidence, label=label)
                for box, confidence, label in found
            ),
            *(Chunk(box=box, source="tile") for box in boxes.tiles),
            Chunk(box=boxes.whole, source="whole"),
        ]

    def _without_flat_tiles(
        self, chunks: list[Chunk], crops: torch.Tensor
    ) -> tuple[list[Chunk], torch.Tensor]:
        if not self.settings.min_tile_contrast:
            return chunks, crops
        kept = [
            number
            for number, (chunk, contrast) in enumerate(zip(chunks, contrasts(crops), strict=True))
            if chunk.source != "tile" or contrast >= self.settings.min_tile_contrast
        ]
        return [chunks[number] for number in kept], crops[kept]
