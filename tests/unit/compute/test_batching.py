"""What comes while a batch is worked at."""

import asyncio
import errno
import logging
import weakref

import numpy as np
import pytest
import torch

from deployments.compute import batching
from deployments.compute.batching import batched
from deployments.errors import BadParameter, Unavailable, UnknownId
from tests.support.metrics import watch

pytestmark = pytest.mark.usefixtures("batches_without_replicas")


async def batches_of_a_crowd(at_once, crowd, **options):
    """Sizes of the batches, when all that can begin have begun and then a crowd comes."""
    sizes, end = [], asyncio.Event()

    async def work(items):
        sizes.append(len(items))
        await end.wait()
        return [-item for item in items]

    ask = batched(work, stage="test", at_once=at_once, **options)
    asked = []

    def come():
        asked.append(asyncio.ensure_future(ask(len(asked))))

    for number in range(at_once):
        come()
        async with asyncio.timeout(20):
            while len(sizes) == number:  # nobody waits while a batch could begin
                await asyncio.sleep(0.01)
    for _ in range(crowd):
        come()
        await asyncio.sleep(0.05)
    assert sizes == at_once * [1]
    end.set()
    assert await asyncio.gather(*asked) == [-number for number in range(at_once + crowd)]
    return sizes


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_crowd_becomes_one_batch(at_once):
    sizes = asyncio.run(batches_of_a_crowd(at_once, 7, max_batch_size=16))
    assert sizes == [*at_once * [1], 7]


def test_no_batch_is_larger_than_it_may_be():
    assert asyncio.run(batches_of_a_crowd(1, 7, max_batch_size=3)) == [1, 3, 3, 1]


def test_the_metrics_count_items_where_a_batch_has_another_size(monkeypatch):
    seen = watch(monkeypatch)
    Worker().ask_all(range(6), max_batch_size=20, batch_size_fn=lambda items: 10 * len(items))
    assert seen["inset_stage_items_total"].counted.total() == 60
    [results] = Worker().ask_all(
        range(6), max_batch_size=20, batch_size_fn=lambda items: 10 * len(items), count_fn=len
    )
    assert results == [-number for number in range(6)]
    assert seen["inset_stage_items_total"].counted.total() == 66


def test_a_batch_that_fails_lets_the_next_one_begin():
    async def work(items):
        if "bad" in items:
            raise ValueError("broken")
        return items

    async def main():
        ask = batched(work, stage="test", max_batch_size=4)
        with pytest.raises(ValueError, match="broken"):
            await ask("bad")
        assert await asyncio.wait_for(ask("good"), 5) == "good"

    asyncio.run(main())


class Worker:
    """Works on batches, and notes them; `fault` may fail a batch."""

    def __init__(self, fault=lambda items: None):
        self.fault = fault
        self.batches = []

    async def __call__(self, items):
        self.batches.append(list(items))
        self.fault(items)
        return [-item if isinstance(item, int) else item for item in items]

    def ask_all(self, *crowds, **options):
        """Return what became of each item; a crowd comes when the one before it is answered."""

        async def main():
            ask = batched(self, stage="test", wait_s=0.05, **options)
            return [
                await asyncio.gather(*map(ask, crowd), return_exceptions=True) for crowd in crowds
            ]

        return asyncio.run(main())


def test_only_the_bad_item_of_a_failed_batch_fails(caplog):
    def fault(items):
        if 11 in items:
            raise ValueError("a vector is not finite")

    worker = Worker(fault)
    with caplog.at_level(logging.WARNING):
        [results] = worker.ask_all(range(16), max_batch_size=16)
    assert [number for number, result in enumerate(results) if result != -number] == [11]
    assert isinstance(results[11], ValueError)
    assert [len(batch) for batch in worker.batches] == [16, 8, 8, 4, 2, 2, 1, 1, 4]
    (line,) = caplog.messages
    assert line == (
        "A batch of 16 failed (ValueError: a vector is not finite). It is tried again in halves, "
        "so that only what is wrong fails."
    )


def test_each_item_of_a_batch_that_always_fails_has_an_error_of_its_own():
    def fault(items):
        raise ValueError("broken")

    [results] = Worker(fault).ask_all(range(5), max_batch_size=16)
    assert [str(result) for result in results] == 5 * ["broken"]
    assert len(set(map(id, results))) == 5


def test_an_exception_in_place_of_a_result_is_that_items_error(caplog):
    errors = ["x", ValueError("this one"), UnknownId("and this")]
    worker = Worker()
    [results] = worker.ask_all(errors, max_batch_size=16)
    assert results == errors
    assert len(worker.batches) == 1
    assert not caplog.messages


def test_an_answer_to_a_client_is_no_line_in_the_log(caplog):
    def fault(items):
        raise BadParameter("no texts")

    [results] = Worker(fault).ask_all(range(3), max_batch_size=16)
    assert {str(result) for result in results} == {"no texts"}
    assert not caplog.messages


OUT_OF_MEMORY = [
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to ..."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_out_of_memory_makes_the_next_batches_smaller_for_a_while(caplog, monkeypatch, error):
    monkeypatch.setattr(batching, "CAREFUL_BATCHES", 2)
    room = 5

    def fault(items):
        if len(items) > room:
            raise error

    worker = Worker(fault)
    crowd = range(1, 17)
    with caplog.at_level(logging.WARNING):
        results = worker.ask_all(*4 * [crowd], max_batch_size=16)
    assert results == 4 * [[-number for number in crowd]]
    first = [16, 8, 4, 4, 8, 4, 4]
    assert [len(batch) for batch in worker.batches] == [*first, *8 * [4], *first]
    assert len(caplog.messages) == 2  # once for each time that it happened
    assert "out of memory" in caplog.messages[0]
    assert "smaller" in caplog.messages[0]


def test_memory_that_runs_out_in_a_half_is_in_the_log_too(caplog):
    def fault(items):
        if len(items) == 8:
            raise ValueError("broken")
        if len(items) > 1:
            raise MemoryError

    worker = Worker(fault)
    with caplog.at_level(logging.WARNING):
        [results] = worker.ask_all(range(8), max_batch_size=16)
    assert results == [-number for number in range(8)]
    broken, no_memory = caplog.messages
    assert "broken" in broken
    assert "out of memory" in no_memory


def test_sizes_are_what_the_caller_counts():
    """The encoder's batches are limited by their crops, and an item has several."""

    def fault(items):
        if sum(items) > 10:
            raise MemoryError

    worker = Worker(fault)
    results = worker.ask_all([6, 4, 5, 5], [2, 3, 4, 1, 9], max_batch_size=20, batch_size_fn=sum)
    assert results == [[-6, -4, -5, -5], [-2, -3, -4, -1, -9]]
    assert worker.batches == [[6, 4, 5, 5], [6, 4], [5, 5], [2, 3, 4, 1], [9]]


@pytest.mark.parametrize("in_place", [False, True])
def test_an_item_without_memory_is_unavailable_for_now(caplog, in_place):
    async def work(items):
        if not in_place and "large" in items:
            raise MemoryError
        return [MemoryError() if item == "large" else item for item in items]

    async def main():
        ask = batched(work, stage="test", wait_s=0.05, max_batch_size=4)
        return await asyncio.gather(*map(ask, ["a", "large", "b"]), return_exceptions=True)

    with caplog.at_level(logging.WARNING):
        a, error, b = asyncio.run(main())
    assert (a, b) == ("a", "b")
    assert isinstance(error, Unavailable)
    assert "memory" in error.detail
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("allocate", [torch.empty, np.empty, bytes])
def test_what_says_that_there_is_no_memory_is_understood(allocate):
    async def work(items):
        return [allocate(item) for item in items]

    async def main():
        return await batched(work, stage="test", max_batch_size=4)(2**52)

    with pytest.raises(Unavailable):
        asyncio.run(main())


def test_what_filled_the_memory_is_let_go_before_the_halves():
    """An exception keeps its stack, with all that the failed batch had allocated."""
    alive, seen = weakref.WeakSet(), []

    class Tensor:
        pass

    async def work(items):
        seen.append(len(alive))
        tensor = Tensor()
        alive.add(tensor)
        if len(items) > 1:
            raise MemoryError
        return items

    async def main():
        ask = batched(work, stage="test", wait_s=0.05, max_batch_size=4)
        return await asyncio.gather(*map(ask, range(4)))

    assert asyncio.run(main()) == [0, 1, 2, 3]
    assert seen == 7 * [0]
