"""The store's log: where a follower goes on, and when it is cut."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from deployments.errors import StoreFull
from deployments.records import Position, Stored
from deployments.settings import StoreSettings
from deployments.store import deployment as store_deployment
from deployments.store import store as store_module
from deployments.store.deployment import StoreDeployment
from deployments.store.followers import CUT_EVERY_S, FORGET_S, Followers
from deployments.store.operations import Delete
from deployments.store.store import Store
from tests.support.stored.stores import ENCODER, Replica, assert_same_content, at, put


def with_deletions(store: Store, count: int) -> None:
    """Three photos; between the first and the others, photos that come and go."""
    store.apply([put("first", b"1")])
    store.apply([op for i in range(count) for op in (put(f"{i}", b"x"), Delete(f"{i}"))])
    store.apply([put("second", b"2"), put("third", b"3")])


# Where a follower goes on


def test_who_has_followed_goes_on_and_others_begin_anew(store: Store) -> None:
    store.apply([put("a", b"1"), put("b", b"2"), Delete("a")])
    here = at(store, 2)
    assert not store.changes(here, 1).anew
    assert not store.changes(at(store, 3), 1).anew
    for position in (
        None,
        replace(here, history="0" * 32),
        replace(here, sequence=4),
        replace(here, base=4),
    ):
        changes = store.changes(position, 2**20)
        assert changes.anew
        assert changes.position == Position(store.history, sequence=3, base=3)
        assert [change.id for change in changes.changes] == ["b", "a"]


def test_who_needs_what_was_cut_begins_anew(store: Store) -> None:
    with_deletions(store, 3)
    assert store.cut_log(5) == 2  # deletions are 3, 5 and 7
    assert store.changes(at(store, 4), 2**20).anew
    assert not store.changes(at(store, 5), 2**20).anew
    # Who began with nothing at change 6 needs no word of what was removed before that.
    late = Position(store.history, sequence=1, base=6)
    changes = store.changes(late, 2**20)
    assert not changes.anew
    assert [(change.sequence, change.vectors is None) for change in changes.changes] == [
        (7, True),
        (8, False),
        (9, False),
    ]


# Cutting


def test_a_cut_goes_portion_by_portion(store: Store, monkeypatch) -> None:
    monkeypatch.setattr(store_module, "CUT_ENTRIES", 3)
    with_deletions(store, 10)
    assert store.cut_log(0) == 0
    assert store.cut_log(12) == 5
    assert store.details().cut == 12
    assert store.cut_log(6) == 0  # nothing is ever uncut
    assert store.details().cut == 12
    assert store.cut_log(10**9) == 5
    assert (store.deletions, store.details().log_entries) == (0, 3)
    assert store.cut_log(10**9) == 0
    photos = {"first": b"1", "second": b"2", "third": b"3"}
    assert_same_content(Replica().catch_up(store), photos)


def test_the_last_change_stays_known_when_all_was_cut(store: Store, folder: Path) -> None:
    store.apply([put("a", b"x"), Delete("a")])
    assert store.cut_log(2) == 0
    store.apply([put("a", b"x"), Delete("a")])
    assert store.cut_log(4) == 1
    store.close()
    store = Store(folder, ENCODER)
    assert store.sequence == 4
    assert store.apply([put("b", b"y")])[0].record.sequence == 5
    assert store.cut_log(5) == 1
    store.close()


def test_a_cut_that_ends_in_the_middle_is_no_harm(store: Store, monkeypatch) -> None:
    """What a crash between two portions leaves."""
    monkeypatch.setattr(store_module, "CUT_ENTRIES", 4)
    with_deletions(store, 10)
    replica = Replica()
    replica.catch_up(store)
    stale = at(store, 3)

    def stop(_: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store_module.time, "sleep", stop)
        with pytest.raises(KeyboardInterrupt):
            store.cut_log(20)
    assert 0 < store.details().cut < 20
    assert store.changes(stale, 1).anew
    assert not store.changes(replica.position, 1).anew
    store.cut_log(20)
    assert store.deletions == 1


def test_a_full_store_can_be_cut(folder: Path) -> None:
    store = Store(folder, ENCODER, initial_bytes=2**18, max_bytes=2**20)
    store.apply([op for i in range(500) for op in (put(f"{i}", b"x"), Delete(f"{i}"))])
    number = 0
    while isinstance(store.apply([put(f"full{number}", b"x" * 5000)])[0], Stored):
        number += 1
    assert store.cut_log(1000) == 500
    assert store.deletions == 0
    assert store.stats().photos == number
    store.close()
    # And where the limit is raised it goes on.
    store = Store(folder, ENCODER, max_bytes=2 * 2**20)
    assert isinstance(store.apply([put(f"full{number}", b"x" * 5000)])[0], Stored)
    store.close()


def test_a_refused_put_leaves_no_trace(folder: Path) -> None:
    store = Store(folder, ENCODER, initial_bytes=2**20, max_bytes=2**20)
    store.apply([put("a", b"a")])
    before = store.stats(), store.details().log_entries
    (full,) = store.apply([put("big", b"b" * 2**20)])
    assert isinstance(full, StoreFull)
    assert full.status == 507
    assert (store.stats(), store.details().log_entries) == before
    assert isinstance(store.apply([put("big", b"b")])[0], Stored)
    store.close()


# Followers


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_followers_hold_back_the_cut() -> None:
    clock = Clock()
    followers = Followers(clock)

    def known(sequence: int, base: int = 0) -> Position:
        return Position("h", sequence, base)

    followers.heard("a", known(50), None)
    assert followers.cut_now() is None  # the others may not have been heard yet
    clock.now += FORGET_S
    followers.heard("a", known(60), None)
    assert followers.cut_now() == 60
    assert followers.cut_now() is None  # not so soon again
    for heard, floor in [
        (("b", known(90), known(40)), 40),  # its snapshot lies before
        (("b", known(90), known(10, base=55)), 55),  # and knows no more than 55 anyway
        (("b", known(90), Position("other", 3, 3)), 60),  # worth nothing: it would begin anew
        (("b", known(30, base=70), None), 60),  # still loading what there was at 70
        (("c", known(20), None), 20),
        (("c", known(95), None), 60),
    ]:
        clock.now += CUT_EVERY_S
        followers.heard("a", known(60), None)
        followers.heard(*heard)
        assert followers.cut_now() == floor
    # "a" and "b" are no longer heard, so they are forgotten.
    clock.now += FORGET_S
    followers.heard("c", known(99), known(97))
    assert followers.cut_now() == 97
    clock.now += FORGET_S
    assert followers.cut_now() is None


def test_the_deployment_cuts_what_its_followers_have_seen(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(store_deployment, "CUT_WORTH", 3)
    monkeypatch.setattr(store_deployment, "REPEATABLE", 0)
    deployment = StoreDeployment.func_or_class(StoreSettings(path=str(folder)), ENCODER)
    store, clock = deployment.store, Clock()
    deployment._followers = Followers(clock)

    async def scenario() -> None:
        with_deletions(store, 2)
        deployment._sequence = store.sequence
        first = await deployment.changes(None, 0, "a", None)
        assert first.anew
        clock.now += FORGET_S
        here = first.position
        again = await deployment.changes(here, 0, "a", here)
        await deployment._cutting
        assert (again.changes, again.position) == ([], here)
        assert store.deletions == 2  # too few to be worth it
        store.apply([put("x", b"x"), Delete("x"), put("y", b"y"), Delete("y"), put("z", b"z")])
        deployment._sequence = store.sequence
        clock.now += CUT_EVERY_S
        followed = await deployment.changes(here, 0, "a", here)
        await deployment._cutting
        assert store.deletions == 2  # those it has not applied yet, and its snapshot neither
        clock.now += CUT_EVERY_S
        assert not (await deployment.changes(followed.position, 0, "a", followed.position)).anew
        await deployment._cutting
        assert store.deletions == 2  # too few again
        # A poll waits for a change, and returns with it.
        poll = asyncio.create_task(deployment.changes(followed.position, 30, "a", None))
        await asyncio.sleep(0.05)
        assert not poll.done()
        await asyncio.to_thread(store.apply, [put("new", b"n")])
        async with deployment._changed:
            deployment._sequence = store.sequence
            deployment._changed.notify_all()
        assert [change.id for change in (await poll).changes] == ["new"]

    asyncio.run(scenario())
    store.close()


def test_a_cut_leaves_the_deletions_that_may_be_repeated(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(store_deployment, "CUT_WORTH", 3)
    monkeypatch.setattr(store_deployment, "REPEATABLE", 4)
    deployment = StoreDeployment.func_or_class(StoreSettings(path=str(folder)), ENCODER)
    store = deployment.store
    with_deletions(store, 6)  # the last of the deletions is 13, the last change 15
    deployment._cut_log(store.sequence)
    assert store.deletions == 6
    with_deletions(store, 1)
    deployment._cut_log(store.sequence)
    assert store.details().cut == store.sequence - 4
    store.close()
