"""Back up, restore and compact whole stores."""

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
# Room for the few pages that `restore` changes.
RESTORE_BYTES = 2**20

# Called with the number of bytes copied since the last call.
Progress = Callable[[int], object]


def backup(reader: StoreReader, file: Path, progress: Progress) -> None:
    """Copy a store, without its free pages, into one file, which is never left half written.

    The store may be in use. The copy is one snapshot; deletions free no space until it is done.

    Args:
        file: replaced if it exists.

    Raises:
        OSError: the file can't be written.
        lmdb.Error: the store can't be read.
    """
    with replacing(file) as target:
        _copy_compacted(reader.copy_to, target, progress)


def restore(file: Path, path: Path, progress: Progress) -> None:
    """Make a store from a backup. A failure leaves no half-made store.

    It begins a new history, so followers of the store that was backed up load everything again.

    Args:
        file: made by `backup`. The store, but not the file, is upgraded from an older format.
        path: the folder; made if it is missing.

    Raises:
        StoreUnusable: the file is not a backup, or incomplete; or the folder holds a store
            already, or is in use.
        OSError: the folder can't be written.
    """
    _check_backup(file)
    made = make_folder(path)
    owner = take_ownership(path, timeout_s=0)
    try:
        if (path / DATA).exists():
            raise StoreUnusable(
                f"There is a store in {path} already, and restoring does not overwrite it: move "
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

    The store is copied to a new file, which then replaces the old one in one step. So there is a
    complete store at any time.

    Returns:
        Size of the file before and after, bytes.

    Raises:
        StoreUnusable: there is no store, or it is in use or damaged, or its disk has no room for
            the copy.
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

    LMDB's copying can't be interrupted, but it ends when nobody reads. So it goes through a pipe.
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
def _opening_file(
    file: Path, *, readonly: bool = False, map_size: int = 0
) -> Iterator[lmdb.Environment]:
    """Open a store that is a single file and that no other process has open."""
    try:
        with lmdb.open(
            str(file),
            subdir=False,
            lock=False,
            max_dbs=len(Databases._fields),
            readonly=readonly,
            create=not readonly,
            map_size=map_size,
        ) as env:
            yield env
    except lmdb.Error as error:
        raise StoreUnusable(
            f"{file} can't be read as a backup of a store ({error}): give a file that "
            "`scripts/store.py backup` made."
        ) from error


def _check_backup(file: Path) -> None:
    size = file.stat().st_size
    with _opening_file(file, readonly=True) as env:
        with env.begin() as txn:
            page_bytes = txn.stat()["psize"]
        complete = (env.info()["last_pgno"] + 1) * page_bytes
        # Reading beyond the end of a mapped file would kill this process.
        if size < complete:
            raise StoreUnusable(
                f"The backup {file} is incomplete ({size:,} of {complete:,} bytes): use another."
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
            if found is not None and found < FORMAT:
                upgrade_store(txn, dbs, found)
            begin_history(txn, dbs)


def _require_room(env: lmdb.Environment, path: Path) -> None:
    """Check that the disk has room for a copy: at most as much as the store has ever used."""
    with env.begin() as txn:
        needed = (env.info()["last_pgno"] + 1) * txn.stat()["psize"]
    free = shutil.disk_usage(path).free
    if free < needed:
        raise StoreUnusable(
            f"Compacting the store in {path} may need {needed:,} bytes on its disk for a while, "
            f"but only {free:,} are free: free some space. Or back the store up to another disk, "
            "move the store away, and restore the backup."
        )
