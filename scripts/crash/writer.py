"""A process that writes into a store, and says before and after each group what it does.

    python -m crash.writer FOLDER SEED

It prints a line of JSON for each group, and another for what came of it. It ends with one of the
statuses below, or is killed.
"""

from __future__ import annotations

import json
import random
import sys

import numpy as np

from deployments.errors import InsetError, StoreFull, StoreUnusable, Unavailable, UnknownId
from deployments.records import Chunk, EncodedPhoto, EncoderIdentity, Stored
from deployments.store.operations import Delete, Operation, Put, Result
from deployments.store.store import Store

NOT_OPENED, FAILED = 4, 3  # the disk failed, at opening or later: the service starts a new replica

ENCODER = EncoderIdentity("crash", 8, "cd" * 32)
IDS, MOST_AT_ONCE = 40, 6
SIZES = (1, 2_000, 40_000, 400_000)
FULL_AT = 32 * 2**20  # `max_bytes`, so that the store is full now and then, too


def content(number: int) -> bytes:
    """Return the original of a number, always the same bytes."""
    rng = random.Random(number)
    return rng.randbytes(rng.choice(SIZES))


def photo(data: bytes) -> EncodedPhoto:
    """Return a photo of one chunk, whose vector follows from its bytes."""
    vectors = np.random.default_rng(len(data)).standard_normal((1, ENCODER.dimension))
    vectors = (vectors / np.linalg.norm(vectors)).astype(np.float32)
    whole = Chunk(box=(0, 0, 2, 2), source="whole")
    return EncodedPhoto(2, 2, "image/jpeg", False, [whole], vectors, data[:99], data[:999])


def name(result: Result) -> str:
    """Return what a journal calls a result.

    Raises:
        InsetError: it is none that may be.
    """
    match result:
        case Stored():
            return "stored"
        case StoreFull():
            return "full"
        case UnknownId():
            return "unknown id"
        case InsetError():
            raise result
        case _:
            return "deleted"


def write(store: Store, seed: int) -> None:
    """Put and delete photos until the disk fails.

    Raises:
        Unavailable
    """
    rng = random.Random(seed)
    held = set(store.ids())
    for round in range(10**6):
        group: list[tuple[str, int | None]] = []
        for id in rng.sample(
            [f"id{number}" for number in range(IDS)], rng.randint(1, MOST_AT_ONCE)
        ):
            number = None if id in held or rng.random() < 0.1 else seed * 10**6 + round
            group.append((id, number))
        print(json.dumps(group), flush=True)
        results = store.apply([_operation(id, number) for id, number in group])
        names = [name(result) for result in results]
        for (id, _), named in zip(group, names, strict=True):
            if named == "stored":
                held.add(id)
            elif named != "full":
                held.discard(id)
        print(json.dumps(names), flush=True)


def _operation(id: str, number: int | None) -> Operation:
    if number is None:
        return Delete(id)
    data = content(number)
    return Put(id, data, None, photo(data))


def main() -> int:
    folder, seed = sys.argv[1], int(sys.argv[2])
    try:
        store = Store(folder, ENCODER, initial_bytes=2**20, max_bytes=FULL_AT)
    except StoreUnusable:
        return NOT_OPENED
    print("[]", flush=True)  # it is open
    try:
        write(store, seed)
    except Unavailable:
        assert store.failed
    try:
        store.apply([Delete("id0")])
    except Unavailable:
        return FAILED
    raise AssertionError("after its disk had failed, the store took another change")


if __name__ == "__main__":
    sys.exit(main())
