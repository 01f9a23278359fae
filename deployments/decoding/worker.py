"""A process that decodes images, one at a time, within limits that the kernel enforces.

    python -m deployments.decoding.worker DESCRIPTOR

The descriptor is of a socket on which a `Decoder` sends files. For each file the process says what
it would take to decode it, waits for the memory that the pixels go to, decodes, and says what it
has decoded. It imports Pillow and NumPy and nothing else, so it starts quickly and is small.
"""

from __future__ import annotations

import contextlib
import resource
import select
import signal
import socket
import sys
import warnings
from collections.abc import Iterator

from deployments.decoding.channel import Closed, map_file, receive, send
from deployments.decoding.image import DecodedImage, open_image
from deployments.errors import BrokenImage, InsetError, NotAnImage, TooLarge
from deployments.limits import ImageLimits
from deployments.memory import give_back

# Address space for what isn't counted: headers, tables, libraries that a plugin loads.
SLACK = 256 * 2**20
GROWN = 128 * 2**20  # a process that has grown by so much ends itself: a decoder has leaked
IDLE_S = 1.0  # after which a process gives back what it keeps for the next image
OPENING_S = 1.0  # CPU time for the headers
PATIENCE = 10  # seconds that may pass for each second of CPU time: the machine has other work

ERRORS = {error.__name__: error for error in (BrokenImage, NotAnImage, TooLarge)}


def serve(channel: socket.socket) -> None:
    """Say hello, and decode what is sent until nobody sends anything more."""
    at_first = _resident()
    with contextlib.suppress(Closed):
        send(channel, {})
        while True:
            if not select.select([channel], [], [], IDLE_S)[0]:
                give_back()
            answer = _decode(channel)
            answer["last"] = _resident() > at_first + GROWN
            send(channel, answer)
            if answer["last"]:
                break


def _decode(channel: socket.socket) -> dict[str, object]:
    """Receive a file, decode it into the memory that is sent for it, and return the answer."""
    order, file = receive(channel)
    if file is None:
        raise Closed
    data = map_file(file, order["bytes"]).tobytes()
    limits = ImageLimits(order["max_bytes"], order["max_pixels"])
    try:
        with _within(len(data), OPENING_S):
            opened = open_image(data, limits)
        pixels = opened.pixels_declared
        slowness = order["seconds_per_megapixel"] * opened.format.slowness
        seconds = OPENING_S + slowness * pixels / 1e6
        send(channel, {"pixels": pixels, "cost": opened.cost, "seconds": seconds})
        _, file = receive(channel)
        if file is None:
            raise Closed
        memory = map_file(file, 3 * pixels)
        with _within(opened.cost, seconds):
            image = opened.read(memory.reshape)
    except InsetError as error:
        return _refusal(error)
    except Closed:
        raise
    except MemoryError:
        return _refusal(TooLarge("Decoding the image takes too much memory: scale it down."))
    except Exception as error:  # a fault of ours costs this file, and no other
        return _refusal(BrokenImage(f"The image can't be decoded: {type(error).__name__}."))
    return _describe(image)


def _describe(image: DecodedImage) -> dict[str, object]:
    height, width = image.pixels.shape[:2]
    return {
        "height": height,
        "width": width,
        "media_type": image.media_type,
        "animated": image.animated,
        "skipped": image.skipped,
        "facts": image.facts,
    }


def _refusal(error: InsetError) -> dict[str, object]:
    return {"error": type(error).__name__, "detail": error.detail}


@contextlib.contextmanager
def _within(memory: int, seconds: float) -> Iterator[None]:
    """Limit what is computed: beyond the time the kernel ends the process.

    Args:
        memory: address space that it may take, bytes.
        seconds: CPU time that it may take.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE * seconds)
    if used := _address_space():
        resource.setrlimit(resource.RLIMIT_AS, (used + memory + SLACK, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _address_space() -> int:
    return _statm(0)


def _resident() -> int:
    return _statm(1) - _statm(2)  # without what it shares: the files of libraries, and pixels


def _statm(field: int) -> int:
    """Return the field of `/proc/self/statm`, bytes; 0 where the system has no such file."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[field]) * resource.getpagesize()
    except FileNotFoundError:
        return 0


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # it ends when its decoder does
    # If the machine's memory runs out, end this process and no other.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as adjustment:
        adjustment.write("1000")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")  # Pillow warns of each odd tag
    serve(socket.socket(fileno=int(sys.argv[1])))
