"""Stored photos that are asked about themselves."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.decoding.facts import FACTS
from deployments.errors import BrokenImage, InsetError, StoreFull
from deployments.metadata import MAX_KEYS
from deployments.records import Facts, Metadata
from deployments.store.asking import ask_again, ids_to_ask, needs_asking
from deployments.store.check import StoreCheck
from deployments.store.operations import Delete, Put, SetFacts
from deployments.store.reindexing import Originals
from deployments.store.store import Store
from tests.support.running.examples import examples
from tests.support.stored.stores import (
    ENCODER,
    OLD,
    Replica,
    assert_counts,
    float16,
    make_old,
    metadata,
    photo,
    vectors_of,
)

PLACE = {"latitude": 48.137222, "longitude": 11.5755}
WITHOUT_PLACE = FACTS[:3]
ANSWERS = {
    b"all": {"date_taken": "2024-05-17T10:12:33", "camera": "X-T3", "lens": "35mm"} | PLACE,
    b"some": {"camera": "X-T3"},
    b"none": {},
}
BROKEN = b"broken"


class Asking:
    """Answers for photos; remembers which were asked."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def __call__(self, images: Sequence[bytes]) -> list[Facts | InsetError]:
        self.seen += images
        return [
            BrokenImage("It ends early.") if data == BROKEN else ANSWERS[data] for data in images
        ]


def put(id: str, data: bytes, said: Metadata | None = None, wanted: Sequence[str] = ()) -> Put:
    """Store a photo as the service does whose config wants these facts."""
    facts = {name: ANSWERS.get(data, {}).get(name) for name in wanted}
    return Put(id, data, f"{id}.jpg", replace(photo(data), facts=facts), said or {})


def to_ask(folder: Path, wanted: Sequence[str] = FACTS) -> list[str]:
    with closing(Originals(folder)) as old:
        return list(ids_to_ask(old, wanted))


def ask_all(folder: Path, wanted: Sequence[str] = FACTS, ask: Asking | None = None) -> dict:
    ids = to_ask(folder, wanted)
    with closing(Store(folder, ENCODER)) as store:
        return ask_again(store, ids, wanted, ask or Asking())


def test_what_a_photo_says_is_put_behind_what_its_client_says(tmp_path: Path) -> None:
    with closing(Store(tmp_path, ENCODER)) as store:
        said = {"camera": "mine", "year": 2024}
        (stored,) = store.apply([put("a", b"all", said, FACTS)])
        (again,) = store.apply([put("a", b"all", {"camera": "other"}, FACTS)])
    record = stored.record
    assert record.metadata == ANSWERS[b"all"] | said
    assert list(record.metadata)[:2] == ["camera", "year"]
    assert record.asked == ["date_taken", "lens", "latitude", "longitude"]
    assert record.said_by_client == said
    assert (again.created, again.record) == (False, record)  # a stored photo keeps its metadata


def test_a_clients_keys_are_kept_whatever_their_number(tmp_path: Path) -> None:
    for number in (MAX_KEYS, MAX_KEYS - 2):
        said = {f"key{n}": n for n in range(number)}
        with closing(Store(tmp_path / str(number), ENCODER)) as store:
            (stored,) = store.apply([put("a", b"all", said, FACTS)])
        assert len(stored.record.metadata) == MAX_KEYS
        assert stored.record.said_by_client == said
        assert not needs_asking(stored.record, FACTS)


def test_only_who_was_not_asked_is_asked(tmp_path: Path) -> None:
    with closing(Store(tmp_path, ENCODER)) as store:
        store.apply(
            [
                put("asked", b"none", {}, FACTS),
                put("silent", b"none"),
                put("talks", b"all", {"lens": True}),
            ]
        )
        before = store.record("asked")
    ask = Asking()
    assert ask_all(tmp_path, ask=ask) == {}
    assert ask.seen == [b"none", b"all"]
    with closing(Store(tmp_path, ENCODER)) as store:
        assert store.record("asked") == before
        # Nothing that the index knows has changed.
        silent = store.record("silent")
        assert (silent.metadata, silent.asked, silent.sequence) == ({}, list(FACTS), 2)
        talks = store.record("talks")
        assert talks.metadata == ANSWERS[b"all"] | {"lens": True}
        assert (talks.filename, talks.sequence) == ("talks.jpg", 4)
    assert to_ask(tmp_path) == []


def test_places_are_taken_out_without_asking_and_come_back_by_asking(tmp_path: Path) -> None:
    said = {"latitude": 1.5}
    with closing(Store(tmp_path, ENCODER)) as store:
        store.apply([put("a", b"all", {}, FACTS), put("b", b"all", said, FACTS)])
    ask = Asking()
    ask_all(tmp_path, WITHOUT_PLACE, ask)
    assert ask.seen == []
    with closing(Store(tmp_path, ENCODER)) as store:
        without = {name: ANSWERS[b"all"][name] for name in WITHOUT_PLACE}
        assert store.record("a").metadata == without
        assert store.record("b").metadata == without | said  # it is not the photo that says so
    ask_all(tmp_path, FACTS, ask)
    with closing(Store(tmp_path, ENCODER)) as store:
        assert store.record("a").metadata == ANSWERS[b"all"]
        assert store.record("b").metadata == ANSWERS[b"all"] | said
    ask_all(tmp_path, ())
    with closing(Store(tmp_path, ENCODER)) as store:
        assert (store.record("a").metadata, store.record("b").metadata) == ({}, said)


def test_what_can_not_be_asked_stays_but_for_what_is_not_wanted(tmp_path: Path) -> None:
    with closing(Store(tmp_path, ENCODER)) as store:
        place = replace(photo(BROKEN), facts=PLACE | {"camera": "X"})
        store.apply(
            [
                put("bad", BROKEN, {"year": 1}),
                Put("placed", BROKEN, None, place, {}),
                put("rotten", b"some"),
                put("good", b"some"),
            ]
        )
    with lmdb.open(str(tmp_path), max_dbs=16) as env:
        originals = env.open_db(b"originals")
        with env.begin(write=True) as txn:
            txn.put(b"rotten", b"other", db=originals)
    failed = ask_all(tmp_path, WITHOUT_PLACE)
    assert failed["bad"] == ("bad.jpg", "It ends early.")
    assert failed["placed"] == (None, "It ends early.")
    assert "original of the photo 'rotten' is damaged" in failed["rotten"][1]
    with closing(Store(tmp_path, ENCODER)) as store:
        assert store.record("good").metadata == {"camera": "X-T3"}
        bad, placed = store.record("bad"), store.record("placed")
    assert (bad.metadata, bad.asked, bad.sequence) == ({"year": 1}, [], 1)
    assert (placed.metadata, placed.asked) == ({"camera": "X"}, ["camera"])
    assert to_ask(tmp_path, WITHOUT_PLACE) == ["bad", "placed", "rotten"]


def test_facts_of_another_original_are_not_written(tmp_path: Path) -> None:
    with closing(Store(tmp_path, ENCODER)) as store:
        (stored,) = store.apply([put("a", b"some")])
        sha256 = stored.record.sha256
        facts = {"camera": "X"}
        asked = [SetFacts("a", "0" * 64, facts), SetFacts("b", sha256, facts)]
        assert store.apply(asked) == [False, False]
        assert store.record("a") == stored.record


@pytest.mark.parametrize("format", [1, 2, 3])
def test_a_store_of_an_older_format(tmp_path: Path, format: int) -> None:
    make_old(tmp_path / "old", OLD, format)
    assert to_ask(tmp_path / "old") == list(OLD)
    with closing(Store(tmp_path / "old", ENCODER)) as store:
        ask_again(store, list(OLD), FACTS, lambda images: [PLACE] * len(images))
        for id, data in OLD.items():
            assert store.record(id).metadata == (metadata(data) if format > 1 else {}) | PLACE
            assert store.record(id).skipped == 0
    assert to_ask(tmp_path / "old") == []


def test_a_full_store_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Store(tmp_path, ENCODER)) as store:
        store.apply([put("a", b"all")])
        full = [StoreFull("The disk is full.")]
        monkeypatch.setattr(Store, "apply", lambda self, operations: full)
        with pytest.raises(StoreFull):
            ask_again(store, ["a"], FACTS, Asking())


WANTED = st.sampled_from([FACTS, WITHOUT_PLACE, ()])
IDS = st.sampled_from("abc")
SAID = st.dictionaries(st.sampled_from([*FACTS, "year"]), st.sampled_from([1, "one"]), max_size=3)
STEPS = st.one_of(
    st.tuples(st.just("put"), IDS, st.sampled_from([*ANSWERS]), SAID, WANTED),
    st.tuples(st.just("delete"), IDS),
    st.tuples(st.just("ask"), WANTED, st.integers(0, 3)),
    st.tuples(st.just("cut")),
)


@settings(max_examples=examples(60))
@given(st.lists(STEPS, max_size=15), WANTED)
def test_whatever_was_asked_before(steps: list[tuple], wanted: Sequence[str]) -> None:
    """At the end each photo says what is wanted, and an index that follows the store knows it."""
    photos: dict[str, tuple[bytes, Metadata]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder, replica = Path(name), Replica()
        Store(folder, ENCODER).close()
        for what, *words in [*steps, ("ask", wanted, 3)]:
            ids = to_ask(folder, words[0])[: words[1]] if what == "ask" else []
            with closing(Store(folder, ENCODER)) as store:
                if what == "put":
                    store.apply([put(*words)])
                    photos.setdefault(words[0], (words[1], words[2]))
                elif what == "delete":
                    store.apply([Delete(*words)])
                    photos.pop(*words, None)
                elif what == "cut":
                    store.cut_log(store.sequence)
                else:
                    assert ask_again(store, ids, words[0], Asking()) == {}
                replica.advance(store, 1000)
        with closing(Store(folder, ENCODER)) as store:
            content = replica.catch_up(store)
            assert set(content) == set(photos)
            for id, (data, said) in photos.items():
                facts = {key: fact for key, fact in ANSWERS[data].items() if key in wanted}
                assert store.record(id).metadata == content[id][1] == facts | said
                assert (vectors_of(store, id) == float16(data)).all()
            assert_counts(store, {id: data for id, (data, _) in photos.items()})
            with store.reading() as txn:
                check = StoreCheck(store, txn)
                found = [*check.photo_damage(), *check.log_damage(), list(check.other_damage())]
            assert not any(found)
        assert to_ask(folder, wanted) == []
