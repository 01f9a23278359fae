"""`serve.batch` behind a gate."""

import asyncio

import pytest
from ray import serve

from deployments.gate import Gate

pytest_plugins = ["boxes"]  # for its fixtures
pytestmark = pytest.mark.usefixtures("batches_without_replicas")


async def batches_of_a_crowd(at_once, crowd, **options):
    """Sizes of the batches when one request comes, and a crowd while it is being worked at."""
    gate, sizes, end = Gate(at_once), [], asyncio.Event()

    async def work(items):
        with gate.busy():
            sizes.append(len(items))
            await end.wait()
        return items

    batched = serve.batch(work, batch_wait_timeout_s=0, max_concurrent_batches=at_once, **options)

    async def ask(item):
        await gate.wait()
        return await batched(item)

    first = [asyncio.ensure_future(ask(number)) for number in range(at_once)]
    for _ in range(at_once):
        await asyncio.sleep(0.05)
    others = []
    for number in range(crowd):  # they come one after another
        others.append(asyncio.ensure_future(ask(at_once + number)))
        await asyncio.sleep(0.01)
    end.set()
    assert await asyncio.gather(*first, *others) == list(range(at_once + crowd))
    return sizes


def test_a_crowd_becomes_one_batch():
    assert asyncio.run(batches_of_a_crowd(1, 7, max_batch_size=16)) == [1, 7]


def test_no_batch_is_larger_than_it_may_be():
    assert asyncio.run(batches_of_a_crowd(1, 7, max_batch_size=3)) == [1, 3, 3, 1]


def test_nobody_waits_while_a_batch_could_begin():
    gate = Gate(2)

    async def main():
        with gate.busy():
            await asyncio.wait_for(gate.wait(), 1)
            with gate.busy(), pytest.raises(TimeoutError):
                await asyncio.wait_for(gate.wait(), 0.05)
            await asyncio.wait_for(gate.wait(), 1)

    asyncio.run(main())


def test_a_batch_that_fails_opens_the_gate():
    gate = Gate()
    with pytest.raises(ValueError, match="broken"), gate.busy():
        raise ValueError("broken")
    asyncio.run(asyncio.wait_for(gate.wait(), 1))
