"""What comes while a batch is worked at."""

import asyncio

import pytest

from deployments.compute.batching import batched

pytestmark = pytest.mark.usefixtures("batches_without_replicas")


async def batches_of_a_crowd(at_once, crowd, **options):
    """Sizes of the batches, when all that can begin have begun and then a crowd comes."""
    sizes, end = [], asyncio.Event()

    async def work(items):
        sizes.append(len(items))
        await end.wait()
        return [-item for item in items]

    ask = batched(work, at_once=at_once, **options)
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


def test_a_batch_that_fails_lets_the_next_one_begin():
    async def work(items):
        if "bad" in items:
            raise ValueError("broken")
        return items

    async def main():
        ask = batched(work, max_batch_size=4)
        with pytest.raises(ValueError, match="broken"):
            await ask("bad")
        assert await asyncio.wait_for(ask("good"), 5) == "good"

    asyncio.run(main())
