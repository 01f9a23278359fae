"""Ports to listen on."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

# Linux gives connections ports from 32768 on, and Ray takes some below 20000.
PORTS = (20_000, 30_000)


def free_port() -> int:
    """Return a port that nothing listens on.

    It is below those that the system gives to connections by itself, so none of them takes it
    before the service listens there.
    """
    while True:
        port = random.SystemRandom().randrange(*PORTS)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
