"""Snapshots of a chunk index on disk, so that a replica needn't build its graph again."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

from deployments.files import sync
from deployments.records import Position

logger = logging.getLogger(__name__)

FORMAT = 3
# What is raised for a file that is missing or damaged, by NumPy and FAISS too.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, BadZipFile)
# What a snapshot leaves free on its disk, for the store, which may be on the same one.
RESERVE_BYTES = 2**30


class Part(NamedTuple):
    """A folder within a snapshot.

    Attributes:
        name: no other part has it, unless it has the same content.
        about_bytes: how large it will be, about.
        save: writes its files into an empty folder.
    """

    name: str
    about_bytes: int
    save: Callable[[Path], None]


class Snapshots:
    """A folder of snapshots; the newest one is kept.

    Several replicas on one node may share it: one writes at a time, and all may read.

    Args:
        path: the folder, which is created with the first snapshot.
        kind: see `ChunkIndex.kind`; snapshots of another kind are not read.
    """

    def __init__(self, path: str | Path, kind: dict[str, object]) -> None:
        self.path = Path(path)
        self.kind = {"format": FORMAT, **kind}

    def disk_bytes(self) -> int:
        """Return the size of all snapshots, with those that are being written."""
        sizes: dict[int, int] = {}  # by inode: two snapshots may share a file
        for file in self.path.rglob("*"):
            with suppress(FileNotFoundError):  # an older one is being removed
                status = file.lstat()
                if stat.S_ISREG(status.st_mode):
                    sizes[status.st_ino] = status.st_size
        return sum(sizes.values())

    def write(self, parts: Sequence[Part], position: Position) -> bool:
        """Write a snapshot completely or not at all, then remove the older ones.

        A part that the snapshot before it has already is not written again: the two share its
        files.

        Args:
            parts: what is in it.
            position: the position in the store's log that the snapshot has.

        Returns:
            Whether it was written; False if another replica is writing one.

        Raises:
            OSError: it can't be written, for example because it would leave less than
                `RESERVE_BYTES` on the disk.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with self._writing() as is_ours:
            if not is_ours:
                return False
            for unfinished in self.path.glob("writing-*"):  # by a process that was killed
                shutil.rmtree(unfinished, ignore_errors=True)
            before = next(iter(self._folders()), None)
            folder = Path(tempfile.mkdtemp(prefix="writing-", dir=self.path))
            try:
                new = [part for part in parts if not (before and _share(before, folder, part.name))]
                self._require_room(sum(part.about_bytes for part in new))
                for part in new:
                    (folder / part.name).mkdir()
                    part.save(folder / part.name)
                header = {
                    "kind": self.kind,
                    "position": asdict(position),
                    "parts": [part.name for part in parts],
                }
                (folder / "header.json").write_text(json.dumps(header))
                sync([*folder.rglob("*"), folder])
                target = self.path / f"{position.sequence:020}-{position.history}"
                shutil.rmtree(target, ignore_errors=True)
                folder.rename(target)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            sync([self.path])
            for older in self._folders():
                if older != target:
                    shutil.rmtree(older, ignore_errors=True)
            return True

    def read(self, load: Callable[[Sequence[Path]], None]) -> Position | None:
        """Read the newest snapshot that fits, if there is one.

        Args:
            load: loads the folders of the parts, in their order; raises one of `UNREADABLE` if it
                can't.

        Returns:
            The position in the store's log that the snapshot has. If it is None, discard whatever
            `load` has loaded.
        """
        for folder in self._folders():
            try:
                header = json.loads((folder / "header.json").read_text())
                if header["kind"] != self.kind:
                    logger.info("ignoring the snapshot %s: it was made with other settings", folder)
                    continue
                load([folder / name for name in header["parts"]])
                return Position(**header["position"])
            except UNREADABLE as error:
                logger.warning("ignoring the snapshot %s: it can't be read (%s)", folder, error)
                return None
        return None

    def _require_room(self, about_bytes: int) -> None:
        free = shutil.disk_usage(self.path).free
        if free < about_bytes + RESERVE_BYTES:
            raise OSError(
                errno.ENOSPC,
                f"its disk has no room: it takes about {about_bytes:,} bytes beside the one "
                f"before it, and leaves {RESERVE_BYTES:,} to the store, but only {free:,} are free",
                str(self.path),
            )

    def _folders(self) -> list[Path]:
        """Return the folders of complete snapshots, newest first."""
        with suppress(FileNotFoundError):
            names = (path for path in self.path.iterdir() if re.match(r"\d{20}-", path.name))
            return sorted(names, key=lambda path: path.stat().st_mtime, reverse=True)
        return []

    @contextmanager
    def _writing(self) -> Iterator[bool]:
        """Hold the lock for writing while the block runs; yield whether it is ours."""
        descriptor = os.open(self.path / "writer.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_ours = True
            except BlockingIOError:
                is_ours = False
            yield is_ours
        finally:
            os.close(descriptor)


def _share(before: Path, folder: Path, name: str) -> bool:
    """Let a folder have the part of the snapshot before it; return whether that has the part.

    False also if the file system can't link files: then the part is written again.
    """
    if not (before / name).is_dir():
        return False
    try:
        shutil.copytree(before / name, folder / name, copy_function=os.link)
    except shutil.Error:
        shutil.rmtree(folder / name, ignore_errors=True)
        return False
    return True
