"""Bulk indexing: into a store of its own, and beside the running service, through its store."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image, ImageOps

from deployments.records import Record
from deployments.store.reader import StoreReader
from tests.support.paths import ROOT
from tests.support.photos.pictures import encode, pixels
from tests.support.running.waiting import wait_until
from tests.support.service.http_client import search

pytestmark = pytest.mark.slow  # each run starts Ray, or loads it


@pytest.fixture(scope="module")
def tree(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos that no other test indexes, in a folder of folders, and a broken one."""
    folder = tmp_path_factory.mktemp("bulk")
    for place, name in ((".", "coffee"), ("deeper", "rocket"), ("deeper/still", "chelsea")):
        (folder / place).mkdir(exist_ok=True)
        (file,) = photos.glob(f"{name}.*")
        with Image.open(file) as photo:
            image = ImageOps.solarize(photo.convert("RGB"))
        (folder / place / f"solar-{name}.jpg").write_bytes(encode(image, "JPEG", quality=90))
    (folder / "broken.jpg").write_bytes(encode(pixels("broken"), "JPEG")[:900])
    (folder / "notes.txt").write_text("no photo")
    return folder


def command(*arguments: Any) -> list[str]:
    return [sys.executable, str(ROOT / "scripts" / "bulk.py"), *map(str, arguments)]


def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=180)


@pytest.fixture(scope="module")
def own(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that was filled by a run that was interrupted, and by another one."""
    store = tmp_path_factory.mktemp("own") / "store"
    first = subprocess.Popen(
        command(tree, "--path", store), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_until((store / "data.mdb").exists, "the store is made", 60)
    children = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(signal.SIGTERM)
    out, _ = first.communicate(timeout=60)
    assert first.returncode == 128 + signal.SIGTERM
    assert "the same command continues from here" in out
    wait_until(lambda: not any(child.is_running() for child in children), "its Ray ends", 30)

    second = run(tree, "--path", store, "--metadata", '{"year": 2024}')
    assert "4 photos: 3 indexed, 0 were already stored, 1 failed." in second.stdout
    assert second.returncode == 1
    (line,) = [line for line in second.stderr.splitlines() if "broken.jpg: " in line]
    assert "the JPEG is cut" in line
    return store


def stored(folder: Path) -> list[Record]:
    with closing(StoreReader(folder)) as store:
        return list(map(Record.model_validate_json, store.records_after(None, 10)))


def test_an_interrupted_run_leaves_nothing_behind_and_is_continued(own: Path, tree: Path) -> None:
    records = stored(own)
    assert {record.filename for record in records} == {
        "solar-coffee.jpg",
        "solar-rocket.jpg",
        "solar-chelsea.jpg",
    }
    assert all(record.metadata["year"] == 2024 for record in records)


def test_what_is_stored_is_left_alone(own: Path, tree: Path) -> None:
    with closing(StoreReader(own)) as store:
        before = store.stats().sequence
    again = run(tree / "deeper", tree / "broken.jpg", "--path", own)
    assert "3 photos: 0 indexed, 2 were already stored, 1 failed." in again.stdout
    with closing(StoreReader(own)) as store:
        assert store.stats().sequence == before


def test_beside_a_service_photos_go_through_its_store(own, tree, client, service) -> None:
    """They are found at once, and are what they are in a store of their own."""
    done = run(tree, "--address", service.ray_address(), "--config", service.config)
    assert "4 photos: 3 indexed, 0 were already stored, 1 failed." in done.stdout, done.stderr
    for record in stored(own):
        there = Record.model_validate_json(client.get(f"/images/{record.id}/record").content)
        same = {"sequence", "indexed_at", "metadata"}
        assert there.model_dump(exclude=same) == record.model_dump(exclude=same)
    with Image.open(tree / "deeper" / "solar-rocket.jpg") as photo:
        width, height = photo.size
        part = photo.crop((width // 4, height // 4, 3 * width // 4, 3 * height // 4))

    def found() -> bool:
        first = search(client, encode(part))[0]
        return bool(first["verified"]) and first["filename"] == "solar-rocket.jpg"

    wait_until(found, "the photo is found", 20)


def test_a_store_that_a_service_has_open_is_not_touched(tree, service) -> None:
    refused = run(tree, "--path", service.store)
    assert refused.returncode == 1
    assert "in use" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "no such file or folder"),
        ([ROOT / "docs"], "no photos in there"),
        ([ROOT / "docs", "--metadata", "[]"], "metadata"),
        ([ROOT / "scripts" / "pictures", "--address", "127.0.0.1:1"], "no Ray at 127.0.0.1:1"),
    ],
)
def test_what_can_not_begin_is_a_sentence(arguments: list[Any], sentence: str) -> None:
    refused = run(*arguments)
    assert refused.returncode in (1, 2)
    assert sentence in refused.stderr
    assert "Traceback" not in refused.stderr
