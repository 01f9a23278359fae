"""Decode JPEGs ahead on all cores, into memory that a GPU reads directly."""

from __future__ import annotations

import itertools
import mmap
import multiprocessing
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.pool import AsyncResult
from typing import TypeVar

import numpy as np
import torch

from deployments.compute.device import pinned
from deployments.decoding.image import decode
from deployments.limits import ImageLimits

AHEAD = 4  # batches
PIECE = 4  # photos that a worker is given at a time

LIMITS = ImageLimits()
# Endless batches of photos, each uint8 `[height, width, 3]`. A batch is overwritten when the next
# but one is asked for.
Batches = Iterator[list[np.ndarray]]
ClosableBatches = Generator[list[np.ndarray], None, None]
Work = TypeVar("Work")


class Threads:
    """Decode in threads of this process.

    Args:
        photos: encoded; they are decoded again and again.
        workers: number of threads or processes.
        batch: photos of a batch.
    """

    def __init__(self, photos: Sequence[bytes], workers: int, batch: int) -> None:
        self.photos = photos
        self.batch = batch
        self.pool = ThreadPoolExecutor(workers)

    def batches(self, device: torch.device) -> ClosableBatches:
        """Decode for a device, until the generator is closed."""

        def piece(numbers: Sequence[int]) -> list[np.ndarray]:
            return [pinned(decode(self.photos[n], LIMITS).pixels, device) for n in numbers]

        def start(number: int) -> list[Future]:
            pieces = _pieces(number, self.batch, len(self.photos))
            return [self.pool.submit(piece, numbers) for numbers in pieces]

        def finish(futures: list[Future]) -> list[np.ndarray]:
            return [photo for future in futures for photo in future.result()]

        yield from _ahead(start, finish)

    def close(self) -> None:
        """End the threads."""
        self.pool.shutdown(cancel_futures=True)


class Processes:
    """Decode in processes of their own, and do nothing else there.

    They write into shared memory, and have the photos in their own, because they are copies of this
    process. So they should be made before it computes anything.

    Args:
        photos: encoded; they are decoded again and again.
        workers: number of threads or processes.
        batch: photos of a batch.
    """

    def __init__(self, photos: Sequence[bytes], workers: int, batch: int) -> None:
        self.photos = photos
        self.batch = batch
        largest = max(decode(photo, LIMITS).pixels.size for photo in photos)
        self.shared = mmap.mmap(-1, (AHEAD + 2) * batch * largest)
        self.slots = np.frombuffer(self.shared, np.uint8).reshape(-1, largest)
        # Forked: spawned ones would each load torch, and know neither photos nor memory.
        context = multiprocessing.get_context("fork")
        self.pool = context.Pool(workers, _be_worker, (photos, self.slots))

    def batches(self, device: torch.device) -> ClosableBatches:
        """Decode for a device, until the generator is closed."""
        if device.type == "cuda":
            address, size = self.slots.ctypes.data, self.slots.nbytes
            torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(address, size, 0))

        def start(number: int) -> list[AsyncResult]:
            first = number % (AHEAD + 2) * self.batch
            pieces = _pieces(number, self.batch, len(self.photos))
            return [
                self.pool.apply_async(_decode_into, (first + place * PIECE, numbers))
                for place, numbers in enumerate(pieces)
            ]

        def finish(results: list[AsyncResult]) -> list[np.ndarray]:
            written = [one for result in results for one in result.get()]
            return [self.slots[slot, : np.prod(shape)].reshape(shape) for slot, shape in written]

        try:
            yield from _ahead(start, finish)
        finally:
            if device.type == "cuda":
                torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(address))

    def close(self) -> None:
        """End the processes."""
        self.pool.terminate()
        self.pool.join()


Decoders = Threads | Processes
DECODERS: dict[str, type[Threads] | type[Processes]] = {"threads": Threads, "processes": Processes}


def _ahead(
    start: Callable[[int], Work], finish: Callable[[Work], list[np.ndarray]]
) -> ClosableBatches:
    """Yield batch after batch while the next ones are decoded; when closed, wait for these."""
    started: deque[Work] = deque()
    try:
        for number in itertools.count():
            started.append(start(number))
            if len(started) > AHEAD:
                yield finish(started.popleft())
    finally:
        for work in started:
            finish(work)


def _pieces(number: int, batch: int, photos: int) -> Iterator[list[int]]:
    """Yield the numbers of the photos of a batch, some at a time."""
    for first in range(0, batch, PIECE):
        places = range(first, min(first + PIECE, batch))
        yield [(number * batch + place) % photos for place in places]


# Of a worker process: the photos, and the memory it writes to.
_worker: tuple[Sequence[bytes], np.ndarray]


def _be_worker(photos: Sequence[bytes], slots: np.ndarray) -> None:
    global _worker
    _worker = photos, slots


def _decode_into(first: int, numbers: Sequence[int]) -> list[tuple[int, tuple[int, int, int]]]:
    """Decode photos into the slots from a number on; return slots and shapes."""
    photos, slots = _worker
    done = []
    for slot, number in enumerate(numbers, first):
        pixels = decode(photos[number], LIMITS).pixels
        slots[slot, : pixels.size] = pixels.ravel()
        done.append((slot, pixels.shape))
    return done
