"""Vectors to the photos that own the nearest chunks. `engines` has the search itself."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.chunk_index.engines import ApproximateEngine, Engine, ExactEngine, Found
from deployments.chunk_index.snapshots import Snapshots
from deployments.compute.batching import batched
from deployments.compute.device import HUGE_PAGES_REPLICA, compute_threads, resolve_device
from deployments.errors import UnknownSequence
from deployments.metadata import Filter, MetadataColumns
from deployments.ranker import Ranker
from deployments.records import (
    Change,
    Changes,
    IndexState,
    Metadata,
    Neighbours,
    Position,
    RankedPhoto,
)
from deployments.settings import HEALTH_CHECK_S, ChunkIndexSettings
from deployments.store.format import content_hash

logger = logging.getLogger(__name__)

SEARCHES = 32  # most that are made together
# How long the store holds the answer when nothing changes. Stopping the service waits for it.
POLL_S = 2
RETRY_S = 0.5

# What waits to be built is built when there is so much of it, or when nothing has changed for a
# moment: a few chunks at a time take longer, each.
BUILD_CHUNKS = 1024
QUIET_S = 1
# A snapshot is written when so many chunks came or went, and this share of all; or when fewer did
# and nothing has changed for a minute. Writing it takes no more than a twentieth of the time. The
# log alone is read as quickly as a snapshot of an index that is smaller than this.
SNAPSHOT_CHUNKS = 10_000
SNAPSHOT_SHARE = 0.02
SNAPSHOT_QUIET_S = 60
SNAPSHOT_EVERY = 20
# Of removed photos the vectors stay until they are more than the others.
RENEWAL_CHUNKS = 10_000


class ChunkIndex:
    """Photos by id, found by the nearest of their chunks; safe to use from several threads.

    Args:
        dimension: length of a vector.
        engine: `exact` compares with all vectors, `approximate` walks a graph from 50,000 chunks
            on; `auto` is exact on a GPU, else approximate.
        device: `auto`, `cpu` or `cuda[:n]`; the graph is on the CPU.
        dtype: how the exact engine keeps vectors; see `ExactEngine`.
        expansion: how thoroughly the graph is searched; see `ApproximateEngine`.

    Attributes:
        engine: which one it is, `exact` or `approximate`.

    Raises:
        ValueError: an unknown engine, device or dtype.
    """

    def __init__(
        self,
        dimension: int,
        *,
        engine: str = "auto",
        device: str = "auto",
        dtype: str = "float16",
        expansion: int | None = None,
    ) -> None:
        self.dimension = dimension
        if engine == "auto":
            engine = "exact" if resolve_device(device).type == "cuda" else "approximate"
        self._engine: Engine
        if engine == "exact":
            self._engine = ExactEngine(dimension, device=device, dtype=dtype)
        elif engine == "approximate":
            self._engine = ApproximateEngine(dimension, expansion=expansion)
        else:
            raise ValueError(f"engine must be auto, exact or approximate, not {engine!r}")
        self.engine = engine
        self._numbers: dict[str, int] = {}  # of the photos that are here
        self._ids: list[str | None] = []  # by number; None: removed
        self._here = np.zeros(0, bool)  # by number, and room for more
        self._hashes: list[int] = []  # by number; of the content
        self._digest = 0
        self._columns = MetadataColumns()
        self._removed = 0  # chunks whose photo was removed
        self._lock = threading.Lock()

    @property
    def kind(self) -> dict[str, object]:
        """What must be the same for `load` to read what was saved."""
        return {"engine": type(self._engine).__name__, "dimension": self.dimension}

    @property
    def photos(self) -> int:
        """Number of photos."""
        return len(self._numbers)

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return self._engine.starts.rows - self._removed

    @property
    def removed(self) -> int:
        """Number of chunks that are no longer found, but still take memory."""
        return self._removed

    @property
    def waiting(self) -> int:
        """Number of chunks that `build` has yet to work on."""
        return self._engine.waiting

    @property
    def digest(self) -> str:
        """What all photos and their vectors amount to, in any order: 16 hexadecimal digits."""
        return f"{self._digest:016x}"

    def put(self, id: str, vectors: np.ndarray, metadata: Metadata | None = None) -> None:
        """Add a photo, or replace it.

        Args:
            vectors: `[n, dimension]`, n at least 1, L2-normalised; kept as float16 at best.

        Raises:
            ValueError: vectors of another shape.
        """
        vectors = np.asarray(vectors, np.float16)
        if vectors.ndim != 2 or vectors.shape[1] != self.dimension or not len(vectors):
            raise ValueError(f"vectors must be [n, {self.dimension}], not {list(vectors.shape)}")
        content = content_hash(id, vectors)
        with self._lock:
            self._remove(id)
            number = len(self._ids)
            self._engine.append(vectors)
            self._columns.put(number, metadata or {})
            self._ids.append(id)
            if number >= len(self._here):
                self._here = np.concatenate([self._here, np.zeros(max(number, 1024), bool)])
            self._here[number] = True
            self._hashes.append(content)
            self._numbers[id] = number
            self._digest = (self._digest + content) % 2**64

    def remove(self, id: str) -> None:
        """Forget a photo; one that isn't there is no error."""
        with self._lock:
            self._remove(id)

    def _remove(self, id: str) -> None:
        number = self._numbers.pop(id, None)
        if number is not None:
            self._ids[number] = None
            self._here[number] = False
            self._columns.remove(number)
            self._removed += self._engine.starts[number + 1] - self._engine.starts[number]
            self._digest = (self._digest - self._hashes[number]) % 2**64

    def search(
        self, queries: np.ndarray, count: int, filter: Filter | None = None
    ) -> list[Neighbours]:
        """Find the photos nearest to each query: those with the nearest chunks.

        Args:
            queries: float32 `[q, dimension]`, L2-normalised.
            count: how many photos to find.
            filter: photos that don't match it don't count.
        """
        with self._lock:
            found = self._engine.search(queries, count, self._allowed(filter))
            return [self._measure(*pair) for pair in zip(queries, found, strict=True)]

    def _allowed(self, filter: Filter | None) -> np.ndarray | None:
        if filter is None and not self._removed:
            return None
        here = self._here[: len(self._ids)]
        return here if filter is None else here & self._columns.select(filter, len(self._ids))

    def _measure(self, query: np.ndarray, found: Found) -> Neighbours:
        """Compare the query with all chunks of what was found."""
        horizon = (
            float(_distances(np.float64(found.horizon))) if np.isfinite(found.horizon) else np.inf
        )
        if not len(found.photos):
            return Neighbours([], [], horizon)
        numbers = np.sort(found.photos)
        distances = _distances(self._engine.vectors(numbers) @ query)
        ends = np.cumsum(self._engine.starts.of(numbers)[1]).tolist()
        return Neighbours(
            [self._ids[number] for number in numbers.tolist()],
            [distances[start:end] for start, end in pairwise([0, *ends])],
            horizon,
        )

    def build(self) -> bool:
        """Do a little of the work that makes searches faster; returns whether there is more.

        Only one thread may build and save.
        """
        with self._lock:
            more = self._engine.build()
        time.sleep(
            0.0005
        )  # a lock is taken, not handed on: searches that wait need a moment for it
        return more

    def saver(self) -> Callable[[Path], None]:
        """Return a function that writes the index as it is now into an empty folder.

        It may run while others put, remove and search, but not beside `build`.
        """
        with self._lock:
            save_engine = self._engine.saver()
            ids, hashes = list(self._ids), np.array(self._hashes, np.uint64)
            columns = copy.deepcopy(self._columns)

        def save(folder: Path) -> None:
            save_engine(folder)
            (folder / "ids.json").write_text(json.dumps(ids))
            np.save(folder / "hashes.npy", hashes)
            columns.save(folder / "metadata.npz")

        return save

    def load(self, folder: Path) -> None:
        """Read what was saved into an empty index.

        Raises:
            OSError, ValueError, KeyError, RuntimeError: it isn't there, or isn't whole. The index
                can't be used then.
        """
        with self._lock:
            self._engine.load(folder)
            self._ids = json.loads((folder / "ids.json").read_text())
            self._hashes = np.load(folder / "hashes.npy").tolist()
            self._columns = MetadataColumns.load(folder / "metadata.npz")
            self._numbers = {id: n for n, id in enumerate(self._ids) if id is not None}
            if len(self._ids) != self._engine.starts.photos:
                raise ValueError("its parts don't belong together")
            self._here = np.array([id is not None for id in self._ids], bool)
            here = self._here.nonzero()[0]
            self._removed = self._engine.starts.rows - int(self._engine.starts.of(here)[1].sum())
            self._digest = sum(self._hashes[number] for number in here) % 2**64


def _distances(similarities: np.ndarray) -> np.ndarray:
    """Cosine distances, rounded: the last bits depend on how many queries went together,
    and equal pictures should tie.
    """
    return np.clip(1 - similarities.astype(np.float64), 0, 2).round(6)


@serve.deployment(
    name="ChunkIndex",
    max_ongoing_requests=256,
    health_check_period_s=HEALTH_CHECK_S,
    ray_actor_options=HUGE_PAGES_REPLICA,
)
class ChunkIndexDeployment:
    """A `ChunkIndex` that loads from a snapshot and the store, and then follows the store's log;
    with the `Ranker` that makes photos of its chunks.
    """

    async def __init__(
        self,
        settings: ChunkIndexSettings,
        dimension: int,
        ranker: Ranker,
        store: DeploymentHandle,
    ) -> None:
        self.store = store
        self.ranker = ranker
        self._make = lambda: ChunkIndex(
            dimension,
            engine=settings.engine,
            device=settings.device,
            dtype=settings.dtype,
            expansion=settings.expansion,
        )
        self._snapshots = Snapshots(settings.path, self._make().kind)
        self._name = uuid.uuid4().hex  # what the store knows this replica by
        self._snapshot: Position | None = None  # where it would begin again
        self._moved = asyncio.Condition()
        self._polls = 0  # how many have begun
        self._search = batched(self._search_batch, max_batch_size=SEARCHES)
        self._searcher = compute_threads(None)
        self._builder = compute_threads(None)
        self.index, self.position = await self._start()
        # Chunks that came, went or were linked since the snapshot.
        self._unsaved = 0 if self._snapshot else self.index.chunks
        self._changed_at = self._save_after = time.monotonic()
        self._heard = (
            0,
            self.position.sequence,
        )  # the number of a poll, and the store's last change
        self._tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._maintain())]

    async def rank(
        self,
        query: np.ndarray,
        limit: int,
        max_distance: float,
        max_chunks: int,
        sequence: int,
        filter: Filter | None,
    ) -> tuple[list[RankedPhoto], int]:
        """Rank the photos nearest to a query, once the store's change `sequence` is known here.

        Args:
            query: float32 `[dimension]`, L2-normalised.
            limit, max_distance, max_chunks: see `Ranker.rank`.
            filter: photos that don't match it don't count.

        Returns:
            The photos, and the change up to which everything was known.

        Raises:
            UnknownSequence: the store has no such change.
        """
        async with self._moved:
            polls = self._polls

            def is_missing() -> bool:
                # Only the answer to a question that was asked since then can tell.
                poll, last = self._heard
                return poll > polls and last < sequence

            await self._moved.wait_for(lambda: self.position.sequence >= sequence or is_missing())
            known = self.position.sequence
        if known < sequence:
            raise UnknownSequence(
                f"The change {sequence} has not happened: the store's last change is {known}."
            )

        async def fetch(count: int) -> Neighbours:
            return await self._search((query, count, filter))

        return await self.ranker.rank(fetch, limit, max_distance, max_chunks), known

    async def stats(self) -> IndexState:
        """Return what is loaded."""
        index = self.index
        return IndexState(
            engine=index.engine,
            photos=index.photos,
            chunks=index.chunks,
            sequence=self.position.sequence,
            digest=index.digest,
            waiting=index.waiting,
            removed=index.removed,
            snapshot=self._snapshot.sequence if self._snapshot else None,
        )

    async def ping(self) -> None:
        """Answer, to show that it can."""

    async def check_health(self) -> None:
        """Tell Serve to replace a replica that no longer follows the store."""
        for task in self._tasks:
            if task.done():
                raise RuntimeError("a task of the chunk index has ended") from task.exception()

    async def _search_batch(
        self, items: list[tuple[np.ndarray, int, Filter | None]]
    ) -> list[Neighbours]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._searcher, _search_together, self.index, items)

    # Following the store

    async def _start(self) -> tuple[ChunkIndex, Position]:
        """Load the newest snapshot, then what the store has that it lacks."""
        index = self._make()
        position = await asyncio.to_thread(self._snapshots.read, index.load)
        self._snapshot = position
        return await self._catch_up(index if position else self._make(), position)

    async def _catch_up(
        self, index: ChunkIndex, position: Position | None
    ) -> tuple[ChunkIndex, Position]:
        """Apply the store's changes to an index until there are no more."""
        while True:
            changes = await self._ask(position, wait_s=0)
            if changes.anew and position is not None:
                logger.warning(
                    "the store is another one, or has forgotten what was removed since: "
                    "loading all of it"
                )
                index = self._make()
            await asyncio.to_thread(_apply, index, changes.changes)
            position = changes.position
            if position.sequence >= changes.last:
                return index, position

    async def _ask(self, position: Position | None, wait_s: float) -> Changes:
        return await self.store.changes.remote(position, wait_s, self._name, self._snapshot)

    async def _follow(self) -> None:
        while True:
            try:
                await self._advance()
            except Exception:  # the store is being restarted: it is the truth, so wait for it
                logger.warning("can't read the store's log, trying again", exc_info=True)
                await asyncio.sleep(RETRY_S)

    async def _advance(self) -> None:
        """Apply the store's next changes, or find out that there are none."""
        index, asked = self.index, self.position
        self._polls += 1
        poll = self._polls
        changes = await self._ask(asked, POLL_S)
        if changes.anew:
            index, position = await self._catch_up(self._make(), None)
            self._unsaved = index.chunks
        else:
            await asyncio.to_thread(_apply, index, changes.changes)
            position = changes.position
        if changes.changes:
            self._changed_at = time.monotonic()
            self._unsaved += sum(
                1 if change.vectors is None else len(change.vectors) for change in changes.changes
            )
        if self.position is asked:  # else the index has been renewed meanwhile: ask again for it
            self._heard = poll, changes.last
            await self._show(index, position)

    async def _show(self, index: ChunkIndex, position: Position) -> None:
        async with self._moved:
            self.index, self.position = index, position
            self._moved.notify_all()

    # Maintenance

    async def _maintain(self) -> None:
        while True:
            try:
                if not await self._work():
                    await asyncio.sleep(0.2)
            except Exception as error:  # searches are right without it, only slower
                logger.warning("can't maintain the index, trying again: %s", error, exc_info=True)
                await asyncio.sleep(RETRY_S)

    async def _work(self) -> bool:
        """Build, save or renew, if it is time to; returns whether there may be more."""
        index, quiet_s = self.index, time.monotonic() - self._changed_at
        if self._must_save(index, quiet_s):
            await self._save(index)
        elif index.waiting >= BUILD_CHUNKS or (index.waiting and quiet_s >= QUIET_S):
            return await self._build(index)
        elif index.removed > max(index.chunks, RENEWAL_CHUNKS):
            await self._renew()
        else:
            return False
        return True

    async def _run(self, work: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._builder, work, *args)

    async def _build(self, index: ChunkIndex) -> bool:
        waiting = index.waiting
        more = await self._run(index.build)
        self._unsaved += max(0, waiting - index.waiting)
        return more

    def _must_save(self, index: ChunkIndex, quiet_s: float) -> bool:
        if index.chunks < SNAPSHOT_CHUNKS or not self._unsaved:
            return False
        if time.monotonic() < self._save_after:
            return False
        many = max(SNAPSHOT_CHUNKS, SNAPSHOT_SHARE * index.chunks)
        return self._unsaved >= many or quiet_s >= SNAPSHOT_QUIET_S

    async def _save(self, index: ChunkIndex) -> None:
        # Taken first: what is applied from here on may be in the snapshot or not, and is read from
        # the log again.
        position, unsaved, begun = self.position, self._unsaved, time.monotonic()
        try:
            written = await self._run(self._snapshots.write, index.saver(), position)
        except (OSError, RuntimeError) as error:  # the latter are FAISS's
            logger.warning("can't write a snapshot of the index, trying again later: %s", error)
            self._save_after = time.monotonic() + SNAPSHOT_QUIET_S
            return
        if written:
            self._snapshot = position
        self._unsaved -= unsaved
        now = time.monotonic()
        self._save_after = now + SNAPSHOT_EVERY * (now - begun)

    async def _renew(self) -> None:
        """Load everything anew beside the index, without what was removed, then take its place."""
        logger.info("most chunks of the index were removed: making a new one")
        index, position = await self._catch_up(self._make(), None)
        while await self._build(index):
            pass
        while position.sequence < self.position.sequence:
            index, position = await self._catch_up(index, position)
        self._unsaved = index.chunks
        await self._show(index, position)


def _apply(index: ChunkIndex, changes: Sequence[Change]) -> None:
    for change in changes:
        if change.vectors is None:
            index.remove(change.id)
        else:
            index.put(change.id, change.vectors, change.metadata)


def _search_together(
    index: ChunkIndex, items: Sequence[tuple[np.ndarray, int, Filter | None]]
) -> list[Neighbours]:
    """Search the queries that have a filter in common at once."""
    answers: list[Neighbours | None] = [None] * len(items)
    for filter in {filter for _, _, filter in items}:
        places = [place for place, item in enumerate(items) if item[2] == filter]
        queries = np.stack([items[place][0] for place in places])
        count = max(items[place][1] for place in places)
        for place, found in zip(places, index.search(queries, count, filter), strict=True):
            answers[place] = found
    return answers
