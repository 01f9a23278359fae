"""Whole stores as files: backing up, restoring, and giving free space back to the disk."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import lmdb

from deployments.errors import StoreUnusable
from deployments.files import replacing, sync
from deployments.store.access import (
    DATA,
    hold_files,
    make_folder,
    opening,
    require_store,
    take_ownership,
)
from deployments.store.format import (
    FORMAT,
    Databases,
    begin_history,
    open_databases,
    read_format,
    upgrade_store,
)
from deployments.store.reader import StoreReader

COPY_BYTES = 2**20
# Room for the few pages that a restored store gets to change.
RESTORE_BYTES = 2**20

# Told how many bytes more were copied.
Progress = Callable[[int], object]


def backup(reader: StoreReader, file: Path, progress: Progress) -> None:
    """Copy a store, without its free pages, into one file; the file is there whole or not at all.

    The store may be in use. It is copied as of one moment; what is deleted meanwhile gives no
    space back before the copy is done.

    Args:
        file: replaced if it is there.

    Raises:
        OSError: the file can't be written.
        lmdb.Error: the store can't be read.
    """
    with replacing(file) as target:
        _copy_compacted(reader.copy_to, target, progress)


def restore(file: Path, path: Path, progress: Progress) -> None:
    """Make a store from a backup; it is there whole or not at all.

    It begins a history of its own: whoever followed the store that was backed up begins anew.

    Args:
        file: made by `backup`. One of an older format is upgraded; the file stays as it is.
        path: the folder; made if it is missing.

    Raises:
        StoreUnusable: the file is no backup, or incomplete; or the folder holds a store already, or
            is in use.
        OSError: the folder can't be written.
    """
    _check_backup(file)
    made = make_folder(path)
    owner = take_ownership(path, timeout_s=0)
    try:
        if (path / DATA).exists():
            raise StoreUnusable(
                f"There is a store in {path} already, and a backup is not restored over it: move "
                "that folder away, or give another one."
            )
        with replacing(path / DATA) as target, file.open("rb") as source:
            while block := source.read(COPY_BYTES):
                target.write(block)
                progress(len(block))
            target.flush()
            _begin_anew(Path(target.name))
        sync({folder.parent for folder in made})
    finally:
        os.close(owner)


def compact(path: Path, progress: Progress) -> tuple[int, int]:
    """Give the free pages of a store back to the disk. No process may have it open.

    The store is copied beside itself, and the copy takes its place in one step: whatever happens,
    one of the two is there, and whole.

    Returns:
        Size of the file before and after, bytes.

    Raises:
        StoreUnusable: no store, in use, or damaged; or its disk has no room for the copy.
        OSError: its folder can't be written.
    """
    require_store(path)
    owner = take_ownership(path, timeout_s=0)
    try:
        alone = hold_files(path, alone=True)
        try:
            before = (path / DATA).stat().st_size
            with opening(path):
                env = lmdb.open(str(path), readonly=True, max_dbs=len(Databases._fields))
            # The old file is closed before the copy takes its place.
            with replacing(path / DATA) as target, env:
                _require_format(env, path)
                _require_room(env, path)
                _copy_compacted(
                    lambda descriptor: env.copyfd(descriptor, compact=True), target, progress
                )
            return before, (path / DATA).stat().st_size
        finally:
            os.close(alone)
    finally:
        os.close(owner)


def _copy_compacted(copy_to: Callable[[int], None], target: BinaryIO, progress: Progress) -> None:
    """Write what LMDB copies to a descriptor into a file.

    It comes through a pipe: LMDB's copying can't be interrupted, but it ends when nobody reads.
    """
    reading, writing = os.pipe()
    errors: list[lmdb.Error] = []

    def copy() -> None:
        try:
            copy_to(writing)
        except lmdb.Error as error:
            errors.append(error)
        finally:
            os.close(writing)

    thread = threading.Thread(target=copy)
    thread.start()
    try:
        with open(reading, "rb", buffering=0) as source:
            while block := source.read(COPY_BYTES):
                target.write(block)
                progress(len(block))
    finally:
        thread.join()
    if errors:
        raise errors[0]


@contextmanager
def _opening_file(file: Path, **options: bool | int) -> Iterator[lmdb.Environment]:
    """A store in a file of its own, that no other process has open."""
    try:
        with lmdb.open(
            str(file), subdir=False, lock=False, max_dbs=len(Databases._fields), **options
        ) as env:
            yield env
    except lmdb.Error as error:
        raise StoreUnusable(
            f"{file} can't be read as a backup of a store ({error}): give a file that "
            "`scripts/store.py backup` made."
        ) from error


def _check_backup(file: Path) -> None:
    size = file.stat().st_size
    with _opening_file(file, readonly=True, create=False) as env:
        with env.begin() as txn:
            page_bytes = txn.stat()["psize"]
        complete = (env.info()["last_pgno"] + 1) * page_bytes
        # To read beyond the end of a mapped file would kill this process.
        if size < complete:
            raise StoreUnusable(
                f"The backup {file} is incomplete ({size:,} of {complete:,} bytes): give another."
            )
        _require_format(env, file)


def _require_format(env: lmdb.Environment, path: Path) -> None:
    if read_format(env, path) is None:
        raise StoreUnusable(f"{path} is empty: it holds no store.")


def _begin_anew(file: Path) -> None:
    with _opening_file(file, map_size=file.stat().st_size + RESTORE_BYTES) as env:
        found = read_format(env, file)
        with env.begin(write=True) as txn:
            dbs = open_databases(env, txn)
            if found < FORMAT:
                upgrade_store(txn, dbs, found)
            begin_history(txn, dbs)


def _require_room(env: lmdb.Environment, path: Path) -> None:
    """The copy is no larger than what the store has ever used."""
    with env.begin() as txn:
        needed = (env.info()["last_pgno"] + 1) * txn.stat()["psize"]
    free = shutil.disk_usage(path).free
    if free < needed:
        raise StoreUnusable(
            f"Compacting the store in {path} may need {needed:,} bytes on its disk for a while, "
            f"and {free:,} are free: free some space. If that can't be had, back the store up "
            "to another disk, move the store away, and restore the backup."
        )
