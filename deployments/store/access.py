"""Locks on a store's files: one owner, many readers, and nobody else while they are replaced."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import lmdb

from deployments.errors import StoreDiskFailed, StoreFull, StoreUnusable, Unavailable

DATA = "data.mdb"  # LMDB's name for the file
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
MAX_READERS = 1024  # concurrent read transactions; the first process to open a store sets it


class MapGate:
    """A lock on the memory map: many readers, or one thread that resizes it.

    A thread that waits to resize it holds back new readers. Not reentrant.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._readers = 0
        self._closed = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._condition:
            while self._closed:
                self._condition.wait()
            self._readers += 1
        try:
            yield
        finally:
            with self._condition:
                self._readers -= 1
                if not self._readers:
                    self._condition.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        with self._condition:
            while self._closed:
                self._condition.wait()
            self._closed = True
            while self._readers:
                self._condition.wait()
        try:
            yield
        finally:
            with self._condition:
                self._closed = False
                self._condition.notify_all()


@contextmanager
def opening(path: Path) -> Iterator[None]:
    """Turn the errors of opening a store into one that says what to do.

    Raises:
        StoreDiskFailed: its disk fails or is full.
        StoreUnusable: anything else.
    """
    try:
        yield
    except (lmdb.Error, OSError, StoreFull, Unavailable) as error:
        kind = StoreDiskFailed if _is_of_the_disk(error) else StoreUnusable
        raise kind(
            f"The store in {path} can't be opened ({error}). Check that the folder is a store, "
            "readable and writable, and that its disk is neither full nor damaged."
        ) from error


def _is_of_the_disk(error: BaseException | None) -> bool:
    match error:
        case lmdb.Error():
            return error.code in DISK_FULL | {errno.EIO}
        case OSError():
            return error.errno in DISK_FULL | {errno.EIO}
        case StoreFull() | Unavailable():  # StoreFull may be of `max_bytes`
            return _is_of_the_disk(error.__cause__)
        case _:
            return False


def require_store(path: Path) -> None:
    """Check that a folder holds a database.

    Raises:
        StoreUnusable
    """
    if not (path / DATA).is_file():
        raise StoreUnusable(
            f"There is no store in {path}: give the folder that the service is configured with "
            "(store.path)."
        )


def make_folder(path: Path) -> list[Path]:
    """Make a folder and its missing parents; return the folders that were made."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    return missing


def take_ownership(path: Path, timeout_s: float) -> int:
    """Lock the folder for this process; return the descriptor that holds the lock.

    The kernel releases the lock when the process ends, however it ends. The process id in the
    file is only for error messages.

    Raises:
        StoreUnusable: another process still has the lock after `timeout_s`.
    """
    descriptor = os.open(path / "owner.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _wait_for_lock(descriptor, path, timeout_s)
        os.ftruncate(descriptor, 0)
        with suppress(OSError):  # on a full disk, where photos can be found all the same
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def hold_files(path: Path, *, alone: bool) -> int:
    """Lock the files of a store, to read them or, if `alone`, to replace them.

    LMDB's readers and writers must all see the same file. The owner needs no such lock, because
    only an owner replaces the files. The lock is on the folder itself, so that reading makes no
    file.

    Returns:
        The descriptor that holds the lock.

    Raises:
        StoreUnusable: another process replaces the files, or, if `alone`, reads them.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        who = "being read by another process" if alone else "being compacted"
        raise StoreUnusable(f"The store in {path} is {who}: try again when that is done.") from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _wait_for_lock(descriptor: int, path: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
                raise StoreUnusable(
                    f"The store in {path} is in use by process {owner or 'unknown'}, and a store "
                    "has one owner: stop that process, or configure another folder."
                ) from None
        time.sleep(0.05)
