"""The dashboard and the alerts name metrics that there are, and the documents explain each."""

import json
import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path

import pytest
import yaml

from tests.support.paths import ROOT

BOARD = json.loads((ROOT / "deploy/grafana/inset.json").read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
PROMETHEUS = ROOT / "deploy/prometheus"
RULES = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
QUERIES = {
    f"{panel['title']}, {target['refId']}": target["expr"]
    for panel in PANELS
    for target in panel["targets"]
} | {rule["alert"]: rule["expr"] for rule in RULES}
OPERATIONS = (ROOT / "docs/operations.md").read_text()

CODE = "\n".join(path.read_text() for path in sorted((ROOT / "deployments").rglob("*.py")))
DEFINED = set(re.findall(r'"(inset_[a-z_]+)"', CODE)) - {"inset_key"}  # that is the page's cookie
HISTOGRAMS = set(re.findall(r'Histogram\(\s*"(inset_[a-z_]+)"', CODE))
EXPORTED = {f"ray_{name}" for name in DEFINED - HISTOGRAMS} | {
    f"ray_{name}_{suffix}" for name in HISTOGRAMS for suffix in ("bucket", "sum", "count")
}

needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="promtool, which comes with Prometheus, isn't installed"
)


def test_metrics_are_found_in_the_code():
    assert {"inset_requests_total", "inset_index_photos", "inset_waiting_items"} < DEFINED
    assert {"inset_request_seconds"} <= HISTOGRAMS < DEFINED


@pytest.mark.parametrize("name", QUERIES)
def test_queries_name_metrics_that_there_are(name: str):
    named = set(re.findall(r"ray_inset_[a-z_]+", QUERIES[name]))
    assert named <= EXPORTED
    assert named or "ray_" in QUERIES[name]


@pytest.mark.parametrize("name", sorted(DEFINED))
def test_somebody_looks_at_each_metric(name: str):
    assert re.search(rf"ray_{name}(_bucket|_count|_sum)?\b", " ".join(QUERIES.values()))


@pytest.mark.parametrize("name", sorted(DEFINED))
def test_the_documents_explain_each_metric(name: str):
    assert f"| `ray_{name}` |" in OPERATIONS


def test_the_documents_name_no_other_metric():
    named = set(re.findall(r"`(ray_inset_[a-z_]+)`", OPERATIONS))
    assert named <= EXPORTED | {f"ray_{name}" for name in HISTOGRAMS}


def test_the_documents_explain_each_alert():
    explained = re.findall(r"^\| `(Inset\w+)` \|", OPERATIONS, re.M)
    assert explained == [rule["alert"] for rule in RULES]


def test_panels_do_not_cover_each_other():
    for one, other in combinations([panel["gridPos"] for panel in BOARD["panels"]], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)


def test_panels_ask_the_data_source_that_was_chosen():
    (variable,) = BOARD["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    chosen = {"type": "prometheus", "uid": f"${{{variable['name']}}}"}
    assert all(panel["datasource"] == chosen for panel in PANELS)
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])


@needs_promtool
@pytest.mark.parametrize("command", [["rules", "alerts.yml"], ["config", "prometheus.yml"]])
def test_prometheus_reads_the_files(command: list[str]):
    what, file = command
    checked = subprocess.run(
        ["promtool", "check", what, PROMETHEUS / file], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr


REPLICA = 'ray_serve_deployment_replica_healthy{application="inset",deployment="Store",replica="a"}'
# Series of a service that is well, a value a minute.
WELL = {
    'ray_inset_store_photos{deployment="Store"}': "10x600",
    'ray_inset_index_photos{WorkerId="a"}': "10x600",
    'ray_inset_photos_in_work{deployment="Ingress"}': "0x600",
    REPLICA: "1x600",
    'ray_inset_requests_total{status="200",route_path="/search"}': "0+600x600",
    'ray_inset_store_room_bytes{deployment="Store"}': "99000000000x600",
    'ray_inset_store_used_bytes{deployment="Store"}': "1000000x600",
    'ray_inset_store_sequence{deployment="Store"}': "0+100x600",
    'ray_inset_index_sequence{WorkerId="a"}': "0+100x600",
    'ray_inset_index_unfollowed_seconds{WorkerId="a"}': "2x600",
    'ray_inset_index_chunks{WorkerId="a"}': "100000x600",
    'ray_inset_index_unsaved_chunks{WorkerId="a"}': "0x600",
    'ray_inset_decoder_restarts_total{deployment="PhotoEncoder"}': "1x600",
    'ray_node_disk_utilization_percentage{instance="a"}': "50x600",
}
# What makes each alert fire. A series without values is one that isn't there.
TROUBLE = {
    "InsetAway": {'ray_inset_index_photos{WorkerId="a"}': "_x600"},
    "InsetReplicaAway": {REPLICA: "0x600"},
    "InsetErrors": {'ray_inset_requests_total{status="500",route_path="/search"}': "0+12x600"},
    "InsetRefusing": {'ray_inset_problems_total{status="503",title="Full"}': "0+60x600"},
    "InsetFull": {'ray_inset_store_room_bytes{deployment="Store"}': "2000000000x600"},
    "InsetFullSoon": {
        'ray_inset_store_room_bytes{deployment="Store"}': "99000000000-100000000x600"
    },
    "InsetIndexSilent": {'ray_inset_index_unfollowed_seconds{WorkerId="b"}': "0+60x600"},
    "InsetIndexBehind": {'ray_inset_index_sequence{WorkerId="b"}': "0x600"},
    "InsetSnapshotOld": {'ray_inset_index_unsaved_chunks{WorkerId="a"}': "40000x600"},
    "InsetDecodersLost": {'ray_inset_decoder_restarts_total{deployment="PhotoEncoder"}': "0+3x600"},
    "InsetDiskFull": {'ray_node_disk_utilization_percentage{instance="a"}': "96x600"},
}


@needs_promtool
@pytest.mark.parametrize("trouble", [None, *TROUBLE])
def test_an_alert_fires_for_its_trouble_alone(tmp_path: Path, trouble: str | None):
    series = WELL | TROUBLE.get(trouble, {})
    firing = "ALERTS{alertstate='firing'}"
    query = f"count by (alertname) ({firing})" if trouble else f"count({firing}) or vector(0)"
    labels = f'{{alertname="{trouble}"}}' if trouble else "{}"
    test = {
        "rule_files": [str(PROMETHEUS / "alerts.yml")],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": name, "values": values} for name, values in series.items()
                ],
                "promql_expr_test": [
                    {
                        "expr": query,
                        "eval_time": "8h",
                        "exp_samples": [{"labels": labels, "value": 1 if trouble else 0}],
                    }
                ],
            }
        ],
    }
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump(test))
    tested = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_each_alert_is_tried():
    assert list(TROUBLE) == [rule["alert"] for rule in RULES]
