"""The service's benchmark, without a service."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys

import pytest
import yaml
from benchmarks import service as measurements
from benchmarks.memory import MIB, Memory
from benchmarks.photos import cut_queries, endless
from benchmarks.service import ALL, Pictures
from common.own_service import OwnService
from common.serve_run import ServiceFailed

from deployments.decoding.image import decode
from deployments.limits import ImageLimits

NAMES = ["coffee.png", "rocket.jpg", "chelsea.png"]


@pytest.fixture(scope="module")
def files(photos):
    return [photos / name for name in NAMES]


@pytest.fixture(scope="module")
def pictures(files):
    return Pictures(files)


def test_photos_are_always_new_and_always_the_same_pictures(files):
    sent = list(itertools.islice(endless(files), 7))
    assert len({hashlib.sha256(photo).digest() for photo in sent}) == 7
    originals = [decode(file.read_bytes(), ImageLimits()).pixels for file in files]
    for number, photo in enumerate(sent):
        assert (decode(photo, ImageLimits()).pixels == originals[number % 3]).all()
    assert len(cut_queries(files)) == 3 * 3


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
