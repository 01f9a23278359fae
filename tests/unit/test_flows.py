"""The way of a search: what is ranked, what is looked at, and what becomes the answer."""

import asyncio
import threading

import numpy as np
import pytest

from deployments import flows
from deployments.errors import BadParameter
from deployments.flows import LOOKED_AT_AGAIN, PER_LOOK, SearchFlow
from deployments.query import Query, SearchOptions
from deployments.records import Chunk, RankedPhoto, Record
from deployments.verification import EncodedQuery, Look, Sighting, Sketch, Verdict
from tests.support.graph.graph_in_process import Handle

BOX = (0, 0, 40, 30)
SKETCH = Sketch(np.zeros((30, 40), np.uint8), BOX)
LEFT, TURNED = Look((0, 0, 20, 30)), Look(BOX, turned=1)
SQUARE = ((1.0, 1.0), (9.0, 1.0), (9.0, 9.0), (1.0, 9.0))


def sighting(inliers=30):
    return Sighting(SQUARE, BOX, False, 0.0, 0.2, inliers, 1.0, 0.9)


def record(id, sequence):
    return Record(
        id=id,
        filename=None,
        media_type="image/png",
        bytes=1,
        sha256=f"{id} {sequence}",
        width=10,
        height=10,
        animated=False,
        indexed_at="2026-01-01T00:00:00.000+00:00",
        sequence=sequence,
        chunks=[Chunk(box=(0, 0, 10, 10), source="whole")],
    )


class Fakes:
    """All deployments of a search in one.

    Args:
        content: the photos, nearest first.
        seen: those in which the query is seen at once.
        later: those in which it is seen by a second look, if it is looked for there.
        by_look: which photos are nearest to each look.
    """

    def __init__(self, content, seen="", later="", by_look=None, plain=False):
        self.store = {id: record(id, number + 1) for number, id in enumerate(content)}
        self.order = list(content)
        self.sequence = len(content)
        self.known = self.sequence
        self.seen, self.later, self.plain = set(seen), set(later), plain
        self.by_look = by_look or {}
        self.meanwhile = {}  # what happens after a call, by its name
        self.calls = []

    def happen(self, name, *details):
        self.calls.append((name, *details))
        self.meanwhile.pop(name, lambda: None)()

    def called(self, name):
        return [details for called, *details in self.calls if called == name]

    def ranked(self, ids, limit):
        places = {id: (number + 1) / 100 for number, id in enumerate(self.order)}
        return [RankedPhoto(id, places[id], [(0, places[id])]) for id in ids][:limit]

    async def encode_query(self, data, box, sketched):
        self.happen("encode_query", data, box, sketched)
        return EncodedQuery(np.zeros(4), SKETCH if sketched else None)

    async def encode_text(self, text):
        self.happen("encode_text", text)
        return np.zeros(4)

    async def encode_looks(self, data, looks):
        self.happen("encode_looks", data, looks)
        return np.arange(len(looks))

    async def original(self, id):
        return f"original of {id}".encode()

    async def rank(self, vector, options, sequence):
        if sequence > self.known:
            self.known = self.sequence
            self.order = [id for id in self.order if id in self.store]
        answer = self.ranked(self.order, options.limit), self.known
        self.happen("rank", options.limit)
        return answer

    async def rank_all(self, vectors, options, sequence):
        self.happen("rank_all", options.limit, sequence)
        looks = self.called("encode_looks")[-1][1]
        return [self.ranked(self.by_look.get(look, ""), options.limit) for look in looks]

    async def records(self, ids):
        found = [self.store.get(id) for id in ids]
        return [one and one.model_dump_json().encode() for one in found], self.sequence

    async def verify(self, sketch, candidates, everything):
        self.happen("verify", [one.id for one in candidates], everything)
        if self.plain:
            return Verdict(True, {}, [])
        sightings = {one.id: sighting() if one.id in self.seen else None for one in candidates}
        looks = [] if any(sightings.values()) else list(self.by_look)
        return Verdict(False, sightings, looks)

    async def verify_again(self, sketch, candidates):
        self.happen("verify_again", [(one.id, one.look) for one in candidates])
        return {one.id: sighting() for one in candidates if one.id in self.later}


def search(fakes, query=None, verifier=True, candidates=3, min_sequence=0, **options):
    handle = Handle(fakes)
    flow = SearchFlow(handle, handle, handle, handle if verifier else None, candidates)
    query = query or Query(b"picture")
    return asyncio.run(flow.run(query, SearchOptions(**options), min_sequence))


def ids(answer):
    return [match.id for match in answer.matches]


def verified(answer):
    return {match.id: match.verified for match in answer.matches}


# Which photos are looked at


def test_by_default_the_nearest_are_looked_at():
    fakes = Fakes("abcdef", seen="c")
    answer = search(fakes)
    assert fakes.called("verify") == [[["a", "b", "c"], False]]
    assert (answer.found, answer.texture) == (True, None)
    assert ids(answer) == list("cabdef")
    assert verified(answer) == {"c": True, "a": False, "b": False} | dict.fromkeys("def")
    assert answer.matches[0].quad == SQUARE


def test_all_that_is_answered_is_looked_at_if_it_is_asked():
    fakes = Fakes("abcdef", seen="e")
    answer = search(fakes, verify="all", limit=5)
    assert fakes.called("verify") == [[list("abcde"), True]]
    assert ids(answer) == list("eabcd")


def test_nothing_is_looked_at_if_it_is_asked():
    fakes = Fakes("abc", seen="c")
    answer = search(fakes, verify="none")
    assert (answer.found, ids(answer)) == (None, list("abc"))
    assert set(verified(answer).values()) == {None}
    assert fakes.called("verify") == fakes.called("verify_again") == []
    assert fakes.called("encode_query") == [[b"picture", None, False]]  # without a sketch


def test_without_a_verifier_nothing_is_looked_at():
    fakes = Fakes("abc", seen="c")
    answer = search(fakes, verifier=False)
    assert (answer.found, ids(answer)) == (None, list("abc"))
    assert fakes.called("encode_query") == [[b"picture", None, False]]


def test_a_text_is_not_looked_for():
    fakes = Fakes("abc", seen="c")
    answer = search(fakes, Query(text="a cup"))
    assert (answer.found, ids(answer)) == (None, list("abc"))
    assert fakes.called("verify") == []


@pytest.mark.parametrize("options", [{"verified": True}, {"verify": "all"}])
def test_what_cant_be_verified_is_refused_if_that_is_asked(options):
    with pytest.raises(BadParameter, match="text has no pixels"):
        search(Fakes("abc"), Query(text="a cup"), **options)
    with pytest.raises(BadParameter, match=r"verifier\.enabled"):
        search(Fakes("abc"), verifier=False, **options)


def test_a_stored_photo_is_not_compared_with_itself():
    """It would be found for sure; what is asked is which others there are."""
    fakes = Fakes("abcde", seen="ac")
    answer = search(fakes, Query(id="a"))
    assert fakes.called("encode_query") == [[b"original of a", None, True]]
    assert fakes.called("verify") == [[["b", "c", "d"], False]]
    assert ids(answer) == list("cabde")
    assert verified(answer)["a"] is None


def test_a_part_of_a_stored_photo_is_looked_for_there_too():
    fakes = Fakes("abcd", seen="a")
    answer = search(fakes, Query(id="a", box=(0, 0, 20, 20)))
    assert fakes.called("verify") == [[["a", "b", "c"], False]]
    assert answer.matches[0].verified


# What becomes the answer


def test_as_many_as_are_asked_for_though_more_were_looked_at():
    fakes = Fakes("abcdef", seen="c")
    answer = search(fakes, limit=1)
    assert ids(answer) == ["c"]
    assert fakes.called("verify") == [[["a", "b", "c"], False]]


def test_only_verified_photos_if_that_is_asked():
    assert ids(search(Fakes("abcd", seen="c"), verified=True)) == ["c"]
    nowhere = search(Fakes("abcd"), verified=True)
    assert (nowhere.found, nowhere.matches) == (False, [])


@pytest.mark.parametrize("content", ["abcd", ""])
def test_a_query_that_is_nowhere_is_not_found(content):
    """Also where nothing is stored."""
    answer = search(Fakes(content))
    assert (answer.found, ids(answer)) == (False, list(content))


def test_a_plain_query_is_answered_by_distance():
    fakes = Fakes("abc", plain=True, by_look={LEFT: "a"})
    answer = search(fakes)
    assert (answer.found, answer.texture) == (None, "too plain to verify")
    assert ids(answer) == list("abc")
    assert set(verified(answer).values()) == {None}
    assert fakes.called("encode_looks") == []
    assert search(fakes, verified=True).matches == []


# Second looks


def test_second_looks_find_what_is_far_from_all_of_the_query():
    """It comes first, though the ranking by the whole query has no place for it."""
    fakes = Fakes("abcdefghij", later="j", by_look={LEFT: "bj", TURNED: "a"})
    answer = search(fakes, limit=2)
    assert fakes.called("encode_looks") == [[b"picture", [LEFT, TURNED]]]
    assert fakes.called("rank_all") == [[PER_LOOK, 10]]
    # The nearest first, whatever the look.
    assert fakes.called("verify_again") == [[[("a", TURNED), ("b", LEFT), ("j", LEFT)]]]
    assert answer.found
    assert ids(answer) == ["j", "a"]
    assert answer.matches[0].verified


def test_a_large_answer_is_made_beside_the_event_loop(monkeypatch):
    """A thousand photos would stop it for a quarter of a second."""
    threads = []

    def noting(work):
        def note(*args):
            threads.append(threading.current_thread())
            return work(*args)

        return note

    monkeypatch.setattr(flows, "arrange", noting(flows.arrange))
    monkeypatch.setattr(Record, "model_validate_json", noting(Record.model_validate_json))
    assert search(Fakes("abc", later="b", by_look={LEFT: "b"})).found
    assert len(threads) >= 5
    assert threading.main_thread() not in threads


def test_second_looks_know_what_the_search_must_know():
    """Another replica of the index may answer them, which is behind."""
    fakes = Fakes("abc", later="b", by_look={LEFT: "b"})
    assert search(fakes, min_sequence=3).found
    assert fakes.called("rank_all") == [[PER_LOOK, 3]]


def test_second_looks_are_left_out_once_something_was_seen():
    fakes = Fakes("abc", seen="b", later="c", by_look={LEFT: "c"})
    search(fakes)
    assert fakes.called("encode_looks") == fakes.called("verify_again") == []


def test_a_photo_that_was_looked_at_in_vain_may_be_seen_by_a_second_look():
    fakes = Fakes("abcd", later="b", by_look={LEFT: "b"})
    answer = search(fakes)
    assert (answer.found, ids(answer)) == (True, list("bacd"))
    assert verified(answer) == {"b": True, "a": False, "c": False, "d": None}


def test_second_looks_are_at_a_limited_number_of_photos():
    looks = {Look((0, 0, 1, number)): "abcdef" for number in range(1, 30)}
    fakes = Fakes("abcdef", by_look=looks)
    search(fakes)
    ((candidates,),) = fakes.called("verify_again")
    assert len(candidates) == LOOKED_AT_AGAIN
    assert {id for id, _ in candidates} <= set("abc"[:PER_LOOK])


def test_second_looks_at_a_stored_photo_dont_compare_it_with_itself():
    fakes = Fakes("abc", later="ab", by_look={LEFT: "ab"})
    answer = search(fakes, Query(id="a"))
    assert fakes.called("encode_looks") == [[b"original of a", [LEFT]]]
    assert fakes.called("verify_again") == [[[("b", LEFT)]]]
    assert ids(answer) == list("bac")


# Photos that go meanwhile


def delete(fakes, id):
    def happen():
        fakes.sequence += 1
        del fakes.store[id]

    return happen


def test_a_photo_that_is_deleted_after_the_ranking_is_not_looked_at():
    fakes = Fakes("abcd", seen="ab")
    fakes.meanwhile["rank"] = delete(fakes, "a")
    answer = search(fakes)
    assert fakes.called("verify") == [[["b", "c", "d"], False]]
    assert ids(answer) == list("bcd")


def test_a_photo_that_is_deleted_before_a_second_look_is_not_looked_at():
    fakes = Fakes("abcd", later="bd", by_look={LEFT: "bd"})
    fakes.meanwhile["rank_all"] = delete(fakes, "d")
    search(fakes)
    assert fakes.called("verify_again") == [[[("b", LEFT)]]]


def test_a_damaged_record_does_not_take_the_others_away():
    fakes = Fakes("abcd", seen="c")
    del fakes.store["b"]  # nothing has changed, but it can't be read
    answer = search(fakes)
    assert fakes.called("verify") == [[["a", "c", "d"], False]]
    assert ids(answer) == list("cad")


def test_copies_are_grouped():
    fakes = Fakes("abc", seen="ac")
    answer = search(fakes, group="copies")
    assert ids(answer) == ["a", "b"]
    assert [match.id for match in answer.matches[0].copies] == ["c"]
