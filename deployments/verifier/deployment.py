"""The verifier as a deployment, which fetches the previews of photos from the store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain

import cv2
from ray import serve

from deployments.compute.previews import make_preview
from deployments.compute.replicas import count_cores
from deployments.decoding.decoder import Decoder
from deployments.errors import InsetError, StoreFull
from deployments.handles import StoreHandle
from deployments.limits import ImageLimits
from deployments.logs import join_the_log
from deployments.metrics import Stage, measure_decoder
from deployments.records import Preview
from deployments.settings import HEALTH_CHECK_S
from deployments.verification import Candidate, Sighting, Sketch, Verdict
from deployments.verifier.verifier import Verifier

logger = logging.getLogger(__name__)

AT_ONCE = 32  # previews in one answer of the store: about 1 MB


@serve.deployment(
    name="Verifier",
    max_ongoing_requests=64,
    max_queued_requests=256,
    health_check_period_s=HEALTH_CHECK_S,
    ray_actor_options={"num_cpus": 0},
)
class VerifierDeployment:
    """A `Verifier` that looks at the previews of photos.

    Args:
        limits: of the originals of which missing previews are made.
        store: has the previews.
    """

    def __init__(self, limits: ImageLimits, store: StoreHandle) -> None:
        join_the_log()
        cv2.setNumThreads(1)  # each search has a thread of its own
        self.decoder = Decoder(limits)
        self.store = store
        self.verifier = Verifier()
        self._threads = ThreadPoolExecutor(count_cores(), thread_name_prefix="verify")
        self._verifying = Stage("verify")
        self._previewing = Stage("preview")
        measure_decoder(self.decoder)

    async def verify(
        self, sketch: Sketch, candidates: list[Candidate], everything: bool
    ) -> Verdict:
        """See `Verifier.verify`."""
        previews = await self._fetch(candidates)
        return await self._verifying.run(
            self._threads,
            lambda: self.verifier.verify(sketch, candidates, previews, everything=everything),
        )

    async def verify_again(
        self, sketch: Sketch, candidates: list[Candidate]
    ) -> dict[str, Sighting]:
        """See `Verifier.verify_again`."""
        previews = await self._fetch(candidates)
        return await self._verifying.run(
            self._threads, lambda: self.verifier.verify_again(sketch, candidates, previews)
        )

    async def ping(self) -> None:
        """Do nothing; an answer shows that the replica is ready."""

    async def _fetch(self, candidates: Sequence[Candidate]) -> dict[str, Preview]:
        """Return the previews of candidates by id, without those of photos that have changed."""
        expected = {candidate.id: candidate.sha256 for candidate in candidates}
        ids = list(expected)
        groups = [ids[start : start + AT_ONCE] for start in range(0, len(ids), AT_ONCE)]
        answers = await asyncio.gather(*(self.store.previews.remote(group) for group in groups))
        found = dict(zip(ids, chain(*answers), strict=True))
        complete = await asyncio.gather(
            *(
                self._complete(id, preview)
                for id, preview in found.items()
                if preview is not None and preview.sha256 == expected[id]
            )
        )
        return {id: preview for id, preview in complete if preview is not None}

    async def _complete(self, id: str, preview: Preview) -> tuple[str, Preview | None]:
        """Make a preview that is missing, and keep it if there is room."""
        if preview.data is not None:
            return id, preview
        try:
            original = await self.store.original.remote(id)
            data = await self._previewing.run(
                self._threads, lambda: make_preview(self.decoder.decode(original).pixels)
            )
        except InsetError as error:
            logger.warning("the photo %r can't be looked at: %s", id, error.detail)
            return id, None
        try:
            await self.store.keep_preview.remote(id, preview.sha256, data)
        except StoreFull as error:
            logger.warning(
                "the preview of %r can't be stored and will be made again: %s", id, error.detail
            )
        return id, replace(preview, data=data)
