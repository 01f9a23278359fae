"""The service that a fuzz test starts for itself."""

from __future__ import annotations

from pathlib import Path

import fuzztest


class Service:
    """Stands for a service; remembers what happened to it."""

    url = "http://127.0.0.1:1"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.happened: list[str] = []

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *error: object) -> None:
        self.happened.append("ended")

    def start(self) -> None:
        self.happened.append("started")


def test_without_a_service_one_is_started_looked_at_and_ended(tmp_path, monkeypatch):
    tests: list[fuzztest.FuzzTest] = []

    def run(test: fuzztest.FuzzTest, plan: fuzztest.Plan) -> None:
        tests.append(test)
        test.service.happened.append("tested")

    monkeypatch.setattr(fuzztest, "OwnService", Service)
    monkeypatch.setattr(fuzztest.FuzzTest, "run", run)
    report = fuzztest.fuzz(tmp_path, requests=1)
    assert report.violations == []
    (test,) = tests
    assert (test.url, test.service.folder) == (Service.url, tmp_path)
    assert test.service.happened == ["started", "tested", "ended"]
