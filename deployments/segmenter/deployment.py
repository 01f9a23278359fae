"""The segmenter as a deployment."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ray import serve

from deployments.compute.replicas import (
    COMPUTING_REPLICA,
    Passes,
    load_with_threads,
    passes_at_once,
)
from deployments.limits import ImageLimits
from deployments.logs import join_the_log
from deployments.metrics import measure_decoder
from deployments.outcomes import Outcome, outcome_of_each
from deployments.records import CheckedPhoto, SegmentedPhoto
from deployments.segmenter.segmenter import Segmenter
from deployments.settings import HEALTH_CHECK_S, SegmenterSettings


@serve.deployment(
    name="Segmenter",
    max_ongoing_requests=64,  # all groups that a replica of the Ingress has on their way
    health_check_period_s=HEALTH_CHECK_S,
    ray_actor_options=COMPUTING_REPLICA,
)
class SegmenterDeployment:
    """A `Segmenter` that works on batches of photos."""

    def __init__(
        self,
        settings: SegmenterSettings,
        crop_size: int,
        squash: bool,
        limits: ImageLimits,
        facts: Sequence[str],
    ) -> None:
        join_the_log()
        self.segmenter = load_with_threads(
            settings.threads,
            lambda: Segmenter(
                settings, crop_size=crop_size, squash=squash, limits=limits, facts=facts
            ),
        )
        self.segmenter.decoder.start()
        measure_decoder(self.segmenter.decoder)
        at_once = passes_at_once(settings.threads, self.segmenter.placement)
        self.passes = Passes(settings, settings.threads, at_once, patient=True)
        self._segment = self.passes.batched(self._segment_together, stage="segment")

    async def segment(self, photos: list[CheckedPhoto]) -> list[Outcome[SegmentedPhoto]]:
        """Cut photos into chunks.

        Returns:
            Of each the segmented photo, or its error: BadParameter, TooLarge, NotAnImage,
            BrokenImage, Unavailable.
        """
        return await outcome_of_each(
            self._segment((photo.data, photo.confidence_threshold)) for photo in photos
        )

    async def thumbnail(self, data: bytes) -> bytes:
        """See `Segmenter.thumbnail`."""
        return await asyncio.to_thread(self.segmenter.thumbnail, data)

    async def ping(self) -> None:
        """Do nothing; an answer shows that the replica is ready."""

    def _segment_together(
        self, items: list[tuple[bytes, float | None]]
    ) -> list[Outcome[SegmentedPhoto]]:
        images, thresholds = zip(*items, strict=True)
        return self.segmenter.segment(images, thresholds)
