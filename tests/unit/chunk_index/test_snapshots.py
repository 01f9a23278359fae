"""Snapshots: whole or not there, the newest one, and only those that fit."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from deployments.chunk_index import snapshots as module
from deployments.chunk_index.snapshots import FORMAT, RESERVE_BYTES, Part, Snapshots
from deployments.records import Position
from tests.support.paths import ROOT

KIND = {"engine": "exact", "dimension": 4}


def position(sequence: int) -> Position:
    return Position("history", sequence, 0)


def parts(text: str, about_bytes: int = 0) -> list[Part]:
    """One part, with the name of what is in it."""
    return [Part(text[:20], about_bytes, lambda folder: write(folder, text))]


def write(folder: Path, text: str) -> None:
    (folder / "content").write_text(text)


class Reader:
    text: str | None = None

    def load(self, folders: Sequence[Path]) -> None:
        self.text = "".join((folder / "content").read_text() for folder in folders)


def read(snapshots: Snapshots) -> tuple[Position | None, str | None]:
    reader = Reader()
    return snapshots.read(reader.load), reader.text


def test_the_newest_is_read_and_the_others_are_gone(tmp_path):
    snapshots = Snapshots(tmp_path / "index", KIND)
    assert read(snapshots) == (None, None)
    for sequence in (5, 9, 3):  # a restored store has smaller numbers again
        assert snapshots.write(parts(f"as of {sequence}"), position(sequence))
        assert read(snapshots) == (position(sequence), f"as of {sequence}")
    assert len([path for path in (tmp_path / "index").iterdir() if path.is_dir()]) == 1


def test_the_same_position_can_be_written_again(tmp_path):
    snapshots = Snapshots(tmp_path, KIND)
    for text in ("one", "two"):
        assert snapshots.write(parts(text), position(1))
        assert read(snapshots) == (position(1), text)


def test_one_of_another_kind_is_not_read(tmp_path, caplog):
    assert Snapshots(tmp_path, KIND).write(parts("exact"), position(1))
    other = Snapshots(tmp_path, {**KIND, "engine": "approximate"})
    assert read(other) == (None, None)
    assert other.write(parts("approximate"), position(2))
    assert read(other) == (position(2), "approximate")


def test_one_of_an_older_format_is_not_read_and_goes_with_the_next(tmp_path):
    snapshots = Snapshots(tmp_path, KIND)
    older = tmp_path / f"{7:020}-history"
    older.mkdir()
    kind = {"format": 2, **KIND}
    header = {"kind": kind, "position": asdict(position(7))}
    (older / "header.json").write_text(json.dumps(header))
    assert read(snapshots) == (None, None)
    assert snapshots.write(parts("new"), position(8))
    assert not older.exists()
    assert read(snapshots) == (position(8), "new")


def test_what_can_not_be_written_leaves_the_one_before(tmp_path):
    snapshots = Snapshots(tmp_path, KIND)
    assert snapshots.write(parts("good"), position(1))

    def fail(folder: Path) -> None:
        (folder / "content").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        snapshots.write([Part("half", 0, fail)], position(2))
    assert read(snapshots) == (position(1), "good")
    assert not list(tmp_path.glob("writing-*"))


def test_a_writer_that_is_killed_leaves_the_one_before(tmp_path):
    snapshots = Snapshots(tmp_path, KIND)
    assert snapshots.write(parts("good"), position(1))
    script = f"""
import os, signal
from deployments.records import Position
from deployments.chunk_index.snapshots import Part, Snapshots
def save(folder):
    (folder / "content").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
Snapshots({str(tmp_path)!r}, {KIND!r}).write([Part("half", 0, save)], Position("history", 2, 0))
"""
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT)
    assert ended.returncode == -9
    assert list(tmp_path.glob("writing-*"))
    assert read(snapshots) == (position(1), "good")
    assert snapshots.write(parts("next"), position(3))
    assert not list(tmp_path.glob("writing-*"))


def test_only_one_replica_writes_at_a_time(tmp_path):
    snapshots = Snapshots(tmp_path, KIND)
    answers = []

    def save(folder: Path) -> None:
        answers.append(Snapshots(tmp_path, KIND).write(parts("other"), position(2)))
        write(folder, "first")

    assert snapshots.write([Part("first", 0, save)], position(1))
    assert answers == [False]
    assert read(snapshots) == (position(1), "first")


@pytest.mark.parametrize("header", ["{", "[]", json.dumps({"kind": {"format": FORMAT, **KIND}})])
def test_a_damaged_one_is_not_used(tmp_path, caplog, header):
    snapshots = Snapshots(tmp_path, KIND)
    assert snapshots.write(parts("good"), position(1))
    (path,) = tmp_path.glob("*/header.json")
    path.write_text(header)
    assert snapshots.read(Reader().load) is None
    assert "can't be read" in caplog.text


def test_room_is_kept_for_the_store(tmp_path, monkeypatch):
    """The store may be on the same disk, and a snapshot is no reason to refuse photos."""
    snapshots = Snapshots(tmp_path, KIND)
    assert snapshots.write(parts("good", 1000), position(1))
    free = RESERVE_BYTES + 999
    usage = SimpleNamespace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=rf"about 1,000 bytes.*only {free:,} are free"):
        snapshots.write(parts("next", 1000), position(2))
    assert read(snapshots) == (position(1), "good")
    assert not list(tmp_path.glob("writing-*"))
    usage.free += 1
    assert snapshots.write(parts("next", 1000), position(2))
    assert read(snapshots) == (position(2), "next")


def test_what_snapshots_take_on_disk_is_counted(tmp_path):
    snapshots = Snapshots(tmp_path / "index", KIND)
    assert snapshots.disk_bytes() == 0
    assert snapshots.write(parts("x" * 5000), position(1))
    (tmp_path / "index" / "writing-abc").mkdir()
    (tmp_path / "index" / "writing-abc" / "content").write_text("y" * 3000)
    assert 8000 <= snapshots.disk_bytes() <= 9000


def test_what_the_one_before_has_is_not_written_again(tmp_path):
    """Its files are those of the one before it, and stay when that is removed."""
    snapshots, saved = Snapshots(tmp_path, KIND), []

    def part(name: str) -> Part:
        return Part(name, 1000, lambda folder: saved.append(name) or write(folder, name * 1000))

    def inodes() -> dict[str, int]:
        return {path.parent.name: path.stat().st_ino for path in tmp_path.glob("*/*/content")}

    assert snapshots.write([part("a"), part("b")], position(1))
    before = inodes()
    assert snapshots.write([part("b"), part("c")], position(2))
    assert saved == ["a", "b", "c"]
    after = inodes()
    assert after.keys() == {"b", "c"}
    assert after["b"] == before["b"]
    assert 2000 <= snapshots.disk_bytes() <= 2500


def test_room_is_needed_only_for_what_is_new(tmp_path, monkeypatch):
    snapshots = Snapshots(tmp_path, KIND)
    large, small = Part("large", 10**9, lambda _: None), Part("small", 10, lambda _: None)
    assert snapshots.write([large], position(1))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=RESERVE_BYTES + 10))
    assert snapshots.write([large, small], position(2))


def test_a_disk_without_links_has_whole_snapshots(tmp_path, monkeypatch):
    snapshots = Snapshots(tmp_path, KIND)

    def fail(*_, **__) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", fail)
    for sequence in (1, 2):
        assert snapshots.write(parts("same"), position(sequence))
        assert read(snapshots) == (position(sequence), "same")


def test_all_files_are_synced_before_a_snapshot_takes_its_name(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(module, "sync", lambda paths: synced.append([*paths]))
    assert Snapshots(tmp_path, KIND).write(parts("text"), position(1))
    (written, (folder,)) = synced
    assert folder == tmp_path
    ends = sorted(path.name for path in written[:-1])
    assert ends == ["content", "header.json", "text"]
    assert written[-1].name.startswith("writing-")


@pytest.mark.parametrize("content", [b"", b"PK", b"no archive"])
def test_a_damaged_archive_is_not_used(tmp_path, caplog, content):
    """NumPy raises three kinds of errors."""
    snapshots = Snapshots(tmp_path, KIND)
    assert snapshots.write(
        [Part("a", 0, lambda folder: np.savez(folder / "a.npz", a=[1]))], position(1)
    )
    (path,) = tmp_path.glob("*/*/a.npz")
    path.write_bytes(content)
    assert snapshots.read(lambda folders: np.load(folders[0] / "a.npz")["a"]) is None
    assert "can't be read" in caplog.text
