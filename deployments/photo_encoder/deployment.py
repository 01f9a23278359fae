"""The photo encoder as a deployment."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ray import serve

from deployments.compute.replicas import COMPUTING_REPLICA, Passes, load_with_threads
from deployments.encoder.files import EncoderFiles
from deployments.limits import ImageLimits
from deployments.logs import join_the_log
from deployments.metrics import measure_decoder
from deployments.outcomes import Outcome, outcome_of_each
from deployments.photo_encoder.photo_encoder import PhotoEncoder
from deployments.records import CheckedPhoto, EncodedPhoto
from deployments.settings import HEALTH_CHECK_S, EncoderSettings, SegmenterSettings


@serve.deployment(
    name="PhotoEncoder",
    max_ongoing_requests=64,  # all groups that a replica of the Ingress has on their way
    health_check_period_s=HEALTH_CHECK_S,
    ray_actor_options=COMPUTING_REPLICA,
)
class PhotoEncoderDeployment:
    """A `PhotoEncoder` that works on batches of photos.

    Args:
        segmenter, encoder, limits, facts: see `PhotoEncoder`. The segmenter's batches, threads and
            waiting time are those of the whole.
        found: the encoder that the graph was built with; each replica must load the same.

    Raises:
        EncoderMismatch: the files on this node are others, or were changed in the meantime.
    """

    def __init__(
        self,
        segmenter: SegmenterSettings,
        encoder: EncoderSettings,
        limits: ImageLimits,
        facts: Sequence[str],
        found: EncoderFiles,
    ) -> None:
        join_the_log()
        self.photo_encoder = load_with_threads(
            segmenter.threads, lambda: PhotoEncoder(segmenter, encoder, limits, facts)
        )
        self.photo_encoder.encoder.files.require_same_as(found)
        self.photo_encoder.segmenter.decoder.start()
        measure_decoder(self.photo_encoder.segmenter.decoder)
        self.passes = Passes(
            segmenter,
            segmenter.threads,
            self.photo_encoder.passes,
            patient=True,
            device=self.photo_encoder.device,
        )
        self._encode = self.passes.batched(self._encode_together, stage="encode photo")

    async def encode(self, photos: list[CheckedPhoto]) -> list[Outcome[EncodedPhoto]]:
        """Cut photos into chunks, and encode these.

        Returns:
            Of each the encoded photo, or its error: BadParameter, TooLarge, NotAnImage,
            BrokenImage, Unavailable, or another InsetError if a chunk has no usable vector.
        """
        return await outcome_of_each(
            self._encode((photo.data, photo.confidence_threshold)) for photo in photos
        )

    async def thumbnail(self, data: bytes) -> bytes:
        """See `Segmenter.thumbnail`."""
        return await asyncio.to_thread(self.photo_encoder.segmenter.thumbnail, data)

    async def ping(self) -> None:
        """Do nothing; an answer shows that the replica is ready."""

    def _encode_together(
        self, items: list[tuple[bytes, float | None]]
    ) -> list[Outcome[EncodedPhoto]]:
        images, thresholds = zip(*items, strict=True)
        return self.photo_encoder.encode(images, thresholds)
