"""Snapshots: whole or not there, the newest one, and only those that fit."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from deployments.chunk_index.snapshots import FORMAT, RESERVE_BYTES, Snapshots
from deployments.records import Position
from tests.support.paths import ROOT

KIND = {"engine": "exact", "dimension": 4}


def position(sequence: int) -> Position:
    return Position("history", sequence, 0)


def saves(text: str):
    return lambda folder: (folder / "content").write_text(text) and None


class Reader:
    text: str | None = None

    def load(self, folder: Path) -> None:
        self.text = (folder / "content").read_text()


def read(snapshots: Snapshots) -> tuple[Position | None, str | None]:
    reader = Reader()
    return snapshots.read(reader.load), reader.text


def test_the_newest_is_read_and_the_others_are_gone(tmp_path):
    snapshots = Snapshots(tmp_path / "index", KIND)
    assert read(snapshots) == (None, None)
    for sequence in (5, 9, 3):  # a restored store has smaller numbers again
        assert snapshots.write(saves(f"as of {sequence}"), position(sequence))
        assert read(snapshots) == (position(sequence), f"as of {sequence}")
    assert len([path for path in (tmp_path / "index").iterdir() if path.is_dir()]) == 1


def test_the_same_position_can_be_written_again(tmp_path):
    snapshots = Snapshots(tmp_path, KIND)
    for text in ("one", "two"):
        assert snapshots.write(saves(text), position(1))
        assert read(snapshots) == (position(1), text)


def test_one_of_another_kind_is_not_read(tmp_path, caplog):
    assert Snapshots(tmp_path, KIND).write(saves("exact"), position(1))
    other = Snapshots(tmp_path, {**KIND, "engine": "approximate"})
    assert read(other) == (None, None)
    assert other.write(saves("approximate"), position(2))
    assert read(other) == (position(2), "approximate")


def test_what_can_not_be_written_leaves_the_one_before(tmp_path):
    snapshots = Snapshots(tmp_path, KIND)
    assert snapshots.write(saves("good"), position(1))

    def fail(folder: Path) -> None:
        (folder / "content").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        snapshots.write(fail, position(2))
    assert read(snapshots) == (position(1), "good")
    assert not list(tmp_path.glob("writing-*"))


def test_a_writer_that_is_killed_leaves_the_one_before(tmp_path):
    snapshots = Snapshots(tmp_path, KIND)
    assert snapshots.write(saves("good"), position(1))
    script = f"""
import os, signal
from deployments.records import Position
from deployments.chunk_index.snapshots import FORMAT, Snapshots
def save(folder):
    (folder / "content").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
Snapshots({str(tmp_path)!r}, {KIND!r}).write(save, Position("history", 2, 0))
"""
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT)
    assert ended.returncode == -9
    assert list(tmp_path.glob("writing-*"))
    assert read(snapshots) == (position(1), "good")
    assert snapshots.write(saves("next"), position(3))
    assert not list(tmp_path.glob("writing-*"))


def test_only_one_replica_writes_at_a_time(tmp_path):
    snapshots = Snapshots(tmp_path, KIND)
    answers = []

    def save(folder: Path) -> None:
        answers.append(Snapshots(tmp_path, KIND).write(saves("other"), position(2)))
        saves("first")(folder)

    assert snapshots.write(save, position(1))
    assert answers == [False]
    assert read(snapshots) == (position(1), "first")


@pytest.mark.parametrize("header", ["{", "[]", json.dumps({"kind": {"format": FORMAT, **KIND}})])
def test_a_damaged_one_is_not_used(tmp_path, caplog, header):
    snapshots = Snapshots(tmp_path, KIND)
    assert snapshots.write(saves("good"), position(1))
    (path,) = tmp_path.glob("*/header.json")
    path.write_text(header)
    assert snapshots.read(Reader().load) is None
    assert "can't be read" in caplog.text


def test_room_is_kept_for_the_store(tmp_path, monkeypatch):
    """The store may be on the same disk, and a snapshot is no reason to refuse photos."""
    snapshots = Snapshots(tmp_path, KIND)
    assert snapshots.write(saves("good"), position(1), about_bytes=1000)
    free = RESERVE_BYTES + 999
    usage = SimpleNamespace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=rf"about 1,000 bytes.*only {free:,} are free"):
        snapshots.write(saves("next"), position(2), about_bytes=1000)
    assert read(snapshots) == (position(1), "good")
    assert not list(tmp_path.glob("writing-*"))
    usage.free += 1
    assert snapshots.write(saves("next"), position(2), about_bytes=1000)
    assert read(snapshots) == (position(2), "next")


def test_what_snapshots_take_on_disk_is_counted(tmp_path):
    snapshots = Snapshots(tmp_path / "index", KIND)
    assert snapshots.disk_bytes() == 0
    assert snapshots.write(saves("x" * 5000), position(1))
    (tmp_path / "index" / "writing-abc").mkdir()
    (tmp_path / "index" / "writing-abc" / "content").write_text("y" * 3000)
    assert 8000 <= snapshots.disk_bytes() <= 9000
