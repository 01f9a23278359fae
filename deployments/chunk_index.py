"""Vectors to nearest chunks, grouped by photo: exact cosine search."""

from __future__ import annotations

import asyncio
import logging
import threading

import numpy as np
import torch
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.device import DTYPES, compute_thread, resolve_device
from deployments.records import IndexState, Neighbours
from deployments.settings import ChunkIndexSettings

logger = logging.getLogger(__name__)

# How long the store holds the answer when nothing changes. Stopping the service waits for it.
POLL_S = 2
RETRY_S = 0.5


class ChunkIndex:
    """All chunk vectors in one matrix, searched exactly; safe to use from several threads.

    Args:
        dimension: length of a vector.
        device: `auto`, `cpu` or `cuda[:n]`: where the matrix lies and is multiplied.
        dtype: how it is kept. float32 is exact; bfloat16 and float16 take half the memory and
            round distances by about 0.004 and 0.0005.
    """

    def __init__(self, dimension: int, *, device: str = "auto", dtype: str = "float32") -> None:
        self.dimension = dimension
        self.device = resolve_device(device)
        self._vectors = torch.zeros(0, dimension, dtype=DTYPES[dtype], device=self.device)
        self._owners = np.zeros(0, dtype=object)  # the photo of each row; None: the row is free
        self._used = 0  # rows from here on were never used
        self._rows: dict[str, np.ndarray] = {}
        self._free: list[int] = []
        self._lock = threading.Lock()

    @property
    def photos(self) -> int:
        """Number of photos."""
        return len(self._rows)

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return self._used - len(self._free)

    def put(self, photo: str, vectors: np.ndarray) -> None:
        """Add a photo's chunks, or replace them.

        Args:
            vectors: float `[n, dimension]`, L2-normalised.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.dimension:
            raise ValueError(f"vectors must be [n, {self.dimension}], not {list(vectors.shape)}")
        with self._lock:
            self._remove(photo)
            rows = self._take_rows(len(vectors))
            # A copy: the matrix must not follow what the caller does with its array.
            self._vectors[torch.from_numpy(rows)] = torch.tensor(vectors).to(self._vectors)
            self._owners[rows] = photo
            self._rows[photo] = rows

    def remove(self, photo: str) -> None:
        """Forget a photo; one that isn't there is no error."""
        with self._lock:
            self._remove(photo)

    def clear(self) -> None:
        """Forget all photos."""
        with self._lock:
            for photo in list(self._rows):
                self._remove(photo)

    def search(self, queries: np.ndarray, k: int) -> list[Neighbours]:
        """Find the photos of the `k` nearest chunks of each query, with one matrix product.

        Args:
            queries: float32 `[q, dimension]`, L2-normalised.
            k: how many chunks to fetch; photos come with all of their chunks.

        Returns:
            One `Neighbours` for each query.
        """
        with self._lock:
            if not self._rows:
                return [Neighbours([], [], float("inf")) for _ in queries]
            vectors = self._vectors[: self._used]
            similarities = (torch.tensor(queries).to(vectors) @ vectors.T).float()
            similarities[:, self._free] = -torch.inf
            k = min(k, self.chunks)
            nearest, rows = similarities.topk(k)
            horizons = _distances(nearest[:, -1].cpu())
            if k == self.chunks:
                horizons[:] = np.inf
            return [
                self._group(*found)
                for found in zip(similarities, rows.cpu().numpy(), horizons, strict=True)
            ]

    def _group(self, similarities: torch.Tensor, rows: np.ndarray, horizon: float) -> Neighbours:
        photos = list(dict.fromkeys(self._owners[rows]))
        groups = [self._rows[photo] for photo in photos]
        gathered = similarities[torch.from_numpy(np.concatenate(groups)).to(self.device)]
        ends = np.cumsum([len(group) for group in groups])[:-1]
        return Neighbours(photos, np.split(_distances(gathered.cpu()), ends), float(horizon))

    def _remove(self, photo: str) -> None:
        rows = self._rows.pop(photo, None)
        if rows is not None:
            self._owners[rows] = None
            self._free.extend(rows.tolist())

    def _take_rows(self, count: int) -> np.ndarray:
        reused = [self._free.pop() for _ in range(min(count, len(self._free)))]
        fresh = range(self._used, self._used + count - len(reused))
        self._used = fresh.stop
        if self._used > len(self._owners):
            self._grow(max(self._used, 2 * len(self._owners)))
        return np.array([*reused, *fresh], dtype=np.int64)

    def _grow(self, capacity: int) -> None:
        vectors = self._vectors.new_zeros(capacity, self.dimension)
        vectors[: len(self._vectors)] = self._vectors
        owners = np.full(capacity, None, dtype=object)
        owners[: len(self._owners)] = self._owners
        self._vectors, self._owners = vectors, owners


def _distances(similarities: torch.Tensor) -> np.ndarray:
    """Cosine distances, rounded: the last bits depend on how many queries went together,
    and equal pictures should tie.
    """
    return np.clip(1 - similarities.double().numpy(), 0, 2).round(6)


@serve.deployment(name="ChunkIndex", max_ongoing_requests=256, ray_actor_options={"num_cpus": 0})
class ChunkIndexDeployment:
    """A `ChunkIndex` that loads from the store when it starts and then follows its log."""

    async def __init__(
        self, settings: ChunkIndexSettings, dimension: int, store: DeploymentHandle
    ) -> None:
        self.index = ChunkIndex(dimension, device=settings.device, dtype=settings.dtype)
        self.store = store
        self.sequence = 0
        self._moved = asyncio.Condition()
        self._thread = compute_thread(None)
        while await self._advance(wait_s=0):
            pass  # a search that comes before everything is loaded would miss photos
        self._follower = asyncio.create_task(self._follow())

    async def search(self, query: np.ndarray, k: int, sequence: int) -> tuple[Neighbours, int]:
        """Search one query among others, once the store's change `sequence` is known here.

        Args:
            query: float32 `[dimension]`, L2-normalised.
            k: how many chunks to fetch.

        Returns:
            What was found, and the change up to which everything was known.
        """
        async with self._moved:
            await self._moved.wait_for(lambda: self.sequence >= sequence)
            known = self.sequence
        return await self._search((query, k)), known

    async def stats(self) -> IndexState:
        """Return what is loaded."""
        return IndexState(
            photos=self.index.photos, chunks=self.index.chunks, sequence=self.sequence
        )

    async def ping(self) -> None:
        """Answer, to show that it can."""

    async def check_health(self) -> None:
        """Tell Serve to replace a replica that no longer follows the store."""
        if self._follower.done():
            raise RuntimeError("the follower of the store's log has ended") from (
                self._follower.exception()
            )

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0)
    async def _search(self, items: list[tuple[np.ndarray, int]]) -> list[Neighbours]:
        queries, ks = zip(*items, strict=True)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._thread, self.index.search, np.stack(queries), max(ks)
        )

    async def _follow(self) -> None:
        while True:
            try:
                await self._advance(POLL_S)
            except Exception:  # the store is being restarted: it is the truth, so wait for it
                logger.warning("can't read the store's log, trying again", exc_info=True)
                await asyncio.sleep(RETRY_S)

    async def _advance(self, wait_s: float) -> bool:
        """Apply the store's next changes; returns whether there were any."""
        changes, reached = await self.store.changes.remote(self.sequence, wait_s)
        if reached < self.sequence:
            logger.warning("the store is older than this index (restored?): loading it anew")
            self.index.clear()
        for change in changes:
            if change.vectors is None:
                self.index.remove(change.id)
            else:
                self.index.put(change.id, change.vectors)
        advanced = reached != self.sequence
        async with self._moved:
            self.sequence = reached
            self._moved.notify_all()
        return advanced
