"""The photo encoder: turns photos into chunks with vectors."""

from __future__ import annotations

from collections.abc import Sequence

from deployments.compute.replicas import passes_at_once
from deployments.decoding.facts import FACTS
from deployments.encoder.encoder import Encoder
from deployments.limits import ImageLimits
from deployments.outcomes import Outcome, go_on
from deployments.records import EncodedPhoto
from deployments.segmenter.segmenter import SegmentedPhoto, Segmenter
from deployments.settings import EncoderSettings, SegmenterSettings


class PhotoEncoder:
    """A segmenter, and the encoder of its crops, which stay on their device.

    Args:
        segmenter, encoder: the settings of the two.
        limits, facts: see `Segmenter`.

    Attributes:
        passes: how many threads should call `encode` at the same time.
        device: where they compute, and each has a stream of its own.

    Raises:
        ModelUnavailable: a network can't be found, downloaded or run.
    """

    def __init__(
        self,
        segmenter: SegmenterSettings,
        encoder: EncoderSettings,
        limits: ImageLimits = ImageLimits(),  # noqa: B008  (frozen)
        facts: Sequence[str] = FACTS,
    ) -> None:
        self.passes = passes_at_once(segmenter.threads, segmenter, encoder)
        self.encoder = Encoder(encoder, passes=self.passes)
        self.segmenter = Segmenter(
            segmenter,
            crop_size=self.encoder.files.image_size,
            squash=self.encoder.files.squash,
            limits=limits,
            facts=facts,
            passes=self.passes,
        )
        self.device = self.segmenter.placement.device

    def encode(
        self,
        images: Sequence[bytes],
        confidence_thresholds: Sequence[float | None] | None = None,
    ) -> list[Outcome[EncodedPhoto]]:
        """Segment and encode photos.

        Args:
            images, confidence_thresholds: see `Segmenter.segment`.

        Returns:
            Of each the encoded photo, or its error: those of `Segmenter.segment`, or an InsetError
            if a crop has no usable vector. An error doesn't affect the other photos.
        """
        segmented = self.segmenter.segment(images, confidence_thresholds)
        photos = [photo for photo in segmented if isinstance(photo, SegmentedPhoto)]
        vectors = self.encoder.encode_photos([photo.crops for photo in photos])
        encoded = [
            of_photo if isinstance(of_photo, Exception) else photo.encoded(of_photo)
            for photo, of_photo in zip(photos, vectors, strict=True)
        ]
        return go_on(segmented, encoded)
