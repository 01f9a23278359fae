"""What passes between a decoder and its processes: short messages, and files in memory.

Messages are JSON, so nothing that a process sends can do more than say something wrong.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import tempfile
from typing import Any

import numpy as np

Message = dict[str, Any]

_LENGTH = 4  # bytes that say how long a message is
_MAX_LENGTH = 2**20


class Closed(Exception):
    """The other side has ended."""


def send(channel: socket.socket, message: Message, file: int | None = None) -> None:
    """Send a message, and a file's descriptor with it.

    Raises:
        Closed: nobody receives it.
        TimeoutError: the channel has a timeout, and it passed.
    """
    body = json.dumps(message).encode()
    data = len(body).to_bytes(_LENGTH, "big") + body
    try:
        sent = socket.send_fds(channel, [data], [] if file is None else [file])
        channel.sendall(data[sent:])
    except (BrokenPipeError, ConnectionError):
        raise Closed from None


def receive(channel: socket.socket) -> tuple[Message, int | None]:
    """Receive a message, and the descriptor of the file that came with it.

    Raises:
        Closed: the other side has ended, or what it sent is no message.
        TimeoutError: the channel has a timeout, and it passed.
    """
    files: list[int] = []
    try:
        data, files, _, _ = socket.recv_fds(channel, _LENGTH, 1)
        data += _receive_exactly(channel, _LENGTH - len(data)) if data else b""
        length = int.from_bytes(data, "big")
        if not 0 < length <= _MAX_LENGTH:
            raise Closed
        message = json.loads(_receive_exactly(channel, length))
    except (ConnectionError, ValueError):
        message = None
    except BaseException:
        _close(files)
        raise
    if not isinstance(message, dict):
        _close(files)
        raise Closed
    return message, files[0] if files else None


def _receive_exactly(channel: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        more = channel.recv(length - len(data))
        if not more:
            raise Closed
        data += more
    return bytes(data)


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)


def create_file(size: int) -> int:
    """Create a file in memory, without a name; return its descriptor."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("image", os.MFD_CLOEXEC)
    else:  # not on Linux
        with tempfile.TemporaryFile() as unnamed:
            file = os.dup(unnamed.fileno())
    os.truncate(file, size)
    return file


def map_file(file: int, size: int) -> np.ndarray:
    """Map a file into memory and close its descriptor: uint8 `[size]`, shared, writable."""
    try:
        flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
        return np.frombuffer(mmap.mmap(file, size, flags=flags), np.uint8)
    finally:
        os.close(file)
