"""scripts/keys.py: what it prints, where, and that a key can be piped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import keys as script
import pytest
import yaml

from deployments.ingress.keys import Keys, make_key, read_keys
from tests.support.paths import ROOT


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def run(path: Path, capsys):
    """Run a command in this process; returns status, stdout, stderr."""

    def run(*words: str, where: tuple[str, ...] = ("--path", str(path))) -> tuple[int, str, str]:
        try:
            status = script.main([*words, *where])
        except SystemExit as end:
            status = end.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_make_prints_the_key_alone_on_stdout(run, path: Path) -> None:
    status, out, err = run("make", "phone", "--scopes", "search,read")
    secret = out.removesuffix("\n")
    assert status == 0
    key = Keys(path).find(secret)
    assert (key.name, key.scopes) == ("phone", ("search", "read"))
    assert err == (
        "The key phone may search; list photos and get them. Keep it: it is shown only now, and "
        "stored nowhere. From now on, the service asks everybody for a key.\n"
    )


def test_only_the_first_key_locks_the_door(run) -> None:
    run("make", "phone", "--scopes", "search")
    _, _, err = run("make", "owner", "--scopes", "admin")
    assert "may do everything" in err
    assert "From now on" not in err


@pytest.mark.parametrize(
    ("given", "scopes"),
    [
        ("read, search", ("search", "read")),
        ("write,write", ("write",)),
        ("admin", ("admin",)),
        ("search,read,write,admin", ("search", "read", "write", "admin")),
    ],
)
def test_scopes_are_kept_once_each_and_in_one_order(run, path: Path, given, scopes) -> None:
    assert run("make", "phone", "--scopes", given)[0] == 0
    assert read_keys(path)[0].scopes == scopes


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["make", "a b", "--scopes", "read"], "'a b' is no name: take letters and digits"),
        (["make", "a\n", "--scopes", "read"], "is no name"),
        (["make", "x" * 65, "--scopes", "read"], "at most 64"),
        (["make", "phone", "--scopes", "root"], "'root' is no scope: give some of search,read,"),
        (["make", "phone", "--scopes", ""], "'' is no scope"),
        (["make", "phone"], "--scopes"),
        (["make"], "NAME"),
        (["revoke"], "NAME"),
        ([], "COMMAND"),
    ],
)
def test_wrong_arguments_are_told_and_make_nothing(run, path: Path, words, sentence) -> None:
    status, out, err = run(*words, where=("--path", str(path)) if words else ())
    assert (status, out) == (2, "")
    assert sentence in err
    assert not path.exists()


def test_a_name_that_is_taken_is_a_sentence(run, path: Path) -> None:
    run("make", "phone", "--scopes", "search")
    before = path.read_bytes()
    assert run("make", "phone", "--scopes", "admin") == (
        1,
        "",
        "There is a key named phone already: revoke it, or take another name.\n",
    )
    assert path.read_bytes() == before


def test_list_is_a_table_without_hashes(run, path: Path) -> None:
    secrets = [run("make", name, "--scopes", "search,read")[1].strip() for name in ("tv", "phone")]
    status, out, err = run("list")
    assert (status, err) == (0, "")
    head, *rows = [line.split() for line in out.splitlines()]
    assert head == ["name", "scopes", "created"]
    assert [row[:2] for row in rows] == [["tv", "search,read"], ["phone", "search,read"]]
    assert [row[2:] for row in rows] == [[key.created] for key in read_keys(path)]
    assert len({line.index("search,") for line in out.splitlines()[1:]}) == 1
    for key in read_keys(path):
        assert key.sha256 not in out
    for secret in secrets:
        assert secret not in out


def test_list_tells_no_file_from_no_key(run, path: Path) -> None:
    assert run("list") == (0, f"There is no file {path}: the service asks nobody for a key.\n", "")
    run("make", "phone", "--scopes", "read")
    run("revoke", "phone")
    locked = f"There are no keys in {path}: the door is locked until one is made.\n"
    assert run("list") == (0, locked, "")


def test_revoke_says_so_and_when_no_key_is_left(run, path: Path) -> None:
    phone, tv = (make_key(path, name, ("search",)) for name in ("phone", "tv"))
    assert run("revoke", "phone") == (0, "The key phone is revoked.\n", "")
    assert [Keys(path).find(secret) is None for secret in (phone, tv)] == [True, False]
    assert run("revoke", "tv") == (
        0,
        "The key tv is revoked.\nNo key is left: the door is locked until one is made.\n",
        "",
    )
    assert run("revoke", "tv") == (1, "", "There is no key named tv (there are: none).\n")


def test_a_broken_file_is_a_sentence_and_stays_as_it_is(run, path: Path) -> None:
    path.write_text("x")
    for words in (["make", "a", "--scopes", "read"], ["list"], ["revoke", "a"]):
        status, out, err = run(*words)
        assert (status, out) == (1, "")
        assert err.startswith(f"{path} is no file of keys (Invalid JSON")
    assert path.read_text() == "x"


@pytest.mark.parametrize("keys_path", [None, "elsewhere/my.json"])
def test_the_config_says_where_the_keys_are(run, tmp_path: Path, keys_path: str | None) -> None:
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    (application,) = config["applications"]
    application["args"]["store"]["path"] = str(tmp_path / "photos")
    application["args"]["http"]["keys_path"] = keys_path and str(tmp_path / keys_path)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    assert run("make", "phone", "--scopes", "read", where=("--config", str(file)))[0] == 0
    assert [key.name for key in read_keys(tmp_path / (keys_path or "photos/keys.json"))] == [
        "phone"
    ]


def test_what_is_no_config_is_a_sentence(run, tmp_path: Path) -> None:
    status, out, err = run("list", where=("--config", str(tmp_path / "none.yaml")))
    assert (status, out) == (1, "")
    assert "none.yaml is not a config of Inset" in err


def test_as_a_command_its_key_can_be_piped(path: Path) -> None:
    command = [sys.executable, ROOT / "scripts" / "keys.py", "make", "phone", "--scopes", "write"]
    done = subprocess.run([*command, "--path", path], capture_output=True, text=True, check=True)
    (key,) = json.loads(path.read_bytes())["keys"]
    assert Keys(path).find(done.stdout.removesuffix("\n")).name == key["name"] == "phone"
    assert done.stdout.count("\n") == 1
