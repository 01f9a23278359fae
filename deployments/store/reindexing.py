"""Build a store again from the originals of another one, for another encoder.

The new store is built in a folder within that of the old one, which may be in use meanwhile. It
follows the old store's log, so what is put and deleted meanwhile gets in as well. At the end its
file takes the place of the old one in one step, so there is a complete store at any time.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import lmdb

from deployments.errors import CorruptRecord, InsetError, StoreFull, StoreUnusable
from deployments.files import replacing, sync
from deployments.outcomes import Outcome
from deployments.records import EncodedPhoto, EncoderIdentity, Record
from deployments.store.access import (
    DATA,
    MAX_READERS,
    hold_files,
    opening,
    require_store,
    take_ownership,
)
from deployments.store.format import (
    corrupt,
    decode_or_log,
    decode_record,
    key_of,
    read_encoder,
    read_format,
    read_meta,
    sequence_key,
    sequence_of,
)
from deployments.store.operations import Delete, Operation, Put
from deployments.store.store import Store

FOLDER = "reindexing"  # of the new store, within that of the old one
STATE = "state.json"  # how far it is, within its folder
MOST_DATABASES = 16  # of a store of any format
PORTION = 1000  # ids that are compared at a time

# Segments and encodes originals. One result for each, in order: the photo, or its error.
Encode = Callable[[Sequence[bytes]], Sequence[Outcome[EncodedPhoto]]]


class NeededDatabases(NamedTuple):
    """Those of the named databases that reindexing reads. Every format has them."""

    meta: lmdb._Database
    originals: lmdb._Database
    records: lmdb._Database
    log: lmdb._Database


@dataclass
class State:
    """How far a reindexing is.

    Attributes:
        made_by: what determines chunks and vectors. With anything else it must begin again.
        history: of the old store.
        sequence: the old store's changes up to this one are in the new store.
        left_out: photos that can't be indexed, by id: their filename, and why.
    """

    made_by: dict[str, Any]
    history: str
    sequence: int = 0
    left_out: dict[str, tuple[str | None, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Replaced:
    """What came of a reindexing.

    Attributes:
        photos: number of photos in the new store.
        kept: the file of the old store; None if it was removed.
    """

    photos: int
    kept: Path | None


class StoreInUse(StoreUnusable):
    """The old store can't be replaced yet."""


class Originals:
    """The originals, records and log of a store, of any format, which may be in use. One thread."""

    def __init__(self, path: Path) -> None:
        require_store(path)
        self._env: lmdb.Environment | None = None
        self._lock: int | None = hold_files(path, alone=False)
        try:
            with opening(path):
                self._open(path)
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path) -> None:
        self._env = env = lmdb.open(
            str(path), readonly=True, create=False, max_dbs=MOST_DATABASES, max_readers=MAX_READERS
        )
        if read_format(env, path) is None:
            raise StoreUnusable(f"{path} is empty: it holds no store.")
        names = [name.encode() for name in NeededDatabases._fields]
        self.dbs = NeededDatabases(*(env.open_db(name, create=False) for name in names))
        with self.reading() as txn:
            self.encoder = read_encoder(txn, self.dbs.meta)
            # A store of format 1 has no history; it gets one when it is upgraded.
            self.history: str = read_meta(txn, self.dbs.meta, "history", "")

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @contextmanager
    def reading(self) -> Iterator[lmdb.Transaction[bytes]]:
        """Open a snapshot, which is not to be held for long: writers can't use its space again."""
        assert self._env is not None  # `_open` comes first
        while True:
            try:
                transaction = self._env.begin()
            except lmdb.MapResizedError:
                self._env.set_mapsize(0)  # the owner has enlarged the map
            else:
                break
        with transaction as txn:
            yield txn

    def count(self) -> int:
        with self.reading() as txn:
            return int(txn.stat(self.dbs.records)["entries"])

    def entries(self, after: int, most: int) -> list[tuple[int, str]]:
        """Return the log's next entries after a change: sequence number and id of each."""
        found: list[tuple[int, str]] = []
        with self.reading() as txn:
            cursor = txn.cursor(db=self.dbs.log)
            more = cursor.set_range(sequence_key(after + 1))
            while more and len(found) < most:
                found.append((sequence_of(cursor.key()), cursor.value()[1:].decode()))
                more = cursor.next()
        return found

    def get(self, id: str) -> tuple[Record, bytes] | None:
        """Return a photo's record and original; None if there is no such photo.

        Raises:
            CorruptRecord
        """
        key = key_of(id)
        with self.reading() as txn:
            value = txn.get(key, db=self.dbs.records)
            data = txn.get(key, db=self.dbs.originals)
        if value is None:
            return None
        record = decode_record(id, value)
        if data is None or hashlib.sha256(data).hexdigest() != record.sha256:
            raise corrupt(id, "original")
        return record, data

    def records(self, ids: Sequence[str]) -> list[Record]:
        """Return the records of those of these photos that are there and undamaged."""
        with self.reading() as txn:
            values = [txn.get(id.encode(), db=self.dbs.records) for id in ids]
        found = (decode_or_log(id, value) for id, value in zip(ids, values, strict=True))
        return [record for record in found if record is not None]

    def missing_among(self, ids: Sequence[str]) -> list[str]:
        """Return those ids that no photo has."""
        with self.reading() as txn:
            cursor = txn.cursor(db=self.dbs.records)
            return [id for id in ids if not cursor.set_key(id.encode())]

    def ids_after(self, after: str, most: int) -> list[str]:
        """Return the next ids in order (ASCII)."""
        found: list[str] = []
        with self.reading() as txn:
            cursor = txn.cursor(db=self.dbs.records)
            more = cursor.set_range(after.encode() + b"\0") if after else cursor.first()
            while more and len(found) < most:
                found.append(cursor.key().decode())
                more = cursor.next()
        return found


class Reindexing:
    """A new store that is built from the originals of an old one.

    Ids, filenames, the clients' metadata and the times of indexing stay as they are; what a photo
    says of itself is asked again. The log begins again, in the order of the old one, with a history
    of its own.

    Args:
        path: folder of the old store.
        encoder: of the new store.
        encode: makes photos of originals; with this encoder.
        made_by: what else determines chunks and vectors, as JSON. A new store that was begun with
            something else is thrown away.
        batch: how many originals are given to `encode` at once.

    Raises:
        StoreUnusable: there is no store, it is unreadable, or it is being reindexed already.
    """

    def __init__(
        self,
        path: Path,
        encoder: EncoderIdentity,
        encode: Encode,
        *,
        made_by: dict[str, Any],
        batch: int = 8,
    ) -> None:
        self.path = path
        self.folder = path / FOLDER
        self._encode = encode
        self._batch = batch
        self._old = Originals(path)
        try:
            self._state = self._load_state({"encoder": encoder.digest} | made_by)
            self._new = Store(self.folder, encoder, lock_timeout_s=0)
            self._save_state()
        except BaseException:
            self._old.close()
            raise
        # What could not be indexed is tried again: limits may have been raised, or a disk mended.
        self._again = list(self._state.left_out)

    def close(self) -> None:
        self._old.close()
        self._new.close()

    @property
    def photos(self) -> int:
        """Number of photos in the old store."""
        return self._old.count()

    @property
    def done(self) -> int:
        """Number of photos in the new store, and of those that are left out."""
        return self._new.stats().photos + len(self._state.left_out)

    @property
    def left_out(self) -> dict[str, tuple[str | None, str]]:
        """Photos that can't be indexed, by id: their filename, and why."""
        return dict(self._state.left_out)

    def catch_up(self) -> Iterator[None]:
        """Bring the new store to where the old one is; yield after each batch that is on disk.

        Raises:
            StoreFull: the disk is full; what was done before stays.
        """
        again, self._again = self._again, []
        for start in range(0, len(again), self._batch):
            self._take_over(again[start : start + self._batch])
            self._save_state()
            yield
        while entries := self._old.entries(self._state.sequence, self._batch):
            # Of several entries of an id, what is stored now is what counts.
            self._take_over(dict.fromkeys(id for _, id in entries))
            self._state.sequence = entries[-1][0]
            self._save_state()
            yield
        yield from self._reconcile()

    def swap(self, *, keep: bool) -> Replaced:
        """Put the new store in the place of the old one, and close both.

        Args:
            keep: keep the file of the old one. It is kept in any case if photos were left out.

        Raises:
            StoreInUse: another process has the old store open. Nothing was replaced.
            StoreUnusable: the new store lacks photos. Nothing was replaced.
            StoreFull
        """
        try:
            owner = take_ownership(self.path, timeout_s=0)
        except StoreUnusable as error:
            raise StoreInUse(str(error)) from error
        try:
            for _ in self.catch_up():  # what has changed until its owner ended
                pass
            self._require_all()
            photos = self._new.stats().photos
            self._old.close()
            try:
                alone = hold_files(self.path, alone=True)
            except StoreUnusable as error:
                raise StoreInUse(str(error)) from error
            try:
                self._new.close()
                kept = self._keep_old() if keep or self._state.left_out else None
                os.replace(self.folder / DATA, self.path / DATA)
                sync([self.path])
            finally:
                os.close(alone)
            shutil.rmtree(self.folder)
        finally:
            os.close(owner)
        return Replaced(photos, kept)

    def _take_over(self, ids: Iterable[str]) -> None:
        """Make the new store have of these photos what the old one has now."""
        operations: list[Operation] = []
        originals: list[tuple[Record, bytes]] = []
        for id in ids:
            self._state.left_out.pop(id, None)
            known = self._known(id)
            try:
                found = self._old.get(id)
            except CorruptRecord as error:
                self._state.left_out[id] = None, error.detail
                found = None
            if found is not None and known is not None and _says_the_same(known, found[0]):
                continue
            if known is not None:
                operations.append(Delete(id))
            if found is not None:
                originals.append(found)
        results = self._encode([data for _, data in originals]) if originals else ()
        for (record, data), photo in zip(originals, results, strict=True):
            if isinstance(photo, InsetError):
                self._state.left_out[record.id] = record.filename, photo.detail
                continue
            if isinstance(photo, Exception):  # a mistake of ours says nothing about the photo
                raise photo
            operations.append(
                Put(
                    record.id,
                    data,
                    record.filename,
                    photo,
                    record.said_by_client,
                    record.indexed_at,
                )
            )
        for operation, result in zip(operations, self._new.apply(operations), strict=True):
            if isinstance(result, StoreFull):
                raise result
            if isinstance(result, InsetError):
                filename = operation.filename if isinstance(operation, Put) else None
                self._state.left_out[operation.id] = filename, result.detail

    def _known(self, id: str) -> Record | None:
        (json,) = self._new.records([id])
        return None if json is None else Record.model_validate_json(json)

    def _reconcile(self) -> Iterator[None]:
        """Compare the ids of both stores.

        The log says all of this, unless deletions were cut from it in the meantime, or it is
        damaged.
        """
        for ids in _portions(self._new.ids()):
            if gone := self._old.missing_among(ids):
                self._take_over(gone)
        for id in self._old.missing_among(list(self._state.left_out)):
            del self._state.left_out[id]
        self._save_state()
        after = ""
        while ids := self._old.ids_after(after, PORTION):
            after = ids[-1]
            there = self._new.records(ids)
            absent = [
                id
                for id, json in zip(ids, there, strict=True)
                if json is None and id not in self._state.left_out
            ]
            for start in range(0, len(absent), self._batch):
                self._take_over(absent[start : start + self._batch])
                self._save_state()
                yield

    def _require_all(self) -> None:
        if self.done != self.photos:
            raise StoreUnusable(
                f"The new store in {self.folder} has {self.done} photos, but the old one has "
                f"{self.photos}: nothing was replaced. Delete that folder, and reindex again."
            )

    def _keep_old(self) -> Path:
        """Give the file of the old store a second name, which no file has yet."""
        name = f"before-reindexing-{self._old.encoder.digest[:12]}"
        endings = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
        files = (self.path / f"{name}{ending}.mdb" for ending in endings)
        kept = next(file for file in files if not file.exists())
        os.link(self.path / DATA, kept)
        return kept

    def _load_state(self, made_by: dict[str, Any]) -> State:
        """Return the state; throw away a new store that something else has made."""
        state = State(json.loads(json.dumps(made_by)), self._old.history)
        found = self._read_state()
        if found is not None and found.made_by == state.made_by:
            # In another history the numbers mean other changes, so all are gone through again.
            return found if found.history == state.history else state
        if self.folder.exists():
            owner = take_ownership(self.folder, timeout_s=0)
            shutil.rmtree(self.folder)
            os.close(owner)
        self.folder.mkdir()
        return state

    def _read_state(self) -> State | None:
        try:
            state = State(**json.loads((self.folder / STATE).read_text()))
            state.left_out = {id: (name, why) for id, (name, why) in state.left_out.items()}
        except (OSError, ValueError, TypeError, AttributeError):  # damaged, or of another version
            return None
        return state

    def _save_state(self) -> None:
        with replacing(self.folder / STATE) as file:
            file.write(json.dumps(asdict(self._state)).encode())


def needs_reindexing(path: Path, encoder: EncoderIdentity) -> bool:
    """Return whether a store holds vectors of another encoder.

    If not, remove what a reindexing leaves behind that was killed after its last step.

    Raises:
        StoreUnusable
    """
    with closing(Originals(path)) as old:
        if old.encoder.digest != encoder.digest:
            return True
    folder = path / FOLDER
    if folder.is_dir() and not (folder / DATA).exists():
        shutil.rmtree(folder)
    return False


def _says_the_same(one: Record, other: Record) -> bool:
    """Return whether two records are of the same put of a photo."""
    names = ("sha256", "filename", "said_by_client", "indexed_at")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def _portions(ids: Iterator[str], size: int = PORTION) -> Iterator[list[str]]:
    portion: list[str] = []
    for id in ids:
        portion.append(id)
        if len(portion) == size:
            yield portion
            portion = []
    if portion:
        yield portion
