"""The service's benchmark, with next to nothing to do."""

from types import SimpleNamespace

import pytest
import yaml
from benchmarks import overload, verification
from benchmarks import service as measurements
from benchmarks.service import ALL, Pictures
from PIL import Image

NAMES = ["coffee.png", "rocket.jpg", "chelsea.png"]


@pytest.fixture(scope="module")
def pictures(photos):
    """Other bytes than those that other tests index."""
    pictures = Pictures([photos / name for name in NAMES])
    pictures.photos = (photo + b"bench" for photo in pictures.photos)
    pictures.others = (photo + b"bench" for photo in pictures.others)
    return pictures


def stored(client):
    return client.get("/stats").json()["store"]


def test_indexing_tells_how_many_photos_and_crops_were_stored(client, service, pictures):
    before = stored(client)
    row = measurements.index(service, pictures, photos=5, in_flight=2)
    after = stored(client)
    assert set(row) == set(measurements.INDEX_COLUMNS) | {"p95"}
    assert (row["photos"], row["errors"]) == (5, 0)
    assert after["photos"] - before["photos"] == 5 + measurements.WARM_UP
    assert 15 < row["crops_per_photo"] < 40
    assert row["crops_per_second"] == pytest.approx(
        row["photos_per_second"] * row["crops_per_photo"]
    )
    assert 500 < row["pss"] < 20_000


def test_what_is_refused_is_no_photo_indexed(service, pictures):
    photo = next(pictures.photos)
    broken = SimpleNamespace(
        photos=iter([b"no picture", photo, b"nor this"]),
        others=pictures.others,
        queries=pictures.queries,
    )
    row = measurements.index(service, broken, photos=3, in_flight=1)
    assert (row["photos"], row["errors"]) == (1, 2)


def test_searching_has_a_row_for_each_number_of_clients(service, pictures):
    rows = measurements.search(service, pictures, [1, 3], seconds=0)
    assert [row["clients"] for row in rows] == [1, 3]
    for row in rows:
        assert set(row) == set(measurements.SEARCH_COLUMNS)
        assert row["searches"] >= 4 * row["clients"]
        assert row["errors"] == 0
        assert 0 < row["p50"] <= row["p95"] <= row["p99"]
    assert rows[0]["ratio"] == 1
    assert rows[1]["ratio"] == pytest.approx(rows[1]["per_second"] / rows[0]["per_second"])
    (row,) = measurements.search(service, pictures, [2], seconds=0)
    assert row["ratio"] is None


def test_the_mixed_load_is_held_against_each_load_alone(client, service, pictures):
    before = stored(client)["photos"]
    rows = measurements.mixed(service, pictures, in_flight=2, seconds=0)
    searching, indexing, both, ratios = rows
    assert [row["load"] for row in rows] == ["searching", "indexing", "both", "both / alone"]
    assert "photos_per_second" not in searching
    assert "p50" not in indexing
    for key, alone in (("p50", searching), ("p99", searching), ("photos_per_second", indexing)):
        assert ratios[key] == pytest.approx(both[key] / alone[key])
    assert [row["errors"] for row in rows[:3]] == [0, 0, 0]
    assert stored(client)["photos"] - before >= 2 * 4 * 2


def test_an_overload_has_rows_before_it_while_it_lasts_and_after_it(client, service, pictures):
    before = stored(client)["photos"]
    rows = overload.overload(service, pictures, pictures, in_flight=2, times=2, seconds=2)
    loads = ["searches alone", "photos that fit", "first", "last", "after that"]
    assert [word in row["load"] for word, row in zip(loads, rows, strict=True)] == [True] * 5
    assert all(row["errors"] == 0 for row in rows)
    assert rows[0].keys() | rows[1].keys() == set(overload.COLUMNS)
    assert rows[1]["stored_per_second"] > 0
    assert stored(client)["photos"] - before >= 2 * 4 * 2


def test_the_memory_of_each_kind_of_process_is_watched(service, pictures):
    rows = measurements.memory(service, pictures, searches=6, photos=4, in_flight=2)
    known = {row["process"]: row for row in rows}
    (application,) = yaml.safe_load(service.config.read_text())["applications"]
    boxes = {deployment["name"] for deployment in application["deployments"]}
    others = {"ProxyActor", "ServeController", "raylet", "gcs_server", "serve", ALL}
    assert boxes | others <= set(known)
    for key in ("ready", "searched", "indexed"):
        parts = sum(row[key] for row in rows if row["process"] != ALL)
        assert known[ALL][key] == pytest.approx(parts)
        assert known["PhotoEncoder"][key] > 100


def test_each_query_is_sent_with_verification_and_without(service, pictures, photos):
    kinds = verification.cut_kinds([photos / name for name in (*NAMES, "astronaut.png")], 3)
    assert {kind: len(some) for kind, some in kinds.items()} == {"these": 9, "others": 3}
    stored = [photos / name for name in NAMES]
    rows = verification.verify(service, "small", stored, kinds, in_flight=2, seconds=0)
    assert [(row["photos"], row["queries"]) for row in rows] == [
        ("small", "these"),
        ("small", "others"),
    ]
    for row in rows:
        assert set(verification.COLUMNS) <= set(row)
        assert (row["searches"], row["errors"]) == (2 * verification.LEAST, 0)
        assert 0 < row["none_p50"] <= row["none_p95"]
        assert row["p50_ratio"] == pytest.approx(row["auto_p50"] / row["none_p50"])
    assert rows[0]["found"] >= 0.7


def test_photos_are_enlarged_to_so_many_megapixels(photos, tmp_path):
    sizes = dict(verification.in_sizes([photos / NAMES[0]], [2], tmp_path))
    assert sizes["as they are"] == [photos / NAMES[0]]
    (file,) = sizes["2 megapixels"]
    with Image.open(file) as photo:
        assert photo.width * photo.height == pytest.approx(2e6, rel=0.01)
        assert photo.width / photo.height == pytest.approx(600 / 400, rel=0.01)
