"""The service's way from bytes to vectors, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from deployments.compute.replicas import compute_threads, passes_at_once
from deployments.encoder.encoder import Encoder
from deployments.errors import InsetError
from deployments.records import EncodedPhoto, SegmentedPhoto
from deployments.segmenter.segmenter import Segmenter
from deployments.settings import Settings


class PhotoEncoder:
    """A segmenter and an encoder, as a config describes them.

    On a CPU each thread works on a photo of its own, as in the service's replicas, and lets all
    other work go first.

    Raises:
        ModelUnavailable: one of them can't be found, downloaded or run.
    """

    def __init__(self, settings: Settings) -> None:
        self.encoder = Encoder(settings.encoder)
        files = self.encoder.files
        self.segmenter = Segmenter(
            settings.segmenter,
            crop_size=files.image_size,
            squash=files.squash,
            limits=settings.limits.image,
            facts=settings.facts,
        )
        threads = settings.segmenter.threads
        self._at_once = passes_at_once(threads, self.segmenter.placement)
        self._threads = compute_threads(threads, self._at_once, patient=True)

    def encode(self, images: Sequence[bytes]) -> list[EncodedPhoto | InsetError]:
        """Segment and encode photos; return each, or its error, in order."""
        groups = [[image] for image in images] if self._at_once > 1 else [images]
        return [photo for group in self._threads.map(self._encode_group, groups) for photo in group]

    def _encode_group(self, images: Sequence[bytes]) -> list[EncodedPhoto | InsetError]:
        return [self._encode(photo) for photo in self.segmenter.segment(images)]

    def _encode(self, photo: SegmentedPhoto | Exception) -> EncodedPhoto | InsetError:
        try:
            if isinstance(photo, Exception):
                raise photo
            vectors = self.encoder.encode_images(photo.crops)
        except InsetError as error:
            return error
        shared = {field.name for field in fields(photo)} & {f.name for f in fields(EncodedPhoto)}
        return EncodedPhoto(**{name: getattr(photo, name) for name in shared}, vectors=vectors)
