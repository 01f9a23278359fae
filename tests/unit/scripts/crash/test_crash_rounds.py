"""Rounds of faults: nothing is lost, and the test would notice if it were."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from crash import rounds
from crash.rounds import Holdings, run_rounds
from crash.shim import NoCompiler
from crash.writer import ENCODER, content, photo

from deployments.store.operations import Delete, Put
from deployments.store.store import Store


def test_nothing_is_lost(tmp_path: Path, monkeypatch) -> None:
    """One round of each kind; `scripts/crashtest.py --rounds` does more."""
    monkeypatch.setattr(rounds, "MOST_S", 1)
    try:
        report = run_rounds(tmp_path, len(rounds.KINDS), seed=5)
    except NoCompiler as error:
        pytest.skip(str(error))
    assert report.violations == []
    assert report.endings.total() == len(rounds.KINDS)
    assert report.outcomes["stored"] > 20
    assert "Nothing was lost." in str(report)


def put(id: str, number: int) -> Put:
    return Put(id, content(number), None, photo(content(number)))


@pytest.fixture
def holdings(folder: Path) -> Holdings:
    """What a store holds: `a` and `b`, and no longer `c`."""
    store = Store(folder, ENCODER)
    store.apply([put("a", 1), put("b", 2), put("c", 3), Delete("c")])
    store.close()
    holdings = Holdings()
    holdings.answered([("a", 1), ("b", 2), ("c", 3)], ["stored"] * 3)
    holdings.answered([("c", None), ("d", 9)], ["deleted", "full"])
    return holdings


def test_what_is_as_it_should_be_is_not_reported(holdings: Holdings, folder: Path) -> None:
    holdings.unanswered([("a", None), ("b", 7), ("e", 8)])
    assert holdings.compare(folder) == holdings.violations == []
    assert holdings.possible == {"a": {1}, "b": {2}, "c": {None}, "e": {None}}
    assert holdings.outcomes == Counter(stored=3, deleted=1, full=1, unanswered=3)


@pytest.mark.parametrize(
    ("operations", "sentence"),
    [
        ([Delete("a")], "a is lost"),
        ([Delete("a"), put("a", 4)], "a has other bytes"),
        ([put("c", 3)], "c has other bytes"),
        ([put("x", 3)], "x is there, and was never sent"),
    ],
)
def test_what_should_not_be_is_noticed(holdings, folder: Path, operations, sentence: str) -> None:
    store = Store(folder, ENCODER)
    store.apply(operations)
    store.close()
    assert holdings.compare(folder) == [sentence]


def test_damage_is_noticed(holdings: Holdings, folder: Path) -> None:
    store = Store(folder, ENCODER)
    with store._env.begin(write=True) as txn:
        txn.put(b"a", b"torn", db=store.dbs.originals)
    store.close()
    assert "a original isn't what was sent: its SHA-256 is wrong" in holdings.compare(folder)


def test_a_deletion_of_what_is_lost_is_noticed(holdings: Holdings) -> None:
    holdings.answered([("a", None)], ["unknown id"])
    assert holdings.violations == ["a was lost: it was unknown when it was deleted"]
