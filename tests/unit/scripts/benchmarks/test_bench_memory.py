"""Memory of processes: what they are called, what they take, and how it grows."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys

import numpy as np
import psutil
import pytest
from benchmarks.memory import MIB, Memory, Peak, growth, measure, measure_roles, role, total

from tests.support.running.waiting import wait_until


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ray::ServeReplica:inset:PhotoEncoder", "PhotoEncoder"),
        ("ray::ServeReplica:inset:Store.handle_request", "Store"),
        ("ray::ProxyActor", "ProxyActor"),
        ("ray::IDLE", "IDLE"),
        ("/lib/ray/core/src/ray/raylet/raylet --raylet_socket_name=/tmp/a.b", "raylet"),
        ("/venv/bin/python -u /lib/ray/_private/runtime_env/agent/main.py --a", "agent/main.py"),
        ("/venv/bin/python3.11 /venv/bin/serve run config.yaml", "serve"),
        ("/venv/bin/python -c from multiprocessing.resource_tracker import main", "python -c"),
        ("ray-dashboard-JobHead-0 (dashboard)", "ray-dashboard"),
        ("", "(ended)"),
    ],
)
def test_processes_are_called_by_what_they_are(line, expected):
    assert role(line) == expected


def new_block() -> mmap.mmap:
    """Return 64 MiB that the kernel has just given: an allocator may have as much to spare."""
    block = mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for _ in range(64):
        block.write(bytes(range(256)) * 4096)
    return block


def test_a_processs_own_memory_is_not_that_of_its_files(tmp_path):
    before = measure(psutil.Process())
    block = new_block()
    after = measure(psutil.Process())
    assert after.pss - before.pss == pytest.approx(64 * MIB, rel=0.2)
    assert after.own - before.own == pytest.approx(64 * MIB, rel=0.2)
    block.close()

    (tmp_path / "file").write_bytes(os.urandom(64 * MIB))
    before = measure(psutil.Process())
    file = np.memmap(tmp_path / "file")
    file[::4096].sum()
    after = measure(psutil.Process())
    assert after.pss - before.pss == pytest.approx(64 * MIB, rel=0.2)
    assert after.own - before.own < 16 * MIB


def test_those_of_a_kind_are_counted_together_and_the_ended_not_at_all():
    sleeping = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]
    children = [subprocess.Popen(sleeping, stdout=subprocess.PIPE) for _ in range(3)]
    for child in children:
        child.stdout.readline()
    processes = [psutil.Process(child.pid) for child in children]
    one = measure(processes[0])
    children[2].kill()
    children[2].wait()
    found = measure_roles(processes)
    for child in children:
        child.kill()
        child.communicate()
    assert found["(ended)"] == Memory(0, 0)
    (both,) = (memory for name, memory in found.items() if name != "(ended)")
    assert both.own == pytest.approx(2 * one.own, rel=0.2)
    assert total(found) == both


def test_growth_is_the_slope_of_the_second_half():
    counts = [0, 100, 200, 300, 400, 500, 600, 700]
    sizes = [0, 500, 900, 990, 1000, 1002, 1004, 1006]
    assert growth(counts, sizes) == pytest.approx(20)
    assert growth(counts, [7] * 8) == pytest.approx(0)
    assert growth([count / 2 for count in counts], sizes) is None  # too few


def test_the_peak_is_seen_though_it_is_over():
    start = measure(psutil.Process()).pss
    with Peak(lambda: [psutil.Process()], period_s=0.02) as peak:
        block = new_block()
        wait_until(lambda: peak.pss - start > 48 * MIB, "the block is seen")
        block.close()
        wait_until(lambda: measure(psutil.Process()).pss - start < 16 * MIB, "the block is gone")
    assert peak.pss - start > 48 * MIB
    assert measure(psutil.Process()).pss - start < 16 * MIB
