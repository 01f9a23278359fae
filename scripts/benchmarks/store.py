"""The store alone: how fast it takes photos, and what its disk could take.

Without Ray, in one process, made-up photos are put into a new store in groups of several sizes. As
in the Store's deployment, threads prepare a group while the one before it is committed. In turns
with that, the same bytes are written into a plain file, with one sync for each group. So the ratio
is that of two rates which were measured at the same time on the same disk.

The time of a photo is divided by what its threads did: `making` is CPU time of those that prepare,
`writing` is CPU time of the one that commits, `waiting` is what that one waited for the disk. All
cores should be idle before, because it also waits for these.
"""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.closed_loop import percentiles
from deployments.records import Chunk, EncodedPhoto, EncoderIdentity, Stored
from deployments.store.access import DATA
from deployments.store.deployment import PREPARING_THREADS
from deployments.store.operations import Prepared, Put, added_bytes
from deployments.store.store import Store

GROUPS = (1, 4, 32, 128, 512)  # photos
# Of a photo: bytes, and numbers of vectors and of their dimensions, about as they are in a service.
ORIGINAL, THUMBNAIL, PREVIEW = 180_000, 14_000, 35_000
CHUNKS, DIMENSION = 21, 256
# A turn of the store, or of the plain file, is at least so long. While the first group of a turn is
# prepared, nothing is committed.
TURN_PHOTOS, TURN_GROUPS = 64, 8
ENCODER = EncoderIdentity("made up", DIMENSION, "0" * 64)
COLUMNS = {
    "group": ("photos in a group", "{}"),
    "photos": ("photos", "{:,}"),
    "photos_per_second": ("photos/s", "{:,.0f}"),
    "megabytes_per_second": ("MB/s", "{:,.0f}"),
    "p50": ("commit p50, ms", "{:.1f}"),
    "p99": ("p99, ms", "{:.1f}"),
    "making_ms": ("making, ms/photo", "{:.3f}"),
    "writing_ms": ("writing", "{:.3f}"),
    "waiting_ms": ("waiting for the disk", "{:.3f}"),
    "plain_megabytes_per_second": ("plain file, MB/s", "{:,.0f}"),
    "ratio": ("store / plain file", "{:.2f}"),
    "on_disk": ("bytes on disk for a byte", "{:.3f}"),
}


def measure(groups: Sequence[int], seconds: float, folder: Path | None) -> list[dict[str, Any]]:
    """Put photos in groups.

    Args:
        groups: photos in a group; each number has a store of its own.
        seconds: how long each is measured, at least.
        folder: on the disk that is measured; None for that of temporary files.

    Returns:
        A row for each number.
    """
    rows = []
    for size in groups:
        with tempfile.TemporaryDirectory(prefix="store-", dir=folder) as made:
            rows.append(measure_group(Path(made), size, seconds))
    return rows


def measure_group(folder: Path, size: int, seconds: float) -> dict[str, Any]:
    """Put photos in groups of one size, and write as many bytes into a plain file."""
    photos = made_up_photos()
    count = max(TURN_GROUPS, TURN_PHOTOS // size)
    with (
        closing(Store(folder / "store", ENCODER)) as store,
        (folder / "plain").open("wb", buffering=0) as plain,
        ThreadPoolExecutor(PREPARING_THREADS) as threads,
    ):
        put = Turns(store, photos, threads)
        put.take(size, count)  # the file and the tree are small at first
        put.forget()
        before = bytes_on_disk(folder / "store" / DATA)
        plain_s = 0.0
        while put.seconds + plain_s < seconds or not plain_s:
            put.take(size, count)
            plain_s += write_plainly(plain.fileno(), put.sent // put.photos, size, count)
        on_disk = bytes_on_disk(folder / "store" / DATA) - before
    plain_rate = put.sent / plain_s
    return {
        "group": size,
        "photos": put.photos,
        "photos_per_second": put.photos / put.seconds,
        "megabytes_per_second": put.sent / put.seconds / 1e6,
        **percentiles([1000 * commit for commit in put.commits]),
        "making_ms": 1000 * put.making / put.photos,
        "writing_ms": 1000 * put.writing / put.photos,
        "waiting_ms": 1000 * (sum(put.commits) - put.writing) / put.photos,
        "plain_megabytes_per_second": plain_rate / 1e6,
        "ratio": put.sent / put.seconds / plain_rate,
        "on_disk": on_disk / put.sent,
    }


class Turns:
    """Puts groups of photos into a store, and adds up what they took.

    Attributes:
        photos: how many were put.
        sent: their bytes, with vectors and small pictures.
        seconds: all of the time.
        commits: seconds of each commit.
        making, writing: CPU seconds of the threads that prepare, and of the one that commits.
    """

    def __init__(self, store: Store, photos: Iterator[Put], threads: ThreadPoolExecutor) -> None:
        self._store, self._source, self._threads = store, photos, threads
        self.forget()

    def forget(self) -> None:
        """Begin to count anew."""
        self.photos = self.sent = 0
        self.seconds = self.making = self.writing = 0.0
        self.commits: list[float] = []

    def take(self, size: int, groups: int) -> None:
        """Put some groups of one size; the next one is prepared while one is committed."""
        began = time.perf_counter()
        following = self._prepare(size)
        for number in range(1, groups + 1):
            prepared = [future.result() for future in following]
            following = self._prepare(size) if number < groups else []
            self._commit([operation for operation, _ in prepared])
            self.making += sum(seconds for _, seconds in prepared)
        self.seconds += time.perf_counter() - began

    def _prepare(self, size: int) -> list[Future[tuple[Prepared, float]]]:
        def prepare(put: Put) -> tuple[Prepared, float]:
            began = time.thread_time()
            prepared = self._store.prepare(put)
            return prepared, time.thread_time() - began

        return [self._threads.submit(prepare, next(self._source)) for _ in range(size)]

    def _commit(self, operations: list[Prepared]) -> None:
        began, cpu = time.perf_counter(), time.thread_time()
        results = self._store.commit(operations)
        self.writing += time.thread_time() - cpu
        self.commits.append(time.perf_counter() - began)
        for operation, result in zip(operations, results, strict=True):
            if not isinstance(result, Stored):
                raise OSError(f"A photo was not stored: {result}")
            self.photos += 1
            self.sent += added_bytes(operation) or 0


def made_up_photos() -> Iterator[Put]:
    """Yield photos endlessly, no two with the same bytes."""
    original, thumbnail, preview = map(os.urandom, (ORIGINAL - 16, THUMBNAIL, PREVIEW))
    box = (100, 200, 1000, 2000)
    tiles = [Chunk(box=box, source="tile")] * (CHUNKS - 1)
    vectors = np.random.default_rng(0).standard_normal((CHUNKS, DIMENSION), np.float32)
    photo = EncodedPhoto(
        *(4000, 3000, "image/jpeg", False),
        [*tiles, Chunk(box=box, source="whole")],
        *(vectors, thumbnail, preview),
    )
    while True:
        one = uuid.uuid4()
        yield Put(one.hex, original + one.bytes, "photo.jpg", photo)


def write_plainly(file: int, photo_bytes: int, size: int, groups: int) -> float:
    """Append groups of photos to a file, with a sync after each; return the seconds."""
    photo = os.urandom(photo_bytes)
    began = time.perf_counter()
    for _ in range(groups):
        for _ in range(size):
            os.write(file, photo)
        os.fdatasync(file)
    return time.perf_counter() - began


def bytes_on_disk(file: Path) -> int:
    """Return what a file takes on its disk, bytes; holes take nothing."""
    return 512 * file.stat().st_blocks
