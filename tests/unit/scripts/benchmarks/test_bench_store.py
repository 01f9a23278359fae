"""The store's benchmark, with next to nothing to put."""

from __future__ import annotations

import os
import sys

import bench
import pytest
from benchmarks import store as measurements
from benchmarks.store import Turns, made_up_photos, write_plainly

from deployments.errors import StoreFull


@pytest.fixture(autouse=True)
def tiny(monkeypatch) -> None:
    monkeypatch.setattr(measurements, "ORIGINAL", 3000)
    monkeypatch.setattr(measurements, "THUMBNAIL", 30)
    monkeypatch.setattr(measurements, "PREVIEW", 300)
    monkeypatch.setattr(measurements, "TURN_PHOTOS", 6)


def test_each_size_of_a_group_has_a_row_against_a_plain_file(tmp_path):
    rows = measurements.measure([1, 4], 0, tmp_path)
    assert [row["group"] for row in rows] == [1, 4]
    assert [row["photos"] for row in rows] == [8, 32]  # a turn of each
    for row in rows:
        assert set(row) == set(measurements.COLUMNS) | {"p95"}
        assert row["ratio"] == pytest.approx(
            row["megabytes_per_second"] / row["plain_megabytes_per_second"]
        )
        sent = 3000 + 30 + 300 + 3 * 16 + 21 * 512  # with three checksums
        assert row["megabytes_per_second"] == pytest.approx(row["photos_per_second"] * sent / 1e6)
        assert 0 < row["p50"] <= row["p99"]
        assert 1 < row["on_disk"] < 4
        assert row["making_ms"] > 0 < row["writing_ms"]
    assert list(tmp_path.iterdir()) == []


def test_photos_differ_and_are_as_large_as_they_should_be():
    photos = made_up_photos()
    one, other = next(photos), next(photos)
    assert one.id != other.id
    assert one.data != other.data
    assert len(one.data) == 3000
    assert one.photo.vectors.shape == (len(one.photo.chunks), 256)


def test_a_photo_that_is_not_stored_ends_it():
    class Full:
        def commit(self, operations):
            return [StoreFull("The disk is full.")]

    turns = Turns(Full(), made_up_photos(), None)
    with pytest.raises(OSError, match="disk is full"):
        turns._commit([None])


def test_the_plain_file_gets_as_many_bytes_and_syncs(tmp_path, monkeypatch):
    synced, sync = [], os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda file: synced.append(sync(file)))
    with (tmp_path / "plain").open("wb") as file:
        assert write_plainly(file.fileno(), 100, size=3, groups=2) > 0
    assert (tmp_path / "plain").stat().st_size == 600
    assert len(synced) == 2


def test_the_command_prints_its_table(tmp_path, monkeypatch, capsys):
    options = ["store", "--groups", "2", "--seconds", "0", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["bench.py", *options])
    assert bench.main() == 0
    assert "| models/compact | 2 |" in capsys.readouterr().out
