"""That a fast test can't do what only slow ones may, whoever does it for it."""

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from deployments.segmenter.checkpoint import read_checkpoint
from deployments.segmenter.files import find_detector
from deployments.settings import SegmenterSettings
from tests.support.paths import ROOT

NETWORK = ROOT / "models" / "compact" / "model.safetensors"


def refused(deed):
    return pytest.raises(pytest.fail.Exception, match=f"Mark this test as slow: it {deed}")


@pytest.mark.parametrize(
    ("command", "deed"),
    [
        ([Path(sys.executable).with_name("serve"), "run", "x.yaml"], "starts a service"),
        (["sh", "-c", 'exec "$@"', str(Path(sys.executable).with_name("serve"))], "starts a serv"),
        (["/somewhere/raylet/raylet", "--port=0"], "starts Ray"),
        (["/usr/bin/chromium", "--headless"], "starts a browser"),
        (["node", "cli.js", "run-driver"], "starts a browser"),
    ],
)
def test_nothing_is_started(command, deed):
    with refused(deed):
        subprocess.Popen(command)


def test_no_trained_network_is_loaded(tmp_path):
    (tmp_path / "mine.pt").symlink_to(find_detector(SegmenterSettings()).path)
    with refused("loads a trained network"):
        read_checkpoint(tmp_path / "mine.pt")


def test_no_trained_encoder_is_loaded():
    with refused("loads a trained network"):
        safe_open(NETWORK, "pt")


@pytest.mark.slow
def test_slow_tests_may(tmp_path):
    assert read_checkpoint(find_detector(SegmenterSettings()).path).names
    with safe_open(NETWORK, "pt") as network:
        assert list(network.keys())
