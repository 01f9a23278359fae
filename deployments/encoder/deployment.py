"""The encoder of queries as a deployment."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import torch
from ray import serve

from deployments.boxes import outer_box
from deployments.compute.crops import scale_crop
from deployments.compute.replicas import (
    COMPUTING_REPLICA,
    Passes,
    load_with_threads,
)
from deployments.compute.sketches import make_sketch
from deployments.decoding.decoder import Decoder
from deployments.encoder.encoder import Encoder
from deployments.encoder.files import EncoderFiles
from deployments.errors import BadParameter, InsetError
from deployments.limits import ImageLimits
from deployments.logs import join_the_log
from deployments.metrics import Stage, measure_decoder
from deployments.settings import HEALTH_CHECK_S, EncoderSettings
from deployments.verification import EncodedQuery, Look, Sketch


@serve.deployment(
    name="QueryEncoder",
    max_ongoing_requests=64,
    max_queued_requests=256,
    health_check_period_s=HEALTH_CHECK_S,
    ray_actor_options=COMPUTING_REPLICA,
)
class QueryEncoderDeployment:
    """An `Encoder` of queries, which encodes a single one quickly, and many of them in batches.

    Photos have an encoder of their own, so that a search doesn't wait behind those that are being
    indexed.

    Args:
        found: the encoder that the graph was built with; each replica must load the same.

    Raises:
        EncoderMismatch: the files on this node are others, or were changed in the meantime.
    """

    def __init__(self, settings: EncoderSettings, limits: ImageLimits, found: EncoderFiles) -> None:
        join_the_log()
        self.decoder = Decoder(limits)
        self.encoder = load_with_threads(settings.threads, lambda: Encoder(settings))
        self.encoder.files.require_same_as(found)
        threads = settings.threads
        if self.encoder.files.is_small:
            threads = threads or 1
        device = self.encoder.placement.device
        self.passes = Passes(settings, threads, at_once=1, patient=False, device=device)
        # The first pass is slow (memory, kernels), so no request should wait for it.
        size = self.encoder.files.image_size
        self.passes.run(self.encoder.encode_images, np.zeros((1, size, size, 3), np.uint8))
        self.decoder.start()
        measure_decoder(self.decoder)
        self._decoding = Stage("decode")
        self._encode_texts = self.passes.batched(self._encode_texts_together, stage="encode text")
        self._encode_images = self.passes.batched(
            self._encode_images_together,
            stage="encode query",
            batch_size_fn=lambda queries: sum(map(len, queries)),
        )

    async def encode_query(
        self, data: bytes, box: tuple[float, float, float, float] | None, sketched: bool
    ) -> EncodedQuery:
        """Encode a picture, or a box of it, in the same way as a crop.

        Args:
            sketched: make the sketch, too.

        Raises:
            BadParameter: the box lies outside the picture.
            TooLarge, NotAnImage, BrokenImage, Unavailable
        """
        crop, sketch = await asyncio.to_thread(self._cut_query, data, box, sketched)
        vectors = await self._encode_images(crop[np.newaxis])
        return EncodedQuery(vectors[0], sketch)

    async def encode_looks(self, data: bytes, looks: list[Look]) -> np.ndarray:
        """Encode several looks at a picture, at once: float32 `[len(looks), dimension]`.

        Raises:
            TooLarge, NotAnImage, BrokenImage, Unavailable
        """
        return await self._encode_crops(await asyncio.to_thread(self._cut_looks, data, looks))

    async def encode_text(self, text: str) -> np.ndarray:
        """Encode a text: float32 `[dimension]`.

        Raises:
            BadParameter: the encoder has no text tower.
        """
        return await self._encode_texts(text)

    async def ping(self) -> None:
        """Do nothing; an answer shows that the replica is ready."""

    async def _encode_crops(self, crops: np.ndarray) -> np.ndarray:
        # `serve.batch` refuses an item that is larger than a batch.
        size = self.encoder.settings.batch_size
        pieces = [crops[start : start + size] for start in range(0, len(crops), size)]
        return np.concatenate(await asyncio.gather(*map(self._encode_images, pieces)))

    def _cut_query(
        self, data: bytes, box: tuple[float, float, float, float] | None, sketched: bool
    ) -> tuple[np.ndarray, Sketch | None]:
        pixels = self._decode(data)
        height, width = pixels.shape[:2]
        if box is None:
            box = (0, 0, width, height)
        elif box[0] >= width or box[1] >= height or box[2] <= 0 or box[3] <= 0:
            raise BadParameter(
                f"The box {box} lies outside the picture, which has {width} x {height} pixels."
            )
        whole = outer_box(box, width, height)
        sketch = make_sketch(pixels, whole) if sketched else None
        return self._cut(pixels, Look(whole)), sketch

    def _cut_looks(self, data: bytes, looks: Sequence[Look]) -> np.ndarray:
        pixels = self._decode(data)
        return np.stack([self._cut(pixels, look) for look in looks])

    def _decode(self, data: bytes) -> np.ndarray:
        with self._decoding.working():
            return self.decoder.decode(data).pixels

    def _cut(self, pixels: np.ndarray, look: Look) -> np.ndarray:
        """Return what a look shows, at the size of a crop."""
        x1, y1, x2, y2 = look.part
        files, whole = self.encoder.files, torch.from_numpy(pixels)
        if look.mirrored or look.turned:
            part = pixels[y1:y2, x1:x2]
            part = part[:, ::-1] if look.mirrored else part
            whole = torch.from_numpy(np.rot90(part, -look.turned).copy())
            x1, y1, x2, y2 = 0, 0, whole.shape[1], whole.shape[0]
        return scale_crop(whole, (x1, y1, x2, y2), files.image_size, files.squash).numpy()

    def _encode_images_together(self, crops: list[np.ndarray]) -> list[np.ndarray | InsetError]:
        return self.encoder.encode_photos(list(map(torch.from_numpy, crops)))

    def _encode_texts_together(self, texts: list[str]) -> list[np.ndarray]:
        return list(self.encoder.encode_texts(texts))
