"""Searches while photos come and go."""

import asyncio
import math

import numpy as np
import pytest

from deployments.errors import BadParameter, UnknownSequence
from deployments.metadata import Filter
from deployments.records import Chunk, EncodedPhoto, RankedPhoto
from deployments.store.operations import Delete, Put
from deployments.verification import EncodedQuery
from tests.support.graph.graph_in_process import HANDLES, ingress, make
from tests.support.stored.records import record


class Moving:
    """All deployments of a search in one; things happen to the store after the photos were ranked.

    Args:
        content: the photos when the search begins, nearest first.
        events: what happens after each ranking: a function that changes the store.
        damaged: photos whose record can't be read.
    """

    def __init__(self, content, events=(), damaged=()):
        self.store = {id: record(id, number + 1) for number, id in enumerate(content)}
        self.sequence = len(content)
        self.index = dict(self.store), self.sequence
        self.events = list(events)
        self.damaged = set(damaged)
        self.asked = []
        self.filters = []

    async def encode_query(self, data, box, sketched):
        return EncodedQuery(np.zeros(4), None)

    async def rank(self, vector, options, sequence):
        self.asked.append(sequence)
        self.filters.append(options.filter)
        if sequence > self.sequence:
            raise UnknownSequence(f"The change {sequence} has not happened.")
        if sequence > self.index[1]:  # a search waits for what it must know, and sees no more
            self.index = dict(self.store), self.sequence
        photos, _ = self.index
        ranked = [
            RankedPhoto(id, number / 10, [(chunk, number / 10) for chunk in range(len(r.chunks))])
            for number, (id, r) in enumerate(photos.items())
        ][: options.limit]
        if self.events:
            self.events.pop(0)(self)
        return ranked, self.index[1]

    async def records(self, ids):
        found = [None if id in self.damaged else self.store.get(id) for id in ids]
        return [record and record.model_dump_json().encode() for record in found], self.sequence

    async def delete(self, id):
        self.sequence += 1
        del self.store[id]
        return self.sequence


def deletion(id):
    def happen(moving):
        moving.sequence += 1
        del moving.store[id]

    return happen


def replacement(id, chunks):
    def happen(moving):
        moving.sequence += 2
        moving.store[id] = record(id, moving.sequence, chunks)

    return happen


def search(folder, moving, limit, deleted=None):
    async def both():
        inset = ingress(folder, **dict.fromkeys(HANDLES, moving))
        if deleted is not None:
            await inset.delete(deleted)
        return [match.id for match in (await inset.search(b"x", limit=limit)).matches]

    return asyncio.run(both())


def test_a_quiet_search_ranks_once(tmp_path):
    moving = Moving("abcd")
    assert search(tmp_path, moving, 2) == ["a", "b"]
    assert moving.asked == [4]


def test_a_new_ingress_knows_what_was_changed_through_the_one_before(tmp_path):
    """It asks the store for its last change, once."""
    moving = Moving("abcd", [deletion("c")])
    inset = ingress(tmp_path, **dict.fromkeys(HANDLES, moving))

    async def run():
        await inset.delete("a")  # which alone tells nothing of those before
        for _ in range(3):
            await inset.search(b"x", limit=1)

    asyncio.run(run())
    assert moving.asked == [5, 5, 5]


@pytest.mark.parametrize(
    "box", [(0, 0, 0, 5), (5, 0, 3, 5), (0, 5, 5, 5), (float("nan"), 0, 3, 5), (0, 0, math.inf, 5)]
)
def test_an_empty_box_is_refused(tmp_path, box):
    inset = ingress(tmp_path, **dict.fromkeys(HANDLES, Moving("a")))
    with pytest.raises(BadParameter, match="x1 < x2"):
        asyncio.run(inset.search(id="a", box=box))


def test_a_photo_deleted_meanwhile_makes_room_for_another(tmp_path):
    moving = Moving("abcd", [deletion("a")])
    assert search(tmp_path, moving, 2) == ["b", "c"]
    assert moving.asked == [4, 5]


def test_several_deletions_one_after_another(tmp_path):
    moving = Moving("abcd", [deletion("a"), deletion("b"), deletion("c")])
    assert search(tmp_path, moving, 2) == ["d"]
    assert moving.asked == [4, 5, 6, 7]


def test_a_damaged_record_does_not_take_the_others_away(tmp_path):
    moving = Moving("abcd", damaged="b")
    assert search(tmp_path, moving, 3) == ["a", "c"]
    assert len(moving.asked) <= 2


def test_a_search_knows_what_was_deleted_through_the_same_ingress(tmp_path):
    moving = Moving("abcd")
    assert search(tmp_path, moving, 2, deleted="a") == ["b", "c"]
    assert moving.asked == [5]


def test_a_photo_replaced_meanwhile_is_ranked_anew(tmp_path):
    """The numbers of the chunks were those of its former content."""
    moving = Moving("ab")
    moving.store["a"] = record("a", chunks=3)
    moving.index = dict(moving.store), moving.sequence
    moving.events = [replacement("a", chunks=1)]
    assert search(tmp_path, moving, 2) == ["a", "b"]
    assert moving.asked == [2, 4]


def restoration(content):
    """The store becomes an older copy of itself, with fewer changes."""

    def happen(moving):
        moving.store = {id: record(id, number + 1) for number, id in enumerate(content)}
        moving.sequence = len(content)
        moving.index = {}, 0

    return happen


def test_a_store_that_was_restored_is_searched_as_it_is_now(tmp_path):
    """What went through the ingress before is forgotten, but not what went through it since."""

    async def run():
        moving = Moving("abcdef")
        inset = ingress(tmp_path, **dict.fromkeys(HANDLES, moving))
        await inset.delete("a")
        restoration("xyz")(moving)
        await inset.delete("x")
        first = await inset.search(b"x")
        second = await inset.search(b"x")
        return moving.asked, [[match.id for match in one.matches] for one in (first, second)]

    asked, found = asyncio.run(run())
    assert found == [["y", "z"]] * 2
    assert asked == [7, 4, 4]


def test_a_store_may_be_restored_during_a_search(tmp_path):
    moving = Moving("abcd", [lambda moving: (deletion("a")(moving), restoration("x")(moving))])
    moving.index = {}, 0
    assert search(tmp_path, moving, 2, deleted="b") == ["x"]


def test_what_a_client_must_know_is_not_forgotten(tmp_path):
    moving = Moving("abcd")
    inset = ingress(tmp_path, **dict.fromkeys(HANDLES, moving))
    for min_sequence in (5, 10**6):
        with pytest.raises(UnknownSequence, match=f"{min_sequence} has not happened"):
            asyncio.run(inset.search(b"x", min_sequence=min_sequence))
    assert asyncio.run(inset.search(b"x", min_sequence=4)).matches
    assert moving.asked == [5, 10**6, 4]


def test_the_ranker_gets_the_filter(tmp_path):
    moving = Moving("abcd")
    inset = ingress(tmp_path, **dict.fromkeys(HANDLES, moving))
    for filter in ("k=1", ["k=1", "l=x"], (), []):
        asyncio.run(inset.search(b"x", filter=filter))
    one, two = Filter.parse(["k=1"]), Filter.parse(["k=1", "l=x"])
    assert moving.filters == [one, two, None, None]


def test_a_photo_that_is_missing_is_gone_as_of_the_sequence_number(tmp_path):
    """Between a commit and its announcement as well: else no search would look again."""
    store = make("Store", tmp_path / "store")
    whole = [Chunk(box=(0, 0, 10, 10), source="whole")]
    vectors = np.zeros((1, 256), np.float32)
    photo = EncodedPhoto(10, 10, "image/png", False, whole, vectors, b"", b"")
    store.store.apply([Put("a", b"x", None, photo)])
    (deleted,) = store.store.apply([Delete("a")])
    (missing,), sequence = asyncio.run(store.records(["a"]))
    store.store.close()
    assert missing is None
    assert sequence >= deleted
