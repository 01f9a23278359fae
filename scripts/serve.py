"""Start the service with HAProxy in front, and stop it quietly on any signal.

    scripts/serve [CONFIG]

This is `serve run CONFIG`, with what only the environment can say: HAProxy takes connections in
place of Ray Serve's own proxy, and hands each request to a replica of the Ingress without another
process of Python between. Where there is no HAProxy (it comes with `ray[serve]` for Linux), Ray
Serve's proxy stands in front, and a line says so. And searches go before photos: Ray would make all
of its workers equally nice.

SIGTERM (systemd, Docker), SIGINT (Ctrl-C) and SIGHUP (a closed terminal) all end the service as
Ctrl-C ends `serve run`: what is under way is stored first.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml
from common.paths import ROOT
from serving.front import NoHAProxy, haproxy_environment
from serving.parents import end_with_parent

# Of Ray's workers. What works on photos makes itself nice, see `compute/replicas.py`.
PRIORITY = {"RAY_worker_niceness": "0"}
# Of the folders of services, and how old one is before it can be nobody's: it is locked by then.
PREFIX, YOUNG_S = "inset-", 60
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class PortTaken(Exception):
    """Something else listens where the service would; the message says where, and what to do."""


def check_port(config: Path) -> None:
    """Check that nothing listens where a service of this config will.

    A second `serve run` would take over the first one's Ray, and end it with its own end.

    Raises:
        PortTaken
    """
    host, port = "127.0.0.1", 8000  # Ray Serve's own
    with suppress(OSError, yaml.YAMLError, AttributeError):  # `serve run` says what is wrong
        options = yaml.safe_load(config.read_text()).get("http_options", {})
        host, port = options.get("host", host), options.get("port", port)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, port), family=family).close()
    except (TypeError, OverflowError):  # that is no address; `serve run` says so
        return
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(
                f"Something already listens at {host}:{port}: stop it, or choose another "
                f"http_options.port in {config}."
            ) from None


def run(config: Path, environment: dict[str, str]) -> int:
    """Run `serve run` until it ends; return its exit status, 0 if a signal ended it."""
    serve: subprocess.Popen | None = None
    asked = False

    def end(number: int, frame: object) -> None:
        nonlocal asked
        if serve and not asked:  # a second SIGINT would make it give up what is under way
            serve.send_signal(signal.SIGINT)
        asked = True

    # First: a shell that starts this with `&` ignores SIGINT, and so would `serve run`.
    for number in ENDING:
        signal.signal(number, end)
    serve = subprocess.Popen(
        [Path(sys.executable).with_name("serve"), "run", config],
        cwd=ROOT,
        env=os.environ | environment,
        start_new_session=True,  # the Ctrl-C of a terminal would reach all of its processes
        preexec_fn=lambda: end_with_parent(signal.SIGINT),
    )
    if asked:  # before there was anything to stop
        serve.send_signal(signal.SIGINT)
    status = serve.wait()
    return 0 if asked else status


@contextmanager
def own_folder() -> Iterator[Path]:
    """Yield an empty folder for as long as the service runs; remove those of runs that were killed.

    Who uses a folder has it locked, and the lock ends with the process, however that ends.
    """
    for old in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # it is in use, or gone
            found = old.lstat()
            if found.st_uid == os.getuid() and time.time() - found.st_mtime > YOUNG_S:
                with locked(old):
                    shutil.rmtree(old)
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder, locked(Path(folder)):
        yield Path(folder)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder.

    Raises:
        OSError: it is locked, or it is none.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "config",
        nargs="?",
        type=Path,
        default=ROOT / "serve_config.yaml",
        help="(serve_config.yaml)",
    )
    arguments = parser.parse_args()
    try:
        check_port(arguments.config)
    except PortTaken as error:
        print(error, file=sys.stderr)
        return 1
    with own_folder() as folder:
        try:
            environment = haproxy_environment(folder)
        except NoHAProxy as error:
            print(f"{error} Ray Serve's own proxy stands in front, which is slower.", flush=True)
            environment = {}
        return run(arguments.config.absolute(), PRIORITY | environment)


if __name__ == "__main__":
    sys.exit(main())
