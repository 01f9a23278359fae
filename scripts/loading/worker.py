"""The workers: each reads photos, encodes the new ones, and stores them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from common.photo_encoding import PhotoEncoding

from deployments.errors import InsetError, StoreFull, first_line
from deployments.ingress.checking import check_photo
from deployments.outcomes import Outcome, go_on
from deployments.records import CheckedPhoto, EncodedPhoto, Metadata, NewPhoto, Record, Stored
from deployments.settings import Settings
from loading.sources import Source
from loading.stores import StoreAccess

READING_THREADS = 16  # files come from far away


class Worker:
    """Stores the photos of batches, unless they are stored already.

    Crops stay in this process: what leaves it is what the store keeps.

    Args:
        settings: of the segmenter and the encoder.
        store: gets the photos.
        metadata: given to each photo.
    """

    def __init__(self, settings: Settings, store: StoreAccess, metadata: Metadata) -> None:
        self._max_bytes = settings.limits.max_image_bytes
        self._store = store
        self._metadata = metadata
        self._encoding = PhotoEncoding(settings)
        self._reading = ThreadPoolExecutor(READING_THREADS, "reading")

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[str]]:
        """Store the photos of a batch of Ray Data.

        Args:
            batch: `bucket` and `path` of each `Source`.

        Returns:
            Of each `file`, its `status`, which is `created`, `exists`, `failed` or `full`, and the
            `reason` if it failed. `full`: the store has no room.
        """
        sources = [Source(*one) for one in zip(batch["bucket"], batch["path"], strict=True)]
        results = [describe(outcome) for outcome in self.store(sources)]
        statuses, reasons = map(list, zip(*results, strict=True))
        return {"file": list(map(str, sources)), "status": statuses, "reason": reasons}

    def store(self, sources: Sequence[Source]) -> list[Outcome[Stored]]:
        """Store photos; return what becomes of each."""
        read = list(self._reading.map(self._read, sources))
        photos = [photo for photo in read if isinstance(photo, CheckedPhoto)]
        try:
            outcomes = self._store_read(photos) if photos else []
        except Exception as error:
            outcomes = [error] * len(photos)
        return go_on(read, outcomes)

    def _read(self, source: Source) -> Outcome[CheckedPhoto]:
        try:
            data = source.read(self._max_bytes)
            return check_photo(NewPhoto(data, filename=source.name, metadata=self._metadata))
        except Exception as error:  # it is this file's alone
            return error

    def _store_read(self, photos: list[CheckedPhoto]) -> list[Outcome[Stored]]:
        found = self._store.find([(photo.id, photo.sha256) for photo in photos])
        new = [photo for photo, known in zip(photos, found, strict=True) if known is None]
        encoded = self._encode([photo.data for photo in new]) if new else []
        stored = iter(self._store.put(new, encoded) if new else [])
        before = [Stored(one, created=False) if isinstance(one, Record) else one for one in found]
        return [next(stored) if one is None else one for one in before]

    def _encode(self, images: Sequence[bytes]) -> list[Outcome[EncodedPhoto]]:
        """Encode photos; if that fails, one by one, so that only what is wrong fails."""
        try:
            return self._encoding.encode(images)
        except Exception as error:
            if len(images) == 1:
                return [error]
            return [one for image in images for one in self._encode([image])]


def describe(outcome: Outcome[Stored]) -> tuple[str, str]:
    """Return the status of a photo, and why it failed."""
    if isinstance(outcome, Stored):
        return ("created" if outcome.created else "exists"), ""
    if isinstance(outcome, InsetError):
        return ("full" if isinstance(outcome, StoreFull) else "failed"), outcome.detail
    return "failed", f"{type(outcome).__name__}: {first_line(outcome)}"
