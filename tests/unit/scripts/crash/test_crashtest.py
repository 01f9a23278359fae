"""That the crash test would notice what it is there to notice."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import crashtest
import httpx
import pytest
from crash.checks import Seen, check_listing, check_photo, sha256, verify
from crash.journal import Journal, picture
from crash.kills import ALL, FAULTS, KILLS_PER_RESTART, ROUND, VICTIMS, add_faults, plan_kills
from hypothesis import given
from hypothesis import strategies as st

from deployments.store.operations import Delete, Put
from deployments.store.store import Store
from tests.support.stored.stores import ENCODER, put

PROBLEM = {"content-type": "application/problem+json"}


@given(kills=st.integers(1, 300), seed=st.integers(0, 2**32))
def test_a_plan_kills_everything_in_its_turn(kills, seed):
    plan = plan_kills(kills, random.Random(seed))
    assert len(plan) == kills
    assert plan.count(ALL) == -(-kills // KILLS_PER_RESTART)
    assert set(plan) <= {ALL, *VICTIMS}
    if kills >= 3 * len(ROUND):
        assert set(plan) == {ALL, *VICTIMS}


@given(kills=st.integers(1, 100), faults=st.integers(0, 20), seed=st.integers(0, 2**32))
def test_faults_are_put_between_the_kills(kills, faults, seed):
    plan = plan_kills(kills, random.Random(seed))
    mixed = add_faults(plan, faults, random.Random(seed))
    assert [kind for kind in mixed if kind not in FAULTS] == plan
    counts = Counter(kind for kind in mixed if kind in FAULTS)
    assert counts.total() == faults
    assert all(
        faults // len(FAULTS) <= counts[kind] <= -(-faults // len(FAULTS)) for kind in FAULTS
    )


def test_a_picture_is_always_the_same_and_there_are_no_two_alike():
    pictures = [picture(number) for number in range(50)]
    assert pictures == [picture(number) for number in range(50)]
    assert len(set(pictures)) == 50


# The journal


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.jsonl")


def indexed(status: str = "created") -> httpx.Response:
    return httpx.Response(201, json={"images": [{"status": status, "sequence": 1}]})


def problem(status: int) -> httpx.Response:
    return httpx.Response(status, headers=PROBLEM, json={"detail": "no"})


def tell(journal: Journal, kind: str, answer: httpx.Response | None, number: int = 1) -> str:
    """A request for the photo `a`; returns what the journal makes of the answer."""
    sent = None if kind == "delete" else number
    return journal.end(journal.begin(0, kind, "a", sent), answer)


def deleted(sequence: int) -> httpx.Response:
    return httpx.Response(204, headers={"Inset-Sequence": str(sequence)})


DELETED, GONE, LOST_CONNECTION = deleted(2), problem(404), None


@pytest.mark.parametrize(
    ("requests", "possible"),
    [
        ([("index", indexed())], {1}),
        ([("index", LOST_CONNECTION)], {None, 1}),
        ([("index", problem(503))], {None, 1}),
        ([("index", httpx.Response(500, text="Internal Server Error"))], {None, 1}),
        ([("index", LOST_CONNECTION), ("index", indexed("exists"))], {1}),
        ([("index", problem(507))], {None}),
        ([("broken", problem(422))], {None}),
        ([("index", indexed()), ("delete", DELETED)], {None}),
        ([("index", indexed()), ("delete", LOST_CONNECTION)], {None, 1}),
        ([("index", indexed()), ("delete", problem(503)), ("delete", GONE)], {None}),
        ([("index", indexed()), ("delete", problem(503)), ("delete", DELETED)], {None}),
        ([("index", indexed()), ("delete", DELETED), ("index", indexed())], {1}),
    ],
)
def test_what_may_be_stored_follows_from_the_answers(journal, requests, possible):
    for kind, answer in requests:
        tell(journal, kind, answer)
    assert journal.possible["a"] == possible


def test_a_deletion_that_is_repeated_is_answered_as_before(journal):
    for answer in (indexed(), DELETED, DELETED):
        tell(journal, "index" if answer.status_code == 201 else "delete", answer)
    assert (journal.violations, journal.possible["a"]) == ([], {None})


def test_if_the_disk_may_be_full_changes_may_be_refused_and_are_not_there(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl", may_be_full=True)
    for kind, answer in (("index", problem(507)), ("index", indexed()), ("delete", problem(507))):
        tell(journal, kind, answer)
    assert (journal.violations, journal.possible["a"]) == ([], {1})
    assert journal.statuses == Counter({("index", 507): 1, ("index", 201): 1, ("delete", 507): 1})
    tell(journal, "search", problem(507))
    tell(journal, "index", httpx.Response(507, text="no sentence"))
    assert len(journal.violations) == 2


def test_a_request_that_was_not_sent_changes_nothing(journal):
    journal.withdraw(journal.begin(0, "index", "a", 1))
    assert journal.possible["a"] == {None}
    assert journal.outcomes.total() == 0


def found(*matches: tuple[str, float]) -> httpx.Response:
    listing = [{"id": id, "distance": distance} for id, distance in matches]
    return httpx.Response(200, json={"matches": listing})


@pytest.mark.parametrize(
    ("requests", "sentence"),
    [
        ([("index", indexed()), ("delete", GONE)], "was lost"),
        ([("index", indexed()), ("index", indexed())], "was lost"),
        ([("index", indexed()), ("delete", DELETED), ("delete", deleted(3))], "came back"),
        ([("delete", DELETED)], "came back"),
        ([("index", indexed("exists"))], "came back"),
        ([("index", indexed()), ("search", found(("b", 0.0), ("a", 0.0)))], "not found"),
        ([("index", indexed()), ("search", found(("a", 0.2)))], "not found"),
        ([("index", indexed()), ("search", found())], "not found"),
        ([("index", indexed()), ("search", problem(400))], "answered 400"),
        ([("broken", indexed())], "answered 201"),
        ([("index", problem(415))], "answered 415"),
        ([("index", problem(507))], "answered 507"),
        ([("index", problem(500))], "answered 500"),
        ([("index", httpx.Response(408, text="too slow"))], "answered 408"),
    ],
)
def test_an_answer_that_should_not_be_is_noticed(journal, requests, sentence):
    *before, last = requests
    for kind, answer in before:
        tell(journal, kind, answer)
    assert journal.violations == []
    tell(journal, *last)
    (violation,) = journal.violations
    assert sentence in violation


# The checks at the end

PHOTO = picture(1)
RECORD = {"id": "a", "sha256": sha256(PHOTO), "chunks": [{}]}
WHOLE = Seen(PHOTO, RECORD, True, [("a", 0.0), ("b", 0.3)])
ABSENT = Seen(None, None, False, [("b", 0.3)])


@pytest.mark.parametrize(
    ("possible", "listed", "seen"),
    [
        ({1}, True, WHOLE),
        ({None, 1}, True, WHOLE),
        ({None, 1}, False, ABSENT),
        ({None}, False, ABSENT),
    ],
)
def test_what_is_as_it_should_be_is_not_reported(possible, listed, seen):
    assert check_photo("a", possible, listed, seen) == []


@pytest.mark.parametrize(
    ("possible", "listed", "seen", "sentence"),
    [
        ({1}, False, ABSENT, "is lost"),
        ({None}, True, WHOLE, "was deleted, and is there"),
        ({2}, True, WHOLE, "other bytes"),
        ({None, 2}, True, WHOLE, "other bytes"),
        ({1}, False, WHOLE, "by half: only in original, record, thumbnail, search"),
        ({1}, True, replace(WHOLE, original=None), "by half"),
        ({1}, True, replace(WHOLE, record=None), "by half"),
        ({1}, True, replace(WHOLE, thumbnail=False), "by half"),
        ({1}, True, replace(WHOLE, found=ABSENT.found), "by half"),
        ({None}, False, replace(ABSENT, found=WHOLE.found), "by half: only in search"),
        ({None}, False, replace(ABSENT, thumbnail=True), "by half: only in thumbnail"),
        ({None, 1}, True, ABSENT, "by half: only in listing"),
        ({1}, True, replace(WHOLE, found=[("b", 0.0), ("a", 0.0)]), "bytes find first"),
        ({1}, True, replace(WHOLE, found=[("a", 0.1)]), "bytes find first"),
        ({1}, True, replace(WHOLE, record=RECORD | {"sha256": "00"}), "isn't its own"),
        ({1}, True, replace(WHOLE, record=RECORD | {"chunks": []}), "isn't its own"),
    ],
)
def test_a_photo_that_is_not_as_it_should_be_is_reported(possible, listed, seen, sentence):
    (violation,) = check_photo("a", possible, listed, seen)
    assert violation.startswith("a ")
    assert sentence in violation


def counts(photos: int, chunks: int) -> dict[str, int]:
    return {"photos": photos, "chunks": chunks}


ONE = {"store": counts(1, 1), "chunk_index": counts(1, 1)}
NONE = {"store": counts(0, 0), "chunk_index": counts(0, 0)}
TWO = {"store": counts(2, 2), "chunk_index": counts(2, 2)}


@pytest.mark.parametrize(
    ("deleted", "records", "stats", "sentence"),
    [
        (False, [RECORD], ONE, None),
        (True, [], NONE, None),
        (False, [], NONE, "is lost"),
        (True, [RECORD], ONE, "was deleted, and is there"),
        (False, [RECORD | {"sha256": "00"}], ONE, "other bytes"),
        (False, [RECORD, RECORD], TWO, "listed twice"),
        (False, [RECORD, RECORD | {"id": "b"}], TWO, "b is listed, and was never sent"),
        (False, [RECORD], ONE | {"store": counts(2, 1)}, "in store"),
        (False, [RECORD], ONE | {"chunk_index": counts(1, 2)}, "in chunk_index"),
    ],
)
def test_the_list_and_the_counts_are_held_against_the_journal(
    journal, deleted, records, stats, sentence
):
    tell(journal, "index", indexed())
    if deleted:
        tell(journal, "delete", DELETED)
    violations = check_listing(journal, records, stats)
    assert len(violations) == (0 if sentence is None else 1)
    assert all(sentence in violation for violation in violations)


def test_the_files_of_the_end_are_held_against_the_journal(journal, folder):
    def change(what: Put | Delete) -> None:
        store = Store(folder, ENCODER)
        store.apply([what])
        store.close()

    change(put("a", picture(1)))
    tell(journal, "index", indexed())
    assert verify(folder, journal) == []
    tell(journal, "delete", DELETED)
    assert verify(folder, journal) == ["in the files, a was deleted, and is there"]
    change(Delete("a"))
    assert verify(folder, journal) == []
    change(put("b", picture(2)))
    assert verify(folder, journal) == ["in the files, b is listed, and was never sent"]


def test_a_photo_that_was_stored_without_its_preview_is_reported(journal, folder):
    store = Store(folder, ENCODER)
    store.apply([put("a", picture(1))])
    with store._env.begin(write=True) as txn:
        txn.delete(b"a", db=store.dbs.previews)
    store.close()
    tell(journal, "index", indexed())
    assert verify(folder, journal) == ["in the files, a has no preview"]


# The script


def test_a_folder_that_is_not_empty_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "precious").write_text("mine")
    monkeypatch.setattr("sys.argv", ["crashtest.py", "--folder", str(tmp_path)])
    with pytest.raises(SystemExit):
        crashtest.main()
    assert "is not empty" in capsys.readouterr().err
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize(
    ("violations", "status", "last"),
    [([], 0, "Nothing was lost."), (["a is lost"], 1, "a is lost")],
)
def test_the_exit_status_tells_and_what_went_wrong_is_kept(
    tmp_path, monkeypatch, capsys, violations, status, last
):
    folder = tmp_path / "crashtest"

    def crash(where: Path, *_: object) -> crashtest.Report:
        assert where == folder
        return crashtest.Report(
            Counter(Store=1), {"Store": [3.0]}, Counter(), Counter(), violations
        )

    monkeypatch.setattr(crashtest, "crash", crash)
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **_: folder.mkdir() or str(folder))
    monkeypatch.setattr("sys.argv", ["crashtest.py", "--kills", "1"])
    assert crashtest.main() == status
    assert last in capsys.readouterr().out
    assert folder.exists() == bool(violations)
