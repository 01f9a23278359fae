"""What replicas measure of their work."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from deployments import metrics
from deployments.compute.batching import batched
from tests.support.metrics import watch
from tests.support.running.waiting import wait_until


@pytest.fixture(autouse=True)
def seen(monkeypatch):
    """The metrics by their names."""
    return watch(monkeypatch)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until its `now` is set."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(metrics, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def gauges(monkeypatch):
    """All gauges that were made."""
    made = []

    class Noted(metrics.Gauges):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(metrics, "Gauges", Noted)
    return made


def counted(seen, stage):
    """Return how long items waited, how long they were worked at, batches and items."""
    names = ("wait_seconds", "stage_seconds", "stage_batches", "stage_items")
    return tuple(seen[f"inset_{name}_total"].counted[stage,] for name in names)


def test_waiting_and_working_are_told_apart(seen, clock):
    stage = metrics.Stage("segment")
    with stage.waiting(5) as begun:
        clock.now += 3
        begun()
        with stage.working(5):
            clock.now += 2
    assert counted(seen, "segment") == (5 * 3, 2, 1, 5)


def test_who_gave_up_while_waiting_is_not_counted_as_worked_at(seen, clock, gauges):
    stage = metrics.Stage("segment")
    with pytest.raises(TimeoutError), stage.waiting():
        raise TimeoutError
    gauges[0].refresh()
    assert seen["inset_waiting_items"].values == [0]
    assert counted(seen, "segment") == (0, 0, 0, 0)


def test_work_that_fails_is_measured_too(seen, clock):
    stage = metrics.Stage("segment")

    def fail():
        with stage.working():
            clock.now += 2
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert counted(seen, "segment") == (0, 2, 1, 1)


def test_the_age_of_the_oldest_that_waits_grows_while_nothing_happens(seen, clock, gauges):
    stage = metrics.Stage("segment")
    with stage.waiting() as begun:
        clock.now += 4
        with stage.waiting():
            gauges[0].refresh()
            clock.now += 6
            gauges[0].refresh()
            begun()
            gauges[0].refresh()
    assert seen["inset_waiting_items"].values == [2, 2, 1]
    assert seen["inset_oldest_wait_seconds"].values == [4, 10, 6]


def test_a_thread_that_is_waited_for_is_no_work(seen):
    stage, go = metrics.Stage("verify"), threading.Event()

    async def main():
        with ThreadPoolExecutor(1) as threads:
            runs = [asyncio.ensure_future(stage.run(threads, go.wait)) for _ in range(3)]
            while len(stage._waiting) != 2:
                await asyncio.sleep(0.01)
            assert counted(seen, "verify")[1:] == (0, 0, 0)
            go.set()
            assert await asyncio.gather(*runs) == [True, True, True]

    asyncio.run(main())
    waited, worked, *counts = counted(seen, "verify")
    assert waited > 0 < worked
    assert counts == [3, 3]


@pytest.mark.usefixtures("batches_without_replicas")
def test_a_batch_is_one_piece_of_work_at_all_of_its_items(seen):
    async def work(items):
        return items

    async def main():
        ask = batched(work, stage="encode", wait_s=0.05, max_batch_size=99, batch_size_fn=sum)
        await asyncio.gather(*map(ask, [30, 4, 5]))

    asyncio.run(main())
    assert counted(seen, "encode")[2:] == (1, 39)


@pytest.mark.usefixtures("batches_without_replicas")
def test_items_wait_while_a_batch_is_worked_at(seen, gauges):
    end = asyncio.Event()

    async def work(items):
        await end.wait()
        return items

    async def main():
        ask = batched(work, stage="encode", max_batch_size=99, batch_size_fn=sum)
        asked = [asyncio.ensure_future(ask(1))]
        while not seen["inset_wait_seconds_total"].counted:
            await asyncio.sleep(0.01)
        asked += [asyncio.ensure_future(ask(number)) for number in (20, 30)]
        await asyncio.sleep(0)
        gauges[0].refresh()
        asked[2].cancel()
        await asyncio.sleep(0)
        gauges[0].refresh()
        end.set()
        await asyncio.gather(*asked[:2])
        gauges[0].refresh()

    asyncio.run(main())
    assert seen["inset_waiting_items"].values == [50, 20, 0]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_gauges_are_set_again_and_again_in_a_replica(seen, monkeypatch):
    monkeypatch.setattr(metrics.ray, "is_initialized", lambda: True)
    measured = []

    def measure():
        measured.append(1)
        if len(measured) == 2:
            raise OSError("the disk is away")
        return {"inset_some": len(measured)}

    def sleep(seconds):
        assert seconds <= 10  # else Ray forgets them
        if len(measured) == 3:
            raise SystemExit  # ends the thread alone

    monkeypatch.setattr(metrics, "time", SimpleNamespace(sleep=sleep))
    metrics.Gauges({"inset_some": "Some things."}, measure)
    wait_until(lambda: len(seen["inset_some"].values) >= 2, "it is measured again")
    assert seen["inset_some"].values == [1, 3]


def test_only_what_a_decoder_has_lost_since_is_counted(seen, gauges):
    decoder = SimpleNamespace(alive=2, lost=0)
    metrics.measure_decoder(decoder)
    gauges[0].refresh()
    decoder.alive, decoder.lost = 1, 3
    gauges[0].refresh()
    gauges[0].refresh()
    assert seen["inset_decoder_processes"].values == [2, 1, 1]
    assert seen["inset_decoder_restarts_total"].counted == {(): 3}
