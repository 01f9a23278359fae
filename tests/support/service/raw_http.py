"""HTTP byte by byte, as no client library would send it."""

from __future__ import annotations

import re
import select
import socket
import time
from contextlib import suppress


def connect(port: int) -> socket.socket:
    """Return a connection to a service of this machine."""
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def exchange(port: int, data: bytes, *, quiet_s: float = 1.5) -> bytes:
    """Send bytes; return all that is answered until the other side closes or is quiet.

    Args:
        quiet_s: how long nothing may come after the first answer.
    """
    answer = b""
    with connect(port) as connection:
        connection.sendall(data)
        with suppress(TimeoutError, ConnectionError):
            while more := connection.recv(65_536):
                answer += more
                connection.settimeout(quiet_s)
    return answer


def is_answered(connection: socket.socket) -> bool:
    """Return whether something came by a connection, or its other side has closed it."""
    return bool(select.select([connection], [], [], 0)[0])


def statuses(answer: bytes) -> list[int]:
    """Return the status of each answer in a stream of them."""
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", answer)]


def drip(connections: list[socket.socket], data: bytes, seconds: float) -> None:
    """Send a byte by each connection every half second."""
    deadline = time.monotonic() + seconds
    for place in range(len(data)):
        for connection in connections:
            with suppress(OSError):
                connection.sendall(data[place : place + 1])
        if time.monotonic() > deadline:
            return
        time.sleep(0.5)
