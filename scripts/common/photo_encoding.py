"""The service's way from bytes to vectors, in this process."""

from __future__ import annotations

from collections.abc import Sequence

from deployments.compute.replicas import compute_threads
from deployments.outcomes import Outcome
from deployments.photo_encoder.photo_encoder import PhotoEncoder
from deployments.records import EncodedPhoto
from deployments.settings import Settings


class PhotoEncoding:
    """A photo encoder with the threads of the service's replicas, which let others go first.

    Raises:
        ModelUnavailable: a network can't be found, downloaded or run.
    """

    def __init__(self, settings: Settings) -> None:
        self._encoder = PhotoEncoder(
            settings.segmenter, settings.encoder, settings.limits.image, settings.facts
        )
        self._threads = compute_threads(
            settings.segmenter.threads, self._encoder.passes, True, self._encoder.device
        )
        self._batch_size = settings.segmenter.batch_size

    def encode(self, images: Sequence[bytes]) -> list[Outcome[EncodedPhoto]]:
        """Segment and encode photos, several batches at the same time.

        Returns:
            Of each the encoded photo, or its error.
        """
        batches = [
            images[start : start + self._batch_size]
            for start in range(0, len(images), self._batch_size)
        ]
        return [
            photo for batch in self._threads.map(self._encoder.encode, batches) for photo in batch
        ]
