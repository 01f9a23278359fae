"""scripts/bench.py: its options, and what it writes from what was measured."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import bench
import pytest
from benchmarks import commands
from benchmarks.machine import describe_machine
from benchmarks.networks import make_vit_b_32
from benchmarks.report import compare, report
from common.tables import table

from tests.support.paths import ROOT
from tests.support.photos.pictures import encode, pixels

ENCODER = {"network": "encoder", "height": 112, "width": 112, "backend": "torch"}
DETECTOR = {"network": "detector", "height": 320, "width": 416, "backend": "torch"}
TABLES = {
    "ceiling": [
        DETECTOR | {"batch": 1, "per_second": 10.0},
        DETECTOR | {"batch": 4, "per_second": 8.0},
        ENCODER | {"batch": 1, "per_second": 50.0},
        ENCODER | {"batch": 32, "per_second": 400.0},
        DETECTOR | {"batch": 1, "per_second": 20.0, "backend": "openvino"},
        ENCODER | {"batch": 1, "per_second": 800.0, "backend": "openvino"},
    ],
    "plain": [
        {
            "script": "plain",
            "photos_per_second": 2.0,
            "p50": 40.0,
            "searches_per_second": 30.0,
            "pss": 1000.0,
        },
        {
            "script": "plain, tuned",
            "photos_per_second": 4.0,
            "p50": 25.0,
            "searches_per_second": 20.0,
            "pss": 2000.0,
        },
    ],
    "index": [{"photos_per_second": 3.0, "crops_per_photo": 40.0, "pss": 3000.0}],
    "search": [
        {"clients": 1, "p50": 50.0, "per_second": 20.0},
        {"clients": 8, "p50": 150.0, "per_second": 60.0},
    ],
}


def test_the_service_is_held_against_ceiling_and_yardstick():
    rows = {row["what"]: row for row in compare(TABLES)}
    of_ceiling = rows["photos/s against the ceiling of torch"]
    assert of_ceiling["reference"] == pytest.approx(1 / (1 / 10 + 40 / 400))
    assert of_ceiling["ratio"] == pytest.approx(3 / 5)
    faster = rows["photos/s against the ceiling of openvino"]
    assert faster["reference"] == pytest.approx(1 / (1 / 20 + 40 / 800))
    assert rows["photos/s against plain"]["ratio"] == pytest.approx(1.5)
    assert rows["photos/s against plain, tuned"]["ratio"] == pytest.approx(0.75)
    floor = rows["search p50 with 1 client, ms, against one pass through the encoder in torch"]
    assert (floor["reference"], floor["difference"]) == (20, 30)
    batched = rows["searches/s with 8 clients against crops/s of the encoder in torch"]
    assert batched["ratio"] == pytest.approx(60 / 400)
    assert rows["peak PSS, MiB, against plain, tuned"]["ratio"] == 1.5
    threads = rows["searches/s with 8 clients against plain with 8 threads"]
    assert threads["ratio"] == 2


def test_tables_have_a_cell_for_each_column_and_nothing_where_there_is_nothing():
    columns = {"a": ("first", "{}"), "b": ("second", "{:.1f}")}
    rows = [{"a": "x", "b": 1.25, "c": 7}, {"a": 0, "b": None}, {"b": 0.0}]
    assert table(rows, columns).splitlines() == [
        "| first | second |",
        "|---|---|",
        "| x | 1.2 |",
        "| 0 |  |",
        "|  | 0.0 |",
    ]


def test_benchmarks_md_has_what_was_measured_and_on_what():
    results = {
        "command": "scripts/bench.py all --photos p",
        "date": "2026-01-02",
        "machine": {"CPU": "a fast one", "cores": "64"},
        "tables": {
            "search": [{"encoder": "models/compact", "clients": 8, "per_second": 61.25}],
            "comparison": [{"encoder": "vit-b-32", **row} for row in compare(TABLES)],
        },
    }
    text = report(json.loads(json.dumps(results)), bench.SECTIONS)
    lines = text.splitlines()
    assert lines[0] == "# Benchmarks"
    assert "scripts/bench.py all --photos p    # 2026-01-02" in lines
    assert "| CPU | a fast one |" in lines
    headings = [line for line in lines if line.startswith("## ")]
    assert headings == ["## Compared", "## Searching"]
    assert (
        "| vit-b-32 | photos/s against the ceiling of torch | 3.00 | 5.00 | -2.00 | 0.60 |" in lines
    )
    (searching,) = (line for line in lines if line.startswith("| models/compact | 8 |"))
    assert "61.2" in searching
    table = [line for line in lines[lines.index("## Compared") :] if line.startswith("|")]
    assert len({line.count("|") for line in table[:5]}) == 1


def test_the_machine_is_described():
    machine = describe_machine()
    assert {"CPU", "cores", "instructions", "memory", "Python", "torch", "ray"} <= set(machine)
    assert all(machine.values())


def test_what_is_measured_is_printed_and_written(tmp_path, capsys):
    seen = []

    def tables(arguments, folder):
        seen.append(folder)
        yield "index", TABLES["index"]

    bench.run(
        argparse.Namespace(
            encoder=["models/compact", str(ROOT / "models" / "compact")],
            tables=tables,
            json=tmp_path / "all.json",
            report=tmp_path / "BENCHMARKS.md",
        )
    )
    assert seen == 2 * [ROOT / "models" / "compact"]
    written = json.loads((tmp_path / "all.json").read_text())
    encoders = [row["encoder"] for row in written["tables"]["index"]]
    assert encoders == ["models/compact", str(ROOT / "models" / "compact")]
    assert written["tables"]["index"][0]["photos_per_second"] == 3
    assert capsys.readouterr().out.count("| 3.00 | 40.0 |") == 2
    moments = written["tables"]["pace"]
    assert [row["moment"] for row in moments] == 2 * ["at first", "after: Indexing"]
    assert max(row["pace"] for row in moments) == 1
    assert min(row["pace"] for row in moments) > 0.1
    assert (tmp_path / "BENCHMARKS.md").read_text().count("| 3.00 | 40.0 |") == 2


def test_vit_b_32_is_made_when_it_is_asked_for(monkeypatch):
    made = []
    monkeypatch.setattr(bench.networks, "make_vit_b_32", made.append)
    with bench.encoder_folders(["vit-b-32", "models/compact"]) as folders:
        assert folders == {"vit-b-32": made[0], "models/compact": ROOT / "models" / "compact"}
        assert made[0].parent.is_dir()
    assert not made[0].parent.exists()
    assert make_vit_b_32 is not bench.networks.make_vit_b_32


def test_all_runs_every_command_and_compares(monkeypatch, tmp_path):
    """Each measurement is replaced by its figures: what is left is the order of things."""
    calls = []

    class Service:
        def stop(self):
            calls.append("stop")

    def prepared(encoder, args, import_path="graph:build"):
        calls.append("prepare")
        return contextmanager(lambda: iter([Service()]))()

    def measurement(name, result):
        def measure(*arguments, **options):
            calls.append(name)
            return result

        return measure

    monkeypatch.setattr(commands, "prepared", prepared)
    monkeypatch.setattr(
        commands, "Pictures", measurement("pictures", SimpleNamespace(photos=None, queries=None))
    )
    monkeypatch.setattr(commands.networks, "ceiling", measurement("ceiling", TABLES["ceiling"]))
    monkeypatch.setattr(commands.yardstick, "measure_both", measurement("plain", TABLES["plain"]))
    monkeypatch.setattr(commands.store, "measure", measurement("store", []))
    for name in ("search", "mixed", "memory"):
        result = TABLES.get(name, [])
        monkeypatch.setattr(commands.service, name, measurement(name, result))
    monkeypatch.setattr(commands.service, "index", measurement("index", TABLES["index"][0]))
    monkeypatch.setattr(commands.service, "startup", measurement("startup", {"seconds": 9}))
    monkeypatch.setattr(commands.overload, "divide", lambda photos: ())
    monkeypatch.setattr(commands.overload, "overload", measurement("overload", []))
    monkeypatch.setattr(commands, "measure_verify", measurement("verify", []))
    monkeypatch.setattr(commands.stages, "start", measurement("start", None))
    monkeypatch.setattr(commands.stages, "stages", measurement("stages", []))

    arguments = bench.make_parser().parse_args(["all", "--photos", str(tmp_path)])
    tables = dict(bench.everything(arguments, tmp_path))
    assert set(tables) == set(bench.COMMANDS) | {"comparison"}
    assert tables["comparison"] == compare(TABLES)
    assert tables["startup"] == 2 * [{"seconds": 9}]
    before, after = calls[: calls.index("stop")], calls[calls.index("stop") + 1 :]
    assert before == [
        *("ceiling", "plain", "store", "pictures", "prepare", "startup", "index", "search"),
        *("mixed", "overload"),
    ]
    assert after == ["startup", "memory", "verify", "pictures", "prepare", "start", "stages"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["index", "--photos", "/nowhere"], "no images in there"),
        (["index"], "--photos"),
        (["search", "--photos", "PHOTO", "--args", '{"segmenter": {"tile": []}}'], "tile is not"),
        (["plain", "--photos", "PHOTO", "--segmenter", '{"tile": []}'], "not a JSON object"),
        (["ceiling", "--dtypes", "float8"], "float8"),
        (["memory", "--photos", "PHOTO", "--searches", "0"], "at least 1"),
        (["ceiling", "--encoder", "/nowhere/clip"], "/nowhere/clip"),
    ],
)
def test_a_mistake_is_told_before_anything_is_measured(
    options, told, tmp_path, capsys, monkeypatch
):
    (tmp_path / "1.png").write_bytes(encode(pixels("bench")))
    given = [str(tmp_path) if option == "PHOTO" else option for option in options]
    monkeypatch.setattr(sys, "argv", ["bench.py", *given])
    try:
        status = bench.main()
    except SystemExit as end:
        status = end.code
    assert status in (1, 2)
    assert told in capsys.readouterr().err
