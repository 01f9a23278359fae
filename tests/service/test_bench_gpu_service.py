"""The benchmark of a service on a GPU, on a CPU and with tiny sizes."""

import json
import sys

import bench
import pytest
from benchmarks import gpu_service


@pytest.mark.slow
def test_it_needs_nothing_but_this_repository(tmp_path, monkeypatch, capsys):
    file = tmp_path / "all.json"
    options = ["gpu-service", "--device", "cpu", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["bench.py", *options])
    assert bench.main() == 0
    tables = json.loads(file.read_text())["tables"]
    assert set(tables) == set(gpu_service.COLUMNS)
    load = gpu_service.LOADS["cpu"]
    alone, together = tables["indexing"]
    assert (alone["requests"], alone["together"]) == (load.in_flight[0], 1)
    assert (together["requests"], together["together"]) == (1, load.together)
    best = max(row["per_second"] for row in tables["decoding"])
    for row in tables["indexing"]:
        assert row["photos"] > 0 == row["errors"]
        assert row["chunks"] > 17  # some objects besides the tiles and the whole
        assert row["of_decoding"] == pytest.approx(row["per_second"] / best)
    assert [row["clients"] for row in tables["searching"]] == list(load.clients)
    assert all(row["errors"] == 0 for row in tables["searching"])
    assert "| at least 1,000 | no |" in capsys.readouterr().out
