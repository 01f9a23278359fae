"""The decoder's processes: what a file does to one of them, it does to nobody else."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deployments.decoding import decoder as decoders
from deployments.decoding.decoder import Decoder, _Budget
from deployments.decoding.image import decode
from deployments.errors import BrokenImage, InsetError, NotAnImage, TooLarge, Unavailable
from deployments.limits import ImageLimits
from tests.support.running.examples import examples
from tests.support.running.waiting import wait_until

LIMITS = ImageLimits()


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def many_scans(side=4000, scans=2000):
    """A progressive JPEG of a few kilobytes, whose last scan comes again and again."""
    file = encoded(Image.new("L", (side, side), 128), "JPEG", progressive=True, quality=50)
    start = file.rindex(b"\xff\xda")
    return file[:-2] + file[start:-2] * scans + b"\xff\xd9"


SMALL = encoded(noise(40, 30))
SLOW = many_scans()


def children():
    found = {}
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if "deployments.decoding.worker" in process.cmdline():
                found[process.pid] = process
    return found


@pytest.fixture
def workers():
    """A function that returns the processes of the decoders of this test."""
    before = children()
    return lambda: [process for pid, process in children().items() if pid not in before]


@pytest.fixture
def decoder(workers):
    decoder = Decoder(LIMITS)
    yield decoder
    decoder.close()


@pytest.mark.parametrize("size", [(1, 1), (40, 30), (1, 3000), (1200, 900)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_pixels_come_back_as_they_were_decoded(decoder, size, kind):
    data = encoded(noise(*size), kind)
    here, there = decode(data, LIMITS), decoder.decode(data)
    assert there.pixels.dtype == np.uint8
    assert (there.pixels == here.pixels).all()
    assert there.pixels.flags.writeable
    assert (there.media_type, there.animated) == (here.media_type, here.animated)
    assert (there.skipped, there.facts) == (here.skipped, here.facts)


@pytest.mark.parametrize("data", [b"", b"no image", SMALL[:200], encoded(noise(90, 90))])
def test_a_refusal_says_the_same_as_without_processes(data):
    limits = ImageLimits(max_pixels=90 * 89)
    decoder = Decoder(limits)
    with pytest.raises((NotAnImage, BrokenImage, TooLarge)) as expected:
        decode(data, limits)
    with pytest.raises(type(expected.value)) as actual:
        decoder.decode(data)
    assert actual.value.detail == expected.value.detail
    decoder.close()


def test_too_many_bytes_are_refused_here(workers):
    decoder = Decoder(ImageLimits(max_bytes=100))
    with pytest.raises(TooLarge, match="at most 100"):
        decoder.decode(bytes(101))
    assert not workers()


def test_a_process_is_used_again(decoder, workers):
    decoder.decode(SMALL)
    before = {process.pid for process in workers()}
    with pytest.raises(NotAnImage):
        decoder.decode(b"no image")
    decoder.decode(SMALL)
    assert {process.pid for process in workers()} == before
    assert (decoder.alive, decoder.lost) == (1, 0)
    decoder.close()
    assert (decoder.alive, decoder.lost) == (0, 0)


def test_what_takes_too_long_is_ended_by_the_kernel_and_replaced(decoder):
    decoder.decode(SMALL)
    start = time.monotonic()
    with pytest.raises(TooLarge, match=r"takes more than 2\.6 s"):
        decoder.decode(SLOW)
    assert time.monotonic() - start < 30
    assert (decoder.decode(SMALL).pixels == decode(SMALL, LIMITS).pixels).all()


def while_it_decodes(decoder, workers, happens):
    """Decode a slow file and do something to its process meanwhile; raise the decoder's error."""
    with ThreadPoolExecutor(1) as threads:
        decoding = threads.submit(decoder.decode, SLOW)
        wait_until(lambda: any(one.cpu_times().user > 0.3 for one in workers()), "it works")
        happens(workers()[0].pid)
        decoding.result()


def test_a_crash_costs_its_own_request_an_error(decoder, workers):
    with pytest.raises(BrokenImage, match="its decoder crashed"):
        while_it_decodes(decoder, workers, lambda pid: os.kill(pid, signal.SIGSEGV))
    decoder.decode(SMALL)


def test_a_process_that_is_killed_is_no_fault_of_the_file(decoder, workers):
    with pytest.raises(Unavailable, match="try again"):
        while_it_decodes(decoder, workers, lambda pid: os.kill(pid, signal.SIGKILL))
    assert (decoder.alive, decoder.lost) == (0, 1)
    decoder.decode(SMALL)
    assert (decoder.alive, decoder.lost) == (1, 1)


def test_a_process_that_stands_still_is_given_up(decoder, workers, monkeypatch):
    monkeypatch.setattr(decoders, "PATIENCE", 1)
    with pytest.raises(Unavailable):
        while_it_decodes(decoder, workers, lambda pid: os.kill(pid, signal.SIGSTOP))
    decoder.decode(SMALL)
    assert len(workers()) == 1


def test_a_process_that_died_while_it_was_idle_is_replaced(decoder, workers):
    decoder.decode(SMALL)
    (process,) = workers()
    process.kill()
    wait_until(lambda: process.status() == psutil.STATUS_ZOMBIE, "it ends")
    decoder.decode(SMALL)
    assert (decoder.alive, decoder.lost) == (1, 1)


def test_small_images_pass_by_slow_ones(decoder):
    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(decoder.decode, SLOW)
        for _ in range(20):
            decoder.decode(SMALL)
        assert not slow.done()
        with pytest.raises(TooLarge):
            slow.result()


def test_many_threads_share_a_few_processes(decoder, workers):
    files = [encoded(noise(50 + n, 40, n)) for n in range(40)]
    with ThreadPoolExecutor(20) as threads:
        images = list(threads.map(decoder.decode, files))
    for data, image in zip(files, images, strict=True):
        assert (image.pixels == decode(data, LIMITS).pixels).all()
    assert len(workers()) <= decoder.processes


def test_no_descriptor_is_left_open(decoder):
    def attempt(n):
        with contextlib.suppress(InsetError):
            decoder.decode(SMALL[: 100 * n] if n % 3 else SMALL)

    attempt(0)
    before = psutil.Process().num_fds()
    for n in range(30):
        attempt(n)
    assert psutil.Process().num_fds() <= before + 2


def test_an_idle_process_gives_its_memory_back(decoder, workers):
    decoder.start()
    (process,) = workers()

    def mebibytes():
        return process.memory_full_info().uss / 2**20

    decoder.decode(SMALL)
    at_first = mebibytes()
    data = encoded(noise(2500, 2000), "JPEG")
    for _ in range(3):
        decoder.decode(data)
    wait_until(lambda: mebibytes() < at_first + 10, "it takes little again", timeout_s=10)
    assert workers() == [process]


def test_its_processes_end_with_it(decoder, workers):
    decoder.start()
    assert len(workers()) == 1
    decoder.close()
    assert not workers()


def test_a_process_loads_little_and_knows_no_secret():
    program = (
        "import sys, deployments.decoding.worker; print(*{m.split('.')[0] for m in sys.modules})"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {"PIL", "numpy"} <= set(loaded)
    assert not {"torch", "ray", "pydantic", "transformers", "cv2"} & set(loaded)


def test_the_environment_stays_out(decoder, workers, monkeypatch):
    monkeypatch.setenv("INSET_SECRET", "key")
    decoder.start()
    assert "INSET_SECRET" not in workers()[0].environ()


@settings(max_examples=examples(30), deadline=None)
@given(st.lists(st.integers(1, 150), min_size=1, max_size=12))
def test_a_budget_is_never_exceeded_and_nobody_waits_for_ever(amounts):
    budget, used, most, lock = _Budget(100), 0, 0, threading.Lock()

    def take(amount):
        nonlocal used, most
        with budget.of(amount):
            with lock:
                used += min(amount, 100)
                most = max(most, used)
            time.sleep(0.0005)
            with lock:
                used -= min(amount, 100)

    with ThreadPoolExecutor(len(amounts)) as threads:
        list(threads.map(take, amounts))
    assert used == 0
    assert most <= 100
