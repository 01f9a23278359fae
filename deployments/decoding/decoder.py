"""The decoder: hands files to processes of its own, and gets pixels back.

A file from outside may crash a decoder, hang it, or make it take all memory. In a process of its
own, within limits that the kernel enforces, it costs its own request an error and nobody else
anything. Several processes also decode faster than as many threads of one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from deployments.decoding.channel import Closed, Message, create_file, map_file, receive, send
from deployments.decoding.image import DecodedImage, check_bytes
from deployments.decoding.worker import ERRORS, OPENING_S, PATIENCE
from deployments.errors import BrokenImage, TooLarge, Unavailable
from deployments.limits import ImageLimits

ROOT = Path(__file__).parents[2]
WORKER = "deployments.decoding.worker"
MOST_PROCESSES = 16
START_S = 60
ENDING_S = 1  # that an idle process may take

# What a process is started with: one thread, and one heap, which keeps 64 MiB for the next image
# until the process is idle.
# With glibc's own numbers, each larger array would be new memory, that the kernel must fill first.
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(64 * 2**20),
}


class Decoder:
    """Decodes images in processes of its own. Any number of threads may use it.

    Processes start when they are needed, one for each core at most; they are kept, and replaced
    when they end.

    Args:
        limits: what is refused, and how much memory all processes together may take.

    Attributes:
        alive: how many processes there are.
        lost: how many crashed, took too long, or were killed.
    """

    def __init__(self, limits: ImageLimits) -> None:
        self.limits = limits
        self.processes = min(MOST_PROCESSES, max(2, os.cpu_count() or 1))
        self.alive = self.lost = 0
        self._idle: list[_Process] = []
        self._places = threading.Semaphore(self.processes)
        self._budget = _Budget(limits.decoding_bytes)
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start a process now, so that no request waits for it."""
        with self._lend():
            pass

    def decode(self, data: bytes) -> DecodedImage:
        """Decode an image, see `image.decode`.

        Returns:
            The image, whose pixels are in memory that was shared with the process.

        Raises:
            TooLarge: it exceeds the limits, or decoding takes too much memory or time.
            NotAnImage: the format is none that is read.
            BrokenImage: the bytes are incomplete or invalid, or crash the decoder.
            Unavailable: no process can be started now, or it was killed from outside.
        """
        check_bytes(data, self.limits)  # what is too large isn't copied to a process
        with self._lend() as process:
            declared = process.open(data, self.limits)
            with self._budget.of(declared["cost"]):
                return process.read(declared["pixels"])

    def close(self) -> None:
        """End the processes that are idle."""
        with self._lock:
            idle, self._idle = self._idle, []
            self.alive -= len(idle)
        for process in idle:
            process.end()

    @contextlib.contextmanager
    def _lend(self) -> Iterator[_Process]:
        with self._places:
            process = self._take_idle() or self._make()
            try:
                yield process
            finally:
                if process.is_ready:
                    with self._lock:
                        self._idle.append(process)
                else:
                    process.end()
                    with self._lock:
                        self.alive -= 1
                        self.lost += process.is_lost

    def _take_idle(self) -> _Process | None:
        with self._lock:
            while self._idle:
                process = self._idle.pop()
                if process.is_alive:
                    return process
                process.end()
                self.alive -= 1
                self.lost += 1
        return None

    def _make(self) -> _Process:
        process = _Process()
        with self._lock:
            self.alive += 1
        return process


class _Budget:
    """A number of bytes, of which each user takes some and gives them back, first come first."""

    def __init__(self, total: int) -> None:
        self._total = self._free = total
        self._turn = threading.Lock()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def of(self, amount: int) -> Iterator[None]:
        """Wait for an amount; who wants more than there is gets all of it."""
        amount = min(amount, self._total)
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._free >= amount)
            self._free -= amount
        try:
            yield
        finally:
            with self._changed:
                self._free += amount
                self._changed.notify_all()


class _Process:
    """A process that decodes one image after the other.

    Attributes:
        is_ready: it can take the next image. It can't while it decodes, nor when it has ended.
        is_lost: it ended while it decoded, or had to be ended.
    """

    def __init__(self) -> None:
        self._channel, other = socket.socketpair()
        self.is_ready, self.is_lost = True, False
        with other:
            command = [sys.executable, "-P", "-m", WORKER, str(other.fileno())]
            try:
                self._process = subprocess.Popen(
                    command,
                    env={**_inherited(), **ENVIRONMENT},
                    pass_fds=[other.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,  # libraries warn about each broken file
                )
            except OSError as error:
                self._channel.close()
                raise Unavailable(
                    f"No process that decodes images can be started ({error.strerror}): try again "
                    "later."
                ) from None
        self._channel.settimeout(START_S)
        try:
            receive(self._channel)
        except (Closed, TimeoutError):
            self.end()
            raise Unavailable(
                "The process that decodes images doesn't start: try again later."
            ) from None

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def open(self, data: bytes, limits: ImageLimits) -> Message:
        """Send a file. Return how many pixels it declares, and what decoding it costs, bytes."""
        self.is_ready = False
        self._seconds = OPENING_S
        file = create_file(len(data))
        try:
            _write(file, data)
            order = {
                "bytes": len(data),
                "max_bytes": limits.max_bytes,
                "max_pixels": limits.max_pixels,
                "seconds_per_megapixel": limits.seconds_per_megapixel,
            }
            declared = self._ask(order, file)
        finally:
            os.close(file)
        self._seconds = declared["seconds"]
        return declared

    def read(self, pixels: int) -> DecodedImage:
        """Let the process decode the file that it has opened."""
        file = create_file(3 * pixels)
        try:
            answer = self._ask({}, file)
            height, width = int(answer["height"]), int(answer["width"])
            memory = map_file(os.dup(file), 3 * pixels)
        finally:
            os.close(file)
        return DecodedImage(
            memory[: 3 * height * width].reshape(height, width, 3),
            answer["media_type"],
            answer["animated"],
            answer["skipped"],
            answer["facts"],
        )

    def _ask(self, message: Message, file: int) -> Message:
        # The kernel ends a process that takes too long. This is for one that doesn't run at all.
        self._channel.settimeout(2 * PATIENCE * self._seconds)
        try:
            send(self._channel, message, file)
            answer = receive(self._channel)[0]
        except (Closed, TimeoutError):
            raise self._failure() from None
        if "last" in answer:
            self.is_ready = not answer["last"]
        if "error" in answer:
            raise ERRORS[answer["error"]](answer["detail"])
        return answer

    def _failure(self) -> Exception:
        self.is_lost = True
        if self.end():
            return Unavailable("The process that decoded the image stood still: try again.")
        code = self._process.returncode
        if code in (-signal.SIGPROF, -signal.SIGALRM):
            return TooLarge(
                f"Decoding the image takes more than {self._seconds:.1f} s: save it anew, in a "
                "simpler form or smaller."
            )
        if code in (-signal.SIGTERM, -signal.SIGKILL):
            return Unavailable("The process that decoded the image was killed: try again.")
        return BrokenImage("The image can't be decoded: its decoder crashed.")

    def end(self) -> bool:
        """End the process, whatever it is doing; return whether it had to be killed."""
        self.is_ready = False
        self._channel.close()
        try:
            self._process.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return True
        return False


def _inherited() -> dict[str, str]:
    """Return what a process needs of the environment. Keys and tokens of a service stay out."""
    kept = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT")
    return {name: os.environ[name] for name in kept if name in os.environ}


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
