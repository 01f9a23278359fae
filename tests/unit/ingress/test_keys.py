"""The keys of clients: who is known, how soon, and that a key stands in no file."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from deployments.errors import StartupError, Unavailable
from deployments.ingress import keys as module
from deployments.ingress.keys import (
    SCOPES,
    Key,
    Keys,
    UnusableKeys,
    make_key,
    read_keys,
    revoke_key,
)


@pytest.fixture(autouse=True)
def looks_always(monkeypatch):
    """Look at the file each time, so that no test has to wait."""
    monkeypatch.setattr(module, "LOOK_S", 0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "keys.json"


def name_of(keys: Keys, secret: str) -> str | None:
    key = keys.find(secret)
    return None if key is None else key.name


def test_a_key_is_32_random_bytes_and_is_found_by_all_that_the_file_says(path: Path) -> None:
    secret = make_key(path, "phone", ("search", "read"))
    assert re.fullmatch(r"inset_[A-Za-z0-9_-]{43}", secret)
    assert secret != make_key(path, "tablet", ("search",))
    key = Keys(path).find(secret)
    assert (key.name, key.scopes) == ("phone", ("search", "read"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", key.created)
    assert [key.name for key in read_keys(path)] == ["phone", "tablet"]


def test_without_a_file_no_key_is_needed(path: Path) -> None:
    keys = Keys(path)
    assert not keys.are_needed
    assert keys.find("inset_" + "a" * 43) is None


def test_the_first_key_counts_without_a_restart_and_locks_the_door(path: Path) -> None:
    keys = Keys(path)
    assert not keys.are_needed
    secret = make_key(path, "phone", ("search",))
    assert keys.are_needed
    assert name_of(keys, secret) == "phone"


def test_a_revoked_key_counts_no_more_and_the_door_stays_locked(path: Path) -> None:
    phone, tablet = (make_key(path, name, ("search",)) for name in ("phone", "tablet"))
    keys = Keys(path)
    revoke_key(path, "phone")
    assert name_of(keys, phone) is None
    assert name_of(keys, tablet) == "tablet"
    revoke_key(path, "tablet")
    assert name_of(keys, tablet) is None
    assert keys.are_needed
    assert Keys(path).are_needed  # also after a restart


def test_what_was_read_counts_for_less_than_a_second(path: Path, monkeypatch) -> None:
    monkeypatch.undo()
    assert module.LOOK_S < 1
    now = 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    keys = Keys(path)
    assert not keys.are_needed
    make_key(path, "phone", ("search",))
    now += module.LOOK_S / 2
    assert not keys.are_needed
    now += module.LOOK_S / 2
    assert keys.are_needed


def test_a_name_is_taken_until_its_key_is_revoked(path: Path) -> None:
    old = make_key(path, "phone", ("search",))
    with pytest.raises(UnusableKeys, match="There is a key named phone already"):
        make_key(path, "phone", ("admin",))
    keys = Keys(path)
    assert keys.find(old).scopes == ("search",)
    revoke_key(path, "phone")
    new = make_key(path, "phone", ("read",))
    assert (name_of(keys, old), name_of(keys, new)) == (None, "phone")


def test_who_revokes_an_unknown_name_is_told_which_there_are(path: Path) -> None:
    with pytest.raises(UnusableKeys, match=r"no key named phone \(there are: none\)"):
        revoke_key(path, "phone")
    assert not path.exists()  # it would lock the door
    make_key(path, "tablet", ("search",))
    with pytest.raises(UnusableKeys, match=r"no key named phone \(there are: tablet\)"):
        revoke_key(path, "phone")


def test_all_keys_of_a_name_are_revoked(path: Path) -> None:
    """Somebody has edited the file, and now a name stands there twice."""
    secret = make_key(path, "phone", ("search",))
    file = json.loads(path.read_bytes())
    path.write_text(json.dumps({"keys": file["keys"] * 2}))
    revoke_key(path, "phone")
    assert name_of(Keys(path), secret) is None


@pytest.mark.parametrize("name", ["", "a b", "-a", "a/b", "a\n", "ä", "a" * 65])
def test_what_is_no_name_makes_no_key(path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        make_key(path, name, ("search",))
    assert not path.exists()


@pytest.mark.parametrize("scopes", [(), ("write", "everything")])
def test_what_are_no_scopes_make_no_key(path: Path, scopes: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="scopes"):
        make_key(path, "phone", scopes)
    assert not path.exists()


@pytest.mark.parametrize("scope", SCOPES)
def test_a_scope_allows_itself_alone_but_admin_allows_all(scope: str) -> None:
    key = Key(name="phone", scopes=(scope,), sha256="0" * 64, created="")
    assert key.allowed == (list(SCOPES) if scope == "admin" else [scope])
    assert [one for one in SCOPES if key.allows(one)] == key.allowed


def test_only_its_owner_reads_the_file_whatever_the_umask(path: Path) -> None:
    umask = os.umask(0)
    try:
        make_key(path, "phone", ("search",))
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    make_key(path, "tablet", ("search",))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_key_stands_in_no_file_and_in_no_log(path: Path, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    secret = make_key(path, "phone", ("search",))
    keys = Keys(path)
    assert name_of(keys, secret) == "phone"
    path.write_text("x")
    with pytest.raises(Unavailable):
        keys.find(secret)
    files = [file for file in path.parent.rglob("*") if file.is_file()]
    assert path in files
    for file in files:
        assert secret.removeprefix("inset_").encode() not in file.read_bytes(), file
    assert secret not in caplog.text
    assert caplog.text  # something was logged


def test_keys_are_compared_in_constant_time_each_of_them(path: Path, monkeypatch) -> None:
    secrets = [make_key(path, f"key-{number}", ("search",)) for number in range(3)]
    compare, compared = module.hmac.compare_digest, list[tuple[str, str]]()

    def spy(one: str, other: str) -> bool:
        compared.append((one, other))
        return compare(one, other)

    keys = Keys(path)
    hashes = {key.sha256 for key in read_keys(path)}
    monkeypatch.setattr(module.hmac, "compare_digest", spy)
    for secret in (*secrets, "inset_" + "a" * 43):
        compared.clear()
        keys.find(secret)
        assert {one for one, _ in compared} == hashes  # also those after the one that is right
        assert not {secret} & {text for pair in compared for text in pair}


@pytest.mark.parametrize("end", ["", "x", " ", "\n", "\0", "x" * 10_000, "é", "漢"])
@pytest.mark.parametrize("start", ["", "inset_"])
def test_what_only_resembles_a_key_is_not_found(path: Path, start: str, end: str) -> None:
    secret = make_key(path, "phone", ("search",))
    keys = Keys(path)
    other = start + secret.removeprefix("inset_") + end
    assert name_of(keys, other) == ("phone" if other == secret else None)
    assert name_of(keys, start + end) is None
    assert name_of(keys, read_keys(path)[0].sha256) is None


# A file that can't be read, or that is gone.


def file_with(scopes: list[str], sha256: str) -> bytes:
    key = {"name": "phone", "scopes": scopes, "sha256": sha256, "created": ""}
    return json.dumps({"keys": [key]}).encode()


BROKEN = {
    "empty": b"",
    "cut": b'{"keys": [{"name": "phone", "sco',
    "not UTF-8": b"\xff\xfe",
    "no keys": b"{}",
    "a list": b"[]",
    "an unknown scope": file_with(["root"], "0" * 64),
    "no scopes": file_with([], "0" * 64),
    "no hash": file_with(["read"], "0"),
}
REASONS = {
    "empty": "Invalid JSON",
    "cut": "Invalid JSON",
    "not UTF-8": "Invalid JSON",
    "no keys": "keys: Field required",
    "a list": "object",
    "an unknown scope": "keys.0.scopes.0: ",
    "no scopes": "keys.0.scopes: ",
    "no hash": "keys.0.sha256: ",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_locks_everybody_out_and_says_why(path: Path, kind: str, caplog) -> None:
    secret = make_key(path, "phone", ("admin",))
    keys = Keys(path)
    assert name_of(keys, secret) == "phone"
    good = path.read_bytes()
    path.write_bytes(BROKEN[kind])
    for _ in range(3):
        with pytest.raises(Unavailable, match=re.escape(REASONS[kind])):
            keys.find(secret)
        with pytest.raises(Unavailable, match=re.escape(str(path))):
            _ = keys.are_needed
    assert len(caplog.records) == 1  # not a line a request
    assert REASONS[kind] in caplog.text
    path.write_bytes(good)
    assert name_of(keys, secret) == "phone"


@pytest.mark.parametrize("kind", BROKEN)
def test_with_a_broken_file_nothing_starts_and_nothing_is_changed(path: Path, kind: str) -> None:
    path.parent.mkdir()
    path.write_bytes(BROKEN[kind])
    with pytest.raises(StartupError, match=re.escape(REASONS[kind])):
        Keys(path)
    with pytest.raises(UnusableKeys, match=re.escape(str(path))):
        make_key(path, "phone", ("search",))
    with pytest.raises(UnusableKeys, match="restore it, or delete it"):
        revoke_key(path, "phone")
    assert path.read_bytes() == BROKEN[kind]


def test_what_cant_be_read_locks_everybody_out(path: Path) -> None:
    secret = make_key(path, "phone", ("admin",))
    keys = Keys(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(Unavailable, match="Is a directory"):
        keys.find(secret)
    with pytest.raises(StartupError, match="Is a directory"):
        Keys(path)


def test_a_deleted_file_opens_nothing(path: Path) -> None:
    secret = make_key(path, "phone", ("admin",))
    keys = Keys(path)
    path.unlink()
    assert keys.are_needed
    assert keys.find(secret) is None
    again = make_key(path, "phone", ("search",))
    assert name_of(keys, again) == "phone"


def test_a_broken_file_that_is_deleted_opens_nothing(path: Path) -> None:
    keys = Keys(path)
    path.parent.mkdir()
    path.write_text("x")
    with pytest.raises(Unavailable):
        _ = keys.are_needed
    path.unlink()
    assert keys.are_needed


def test_a_folder_that_cant_be_written_is_a_sentence(path: Path, tmp_path: Path) -> None:
    path.parent.write_text("a file where the folder should be")
    with pytest.raises(UnusableKeys, match=re.escape(str(path))):
        make_key(path, "phone", ("search",))


# Several at the same time, and in any order.


def change(path: Path, process: int) -> None:
    for number in range(10):
        make_key(path, f"{process}-{number}", ("search",))
        if number % 2:
            revoke_key(path, f"{process}-{number}")


def test_two_processes_that_change_the_file_lose_nothing(path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=change, args=(path, number)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    expected = {f"{process}-{number}" for process in range(2) for number in range(0, 10, 2)}
    assert {key.name for key in read_keys(path)} == expected


class Door(RuleBasedStateMachine):
    """A service and those who make and revoke keys, beside a dictionary that does the same."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "keys.json"
        self.service = Keys(self.path)
        self.valid: dict[str, tuple[str, tuple[str, ...]]] = {}
        self.made: list[str] = []
        self.locked = False

    def teardown(self) -> None:
        self.folder.cleanup()

    @rule(
        name=st.sampled_from(["a", "b.1", "c-c", "D_"]),
        scopes=st.lists(st.sampled_from(SCOPES), min_size=1, max_size=4, unique=True),
    )
    def make(self, name: str, scopes: list[str]) -> None:
        if name in self.valid:
            with pytest.raises(UnusableKeys):
                make_key(self.path, name, tuple(scopes))
        else:
            self.made.append(make_key(self.path, name, tuple(scopes)))
            self.valid[name] = self.made[-1], tuple(scopes)
            self.locked = True

    @rule(name=st.sampled_from(["a", "b.1", "c-c", "D_"]))
    def revoke(self, name: str) -> None:
        if name in self.valid:
            revoke_key(self.path, name)
            del self.valid[name]
        else:
            with pytest.raises(UnusableKeys):
                revoke_key(self.path, name)

    @rule()
    def restart(self) -> None:
        self.service = Keys(self.path)

    @invariant()
    def exactly_the_keys_that_were_made_and_not_revoked_are_found(self) -> None:
        assert self.service.are_needed == self.locked
        found = {secret: self.service.find(secret) for secret in self.made}
        assert {
            secret: (key.name, key.scopes) for secret, key in found.items() if key is not None
        } == {secret: (name, scopes) for name, (secret, scopes) in self.valid.items()}


TestDoor = Door.TestCase
TestDoor.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


@given(secret=st.text(max_size=300))
@settings(max_examples=100, deadline=None)
def test_no_text_is_a_key_by_chance(tmp_path_factory, secret: str) -> None:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    path.write_text('{"keys": []}')
    assert Keys(path).find(secret) is None
