"""Ending `serve run`, in a process tree like Ray's: serve run, something between, the builder."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from deployments import startup
from deployments.errors import EncoderMismatch, ModelUnavailable, StartupError
from deployments.startup import ending_serve_run
from tests.support.paths import ROOT


@pytest.fixture
def alone(monkeypatch):
    """Whoever runs the tests isn't to be interrupted, nor waited for."""
    monkeypatch.setattr(startup, "_find_serve_run", lambda: None)


@pytest.mark.parametrize("kind", [StartupError, ModelUnavailable])
def test_the_sentence_is_printed_and_the_error_passes_on(alone, capsys, kind):
    error = kind("There is no such model: name another.")
    with pytest.raises(kind) as caught, ending_serve_run():
        raise error
    assert caught.value is error
    printed = capsys.readouterr()
    assert printed.err == "\nInset can't start: There is no such model: name another.\n\n"
    assert printed.out == ""


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (StartupError, ValueError("a bug")),
        (EncoderMismatch, ModelUnavailable("another one's business")),
        (StartupError, KeyboardInterrupt()),
    ],
)
def test_other_errors_pass_untouched(monkeypatch, capsys, kind, error):
    def never():
        pytest.fail("looked for somebody to interrupt")

    monkeypatch.setattr(startup, "_find_serve_run", never)
    with pytest.raises(type(error)) as caught, ending_serve_run(kind):
        raise error
    assert caught.value is error
    assert capsys.readouterr().err == ""


def test_where_nothing_is_wrong_nothing_happens(monkeypatch, capsys):
    monkeypatch.setattr(startup, "_find_serve_run", lambda: pytest.fail("looked for somebody"))
    with ending_serve_run():
        built = True
    assert built
    assert capsys.readouterr() == ("", "")


def test_without_ps_the_error_is_still_the_one_that_was_raised(monkeypatch, capsys, tmp_path):
    """Small container images have none."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(startup, "PRINTING_S", 0)
    monkeypatch.setattr(startup, "ENDING_S", 0)
    monkeypatch.setattr(os, "kill", lambda *_: None)
    with pytest.raises(StartupError, match="the reason"), ending_serve_run():
        raise StartupError("the reason")
    assert "the reason" in capsys.readouterr().err


# Stands for `serve run`: starts a child and tells how it was ended.
DRIVER = """
import signal, subprocess, sys
try:
    subprocess.run(sys.argv[sys.argv.index("--") + 1:])
except KeyboardInterrupt:
    print("interrupted", flush=True)
else:
    print("went on", flush=True)
"""
# Stands for what Ray has between the two.
BETWEEN = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)"
BUILDER = """
import os
import time
from deployments import startup
from deployments.errors import StartupError

startup.PRINTING_S, startup.ENDING_S = 0.1, float(os.environ.get("ENDING_S", 0.5))
start = time.monotonic()
try:
    with startup.ending_serve_run():
        raise StartupError("the reason")
except StartupError:
    print("raised after", time.monotonic() - start, flush=True)
"""


def launch(folder, name, *words, builder=BUILDER, **environment):
    """Run a script of this name with these words, that runs a process that runs the builder."""
    script = folder / name
    script.write_text(textwrap.dedent(DRIVER))
    python = [sys.executable, "-c"]
    return subprocess.run(
        [sys.executable, script, *words, "--", *python, BETWEEN, *python, builder],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
    )


@pytest.mark.parametrize("columns", ["", "20"])
def test_serve_run_is_interrupted(tmp_path, columns):
    """However narrow the terminal is said to be, for which `ps` cuts its lines."""
    start = time.monotonic()
    done = launch(tmp_path, "serve", "run", "serve_config.yaml", COLUMNS=columns)
    assert "interrupted" in done.stdout
    assert "went on" not in done.stdout
    assert "Inset can't start: the reason" in done.stderr
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("name", "words"),
    [("serve", ["status"]), ("server", ["run"]), ("serve.py", ["run"]), ("ray", ["serve", "-run"])],
)
def test_others_are_not_interrupted(tmp_path, name, words):
    done = launch(tmp_path, name, *words, ENDING_S="20")
    assert "went on" in done.stdout
    assert "interrupted" not in done.stdout
    assert "Inset can't start: the reason" in done.stderr
    (waited,) = [line for line in done.stdout.splitlines() if line.startswith("raised after")]
    assert float(waited.split()[-1]) < 20


def test_only_the_nearest_serve_run_is_found(tmp_path):
    """The processes above it are somebody else's."""
    inner = tmp_path / "inner" / "serve"
    inner.parent.mkdir()
    inner.write_text(DRIVER)
    builder = f"""
    import subprocess, sys
    command = [sys.executable, "-c", {BUILDER!r}]
    done = subprocess.run(
        [sys.executable, {str(inner)!r}, "run", "x", "--", *command], capture_output=True, text=True
    )
    print("inner:", done.stdout.split()[0], flush=True)
    """
    done = launch(tmp_path, "serve", "run", "x", builder=textwrap.dedent(builder))
    assert "inner: interrupted" in done.stdout
    assert "went on" in done.stdout


def test_the_signal_is_that_of_ctrl_c(monkeypatch, tmp_path):
    """So that `serve run` shuts down as it does for a person."""
    sent = []
    monkeypatch.setattr(startup, "PRINTING_S", 0)
    monkeypatch.setattr(startup, "ENDING_S", 0)
    monkeypatch.setattr(startup, "_find_serve_run", lambda: 12345)
    monkeypatch.setattr(os, "kill", lambda *call: sent.append(call))
    with pytest.raises(StartupError), ending_serve_run():
        raise StartupError("the reason")
    assert sent == [(12345, signal.SIGINT)]
