"""What a person runs: indexing folders and searching from a terminal."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, ImageOps

from tests.support.paths import ROOT
from tests.support.photos.pictures import encode, picture, pixels
from tests.support.running.waiting import wait_until
from tests.support.service.services import free_port


def run(script: str, *arguments: Any) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "scripts" / script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def stored(client: httpx.Client) -> int:
    return client.get("/stats").json()["store"]["photos"]


@pytest.fixture(scope="module")
def negatives(client, photos, tmp_path_factory) -> dict[str, Path]:
    """Photos that no other test indexes, in a folder of folders; by name."""
    folder = tmp_path_factory.mktemp("negatives")
    (folder / "deeper" / "still").mkdir(parents=True)
    places = {"coffee.png": ".", "motorcycle_left.png": "deeper", "horse.png": "deeper/still"}
    files = {}
    for name, place in places.items():
        with Image.open(photos / name) as photo:
            image = ImageOps.invert(photo.convert("RGB"))
        files[f"negative-{name}"] = folder / place / f"negative-{name}"
        files[f"negative-{name}"].write_bytes(encode(image))
    return files


@pytest.fixture(scope="module")
def tree(negatives) -> Path:
    """The folder, with a broken photo and a text file added."""
    folder = negatives["negative-coffee.png"].parent
    (folder / "deeper" / "broken.jpg").write_bytes(encode(pixels("broken"), "JPEG")[:900])
    (folder / "notes.txt").write_text("no photo")
    return folder


@pytest.fixture(scope="module")
def first_run(client, service, tree) -> subprocess.CompletedProcess:
    return run("index.py", tree, "--url", service.url, "--in-flight", 2)


def test_a_tree_is_indexed_but_for_what_is_broken(first_run, client, negatives):
    assert "Left out 1 file that is no photo: 1 .txt." in first_run.stdout
    assert "4 photos: 3 indexed, 0 were already stored, 1 failed." in first_run.stdout
    assert first_run.returncode == 1
    (line,) = [line for line in first_run.stderr.splitlines() if "broken.jpg: " in line]
    assert "422" in line
    assert "the JPEG is cut" in line
    records = client.get("/images", params={"limit": 1000}).json()["images"]
    assert {record["filename"] for record in records} >= set(negatives)


def test_what_is_stored_is_not_sent_again(first_run, client, service, tree, negatives):
    before = client.get("/stats").json()["store"]
    again = run("index.py", tree, "--url", service.url)
    assert "4 photos: 0 indexed, 3 were already stored, 1 failed." in again.stdout
    assert again.returncode == 1
    good = run("index.py", *negatives.values(), "--url", service.url, "--in-flight", 1)
    assert "3 photos: 0 indexed, 3 were already stored, 0 failed." in good.stdout
    assert good.returncode == 0
    assert client.get("/stats").json()["store"] == before


def test_an_interrupted_run_goes_on_where_it_was(client, service, tmp_path):
    count = 30
    for number in range(count):
        (tmp_path / f"{number:02}.png").write_bytes(picture(f"interrupted {number}"))
    before = stored(client)
    command = [sys.executable, ROOT / "scripts" / "index.py", tmp_path, "--url", service.url]
    script = subprocess.Popen(
        [*command, "--in-flight", "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: stored(client) >= before + 3, "some photos are stored")
    script.send_signal(signal.SIGINT)
    output, errors = script.communicate(timeout=60)
    assert script.returncode == 130, errors
    assert "Interrupted" in output
    assert "Traceback" not in errors
    assert 3 <= stored(client) - before < count

    again = run("index.py", tmp_path, "--url", service.url)
    assert again.returncode == 0, again.stderr
    assert f"{count} photos: " in again.stdout
    assert " 0 failed." in again.stdout
    assert stored(client) == before + count


@pytest.mark.parametrize("script", ["index.py", "search.py"])
def test_without_a_service_it_says_how_to_start_one(script, photos):
    url = f"http://127.0.0.1:{free_port()}"
    outcome = run(script, photos / "coffee.png", "--url", url)
    assert outcome.returncode == 1
    assert f"No service answers at {url}" in outcome.stderr
    assert "serve run serve_config.yaml" in outcome.stderr
    assert "Traceback" not in outcome.stderr


@pytest.fixture
def query(first_run, tmp_path, negatives) -> Path:
    """The negative of the coffee, smaller and compressed."""
    with Image.open(negatives["negative-coffee.png"]) as photo:
        small = photo.resize((photo.width // 2, photo.height // 2))
    file = tmp_path / "query.jpg"
    file.write_bytes(encode(small, "JPEG", quality=75))
    return file


def test_a_search_prints_the_right_photo_first_and_draws_it(service, query, tmp_path):
    drawing = tmp_path / "answer.png"
    options = ["--url", service.url, "--limit", 3, "--picture", drawing]
    outcome = run("search.py", query, *options)
    assert outcome.returncode == 0, outcome.stderr
    title, header, first, *others = outcome.stdout.splitlines()
    assert title == "Found in 1 photo:"
    assert header.split() == ["agreeing", "corners", "noticed", "photo"]
    assert first.split()[0] == "1"
    assert first.split()[-1] == "negative-coffee.png"
    assert others[0] == "These look alike:"
    assert others[1].split() == ["distance", "box", "what", "photo"]
    assert [line.split()[0] for line in others[2:4]] == ["2", "3"]
    assert others[4:] == [f"drawn in {drawing}"]
    with Image.open(drawing) as row:
        row.load()
        assert row.width > 3 * row.height  # the query and three photos


def test_a_search_that_finds_nothing_says_so(service, tmp_path):
    file = tmp_path / "nowhere.png"
    file.write_bytes(picture("nowhere to be found"))
    outcome = run("search.py", file, "--url", service.url, "--max-distance", 0)
    assert (outcome.returncode, outcome.stdout) == (
        0,
        "Not found among the photos that are so near.\n",
    )


def test_a_search_by_a_bad_file_says_what_is_wrong(service, tree, tmp_path):
    for file, reason in [
        (tree / "notes.txt", "415: These bytes are not in an image format we read"),
        (tree / "deeper" / "broken.jpg", "422: The image can't be decoded"),
        (tmp_path / "missing.png", "No such file"),
    ]:
        outcome = run("search.py", file, "--url", service.url)
        assert (outcome.returncode, outcome.stdout) == (1, "")
        assert reason in outcome.stderr
        assert "Traceback" not in outcome.stderr


def test_a_search_filters_by_the_metadata_of_a_run(service, tmp_path):
    for number in range(2):
        (tmp_path / f"run-{number}.png").write_bytes(picture(f"metadata of a run {number}"))
    options = ["--url", service.url]
    metadata = '{"run": "a b", "year": 2024}'
    outcome = run("index.py", tmp_path, *options, "--metadata", metadata)
    assert outcome.returncode == 0, outcome.stderr

    def found(*conditions: str) -> str:
        filters = [option for condition in conditions for option in ("--filter", condition)]
        return run("search.py", tmp_path / "run-1.png", *options, *filters).stdout

    lines = found("run=a b", "year>=2024").splitlines()
    ranked = [line.split()[-1] for line in lines if line.split()[0].isdigit()]
    assert ranked == ["run-1.png", "run-0.png"]
    nothing = "Not found among the photos that match the filter.\n"
    assert found("run=a b", "year>2024") == nothing


def test_a_mistake_in_metadata_or_in_a_filter_is_told_once(service, tree, query):
    options = ["--url", service.url]
    outcome = run("index.py", tree, *options, "--metadata", '{"year": null}')
    assert (outcome.returncode, outcome.stdout) == (2, "")
    assert outcome.stderr.count("'year' must be a string, a number, true or false") == 1
    outcome = run("search.py", query, *options, "--filter", "year")
    assert (outcome.returncode, outcome.stdout) == (1, "")
    assert "400: The filter 'year' is not a condition" in outcome.stderr
