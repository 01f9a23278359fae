"""Which files of folders are photos, and what is said of the others."""

from __future__ import annotations

import sys
from pathlib import Path

import index
import pytest
from common.photos import SUFFIXES, describe_others, find_images, sort_files
from PIL import Image


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "deeper").mkdir()
    for name in ("b.JPG", "a.heic", "deeper/c.cr2", "notes.txt", "deeper/film.MP4", "README"):
        (tmp_path / name).touch()
    return tmp_path


def test_photos_are_told_by_their_suffix(folder):
    images, others = sort_files([folder])
    assert images == [folder / name for name in ("a.heic", "b.JPG", "deeper/c.cr2")]
    assert others == [folder / name for name in ("README", "deeper/film.MP4", "notes.txt")]
    assert find_images([folder]) == images
    assert find_images([folder], {".jpg"}) == [folder / "b.JPG"]


def test_a_single_file_is_a_photo_whatever_its_suffix(folder):
    assert sort_files([folder / "notes.txt"]) == ([folder / "notes.txt"], [])


def test_the_list_has_what_pillow_calls_these_formats():
    """MPO, JPEG 2000 and others have more suffixes than one thinks of."""
    known = Image.registered_extensions()
    formats = {"JPEG", "MPO", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "JPEG2000"}
    suffixes = {suffix for suffix, format in known.items() if format in formats}
    assert suffixes - SUFFIXES <= {".avifs", ".dib"}  # films, and parts of other files


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a.txt"], "1 file that is no photo: 1 .txt"),
        (["a.mp4", *["a.txt"] * 10, "b.MP4"], "12 files that are no photos: 10 .txt, 2 .mp4"),
        (["Makefile", ".hidden"], "2 files that are no photos: 2 without a suffix"),
        (
            [f"a.{number}" for number in range(10)],
            "10 files that are no photos: 1 .0, 1 .1, 1 .2, 1 .3, 1 .4, 1 .5, 1 .6, 1 .7, 2 others",
        ),
    ],
)
def test_what_is_left_out_is_said(names, words):
    assert describe_others([Path(name) for name in names]) == words


def test_a_folder_without_photos_is_a_mistake_that_says_what_is_there(folder, monkeypatch, capsys):
    for file in find_images([folder]):
        file.unlink()
    monkeypatch.setattr(sys, "argv", ["index.py", str(folder)])
    with pytest.raises(SystemExit):
        index.main()
    assert "no images in there" in capsys.readouterr().err
