"""The service's benchmark: against the suite's service, with next to nothing to do."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml
from benchmarks import service as measurements
from benchmarks.memory import MIB, Memory
from benchmarks.photos import cut_queries, endless
from benchmarks.service import ALL, Pictures
from common.own_service import OwnService
from common.serve_run import ServiceFailed

from deployments.compute.images import decode
from deployments.limits import ImageLimits

NAMES = ["coffee.png", "rocket.jpg", "chelsea.png"]


@pytest.fixture(scope="module")
def files(photos):
    return [photos / name for name in NAMES]


@pytest.fixture(scope="module")
def pictures(files):
    """Other bytes than those that other tests index."""
    pictures = Pictures(files)
    pictures.photos = (photo + b"bench" for photo in pictures.photos)
    pictures.others = (photo + b"bench" for photo in pictures.others)
    return pictures


def stored(client):
    return client.get("/stats").json()["store"]


def test_photos_are_always_new_and_always_the_same_pictures(files):
    sent = list(itertools.islice(endless(files), 7))
    assert len({hashlib.sha256(photo).digest() for photo in sent}) == 7
    originals = [decode(file.read_bytes(), ImageLimits()).pixels for file in files]
    for number, photo in enumerate(sent):
        assert (decode(photo, ImageLimits()).pixels == originals[number % 3]).all()
    assert len(cut_queries(files)) == 3 * 3


def test_indexing_tells_how_many_photos_and_crops_were_stored(client, service, pictures):
    before = stored(client)
    row = measurements.index(service, pictures, photos=5, in_flight=2)
    after = stored(client)
    assert set(row) == set(measurements.INDEX_COLUMNS) | {"p95"}
    assert (row["photos"], row["errors"]) == (5, 0)
    assert after["photos"] - before["photos"] == 5 + measurements.WARM_UP
    assert 30 < row["crops_per_photo"] < 60
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
        assert known["Segmenter"][key] > 100


def test_rows_of_memory_by_hand():
    def sample(ingress, store):
        return {"Ingress": Memory(ingress * MIB, ingress * MIB), "Store": Memory(store * MIB, MIB)}

    searched = [(100 * n, sample(50 + n, 10)) for n in range(8)]
    indexed = [(100 * n, sample(57, 10 + 20 * n)) for n in range(8)]
    rows = measurements.memory_rows(sample(40, 10), searched, indexed)
    assert [row["process"] for row in rows] == ["Store", "Ingress", ALL]
    store, ingress, both = rows
    assert (ingress["ready"], ingress["searched"], ingress["indexed"]) == (40, 57, 57)
    assert ingress["per_1000_searches"] == pytest.approx(10)
    assert ingress["per_1000_photos"] == pytest.approx(0)
    # It grew by pages of its file.
    assert (store["searched"], store["indexed"]) == (10, 150)
    assert store["per_1000_photos"] == pytest.approx(0)
    assert (both["indexed"], both["per_1000_searches"]) == (207, pytest.approx(10))


STARTING = """
import json, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    left = 2
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        Handler.left -= 1
        self.reply(200 if Handler.left < 0 else 503, {"matches": []})
    def do_GET(self):
        self.reply(200, {"store": {"photos": 7}})
    def reply(self, status, content):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
time.sleep(0.5)
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_starting_lasts_until_a_search_is_answered(tmp_path, pictures, monkeypatch):
    service = OwnService(tmp_path)

    def launch():
        service.process = subprocess.Popen([sys.executable, "-c", STARTING, str(service.port)])

    monkeypatch.setattr(service, "launch", launch)
    row = measurements.startup(service, pictures)
    service.kill_everything()
    assert row["photos"] == 7
    assert row["seconds"] > 0.5 + 2 * 0.2


def test_a_service_that_ends_instead_of_answering_is_told(tmp_path, pictures, monkeypatch):
    service = OwnService(tmp_path)
    service.log.write_text("no such model")

    def launch():
        service.process = subprocess.Popen(["true"])

    monkeypatch.setattr(service, "launch", launch)
    with pytest.raises(ServiceFailed, match="no such model"):
        measurements.startup(service, pictures)


def test_the_service_is_configured_as_asked_and_leaves_nothing(tmp_path):
    args = {"segmenter": {"tiles": []}, "encoder": {"batch_size": 4}}
    with measurements.prepared(tmp_path / "clip", args) as service:
        (application,) = yaml.safe_load(service.config.read_text())["applications"]
        folder = service.config.parent
    assert application["args"]["segmenter"]["tiles"] == []
    encoder = application["args"]["encoder"]
    assert encoder["pretrained_model_name_or_path"] == str(tmp_path / "clip")
    assert encoder["batch_size"] == 4
    assert not folder.exists()
    assert args == {"segmenter": {"tiles": []}, "encoder": {"batch_size": 4}}
