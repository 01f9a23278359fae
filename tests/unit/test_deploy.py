"""The dashboard and the alerts name metrics that there are, and the documents explain each."""

import json
import re
import shutil
import subprocess
from itertools import combinations

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


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool (of prometheus) isn't installed")
@pytest.mark.parametrize("command", [["rules", "alerts.yml"], ["config", "prometheus.yml"]])
def test_prometheus_reads_the_files(command: list[str]):
    what, file = command
    checked = subprocess.run(
        ["promtool", "check", what, PROMETHEUS / file], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
