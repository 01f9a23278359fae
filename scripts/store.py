"""Look after a store: count, check, back up, restore, compact, export and reindex it.

    scripts/store.py stats|verify|backup FILE|restore FILE|compact|export FOLDER|reindex

`reindex` encodes all photos again if the store has vectors of another encoder; else it only asks
photos about themselves (date, camera, place) that were not asked.

All but `restore` and `compact` may run beside the service, on the machine of its store. The exit
status is 1 if something is wrong. It is 2 if `verify` couldn't compare the running index, and if
`reindex` couldn't finish because the service is running.
"""

from __future__ import annotations

import argparse
import json
import mimetypes
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

import lmdb
from common.client import RequestFailed, fetch_stats
from common.config import DEFAULT_CONFIG
from common.ending import end_on_signals, exit_status
from common.paths import ROOT
from tqdm import tqdm
from upkeep.outcomes import NOT_COMPARED, WRONG, Refused
from upkeep.reindexing import reindex

from deployments.errors import (
    CorruptRecord,
    StartupError,
    Unavailable,
    UnknownId,
)
from deployments.files import replacing
from deployments.store.access import DATA
from deployments.store.check import Damage, StoreCheck
from deployments.store.copies import backup, compact, restore
from deployments.store.format import FORMAT
from deployments.store.reader import StoreReader

ATTEMPTS = 20
WAIT_S = 0.5

T = TypeVar("T")


class NotComparable(Exception):
    """The running index can't be compared with the store; the message says why."""


def stats(arguments: argparse.Namespace) -> int:
    """Print counts, sizes and the encoder."""
    with closing(StoreReader(arguments.path)) as store:
        state, details = store.stats(), store.details()
        encoder = store.encoder
        lines = {
            "photos": f"{state.photos:,}",
            "chunks": f"{state.chunks:,}",
            "originals": megabytes(state.original_bytes),
            "file": megabytes(details.file_bytes),
            "thumbnails": f"{megabytes(details.thumbnail_bytes)}, of {details.thumbnails:,} photos",
            "previews": f"{megabytes(details.preview_bytes)}, of {details.previews:,} photos",
            "used": megabytes(state.used_bytes),
            "free": f"{megabytes(details.free_bytes)} (`compact` gives them back to the disk)",
            "encoder": f"{encoder.name}, dimension {encoder.dimension}, weights {encoder.digest}",
            "format": FORMAT,
            "history": store.history,
            "sequence": state.sequence,
            "log": f"{details.log_entries:,} entries, cut at {details.cut}",
            "oldest": details.oldest or "-",
            "newest": details.newest or "-",
        }
    for name, value in lines.items():
        print(f"{name:<10} {value}")
    return 0


def verify(arguments: argparse.Namespace) -> int:
    """Check a store, and compare the index of a running service with it if there is a URL."""
    with closing(StoreReader(arguments.path)) as store:
        uncompared = None
        try:
            with reading_with_index(store, arguments.url) as (check, digest):
                return report(check, digest)
        except NotComparable as error:
            uncompared = str(error)
        with store.reading() as txn:
            status = report(StoreCheck(store, txn), None)
    print(f"The index was not compared: {uncompared}", file=sys.stderr)
    return status or NOT_COMPARED


@contextmanager
def reading_with_index(
    store: StoreReader, url: str | None
) -> Iterator[tuple[StoreCheck, str | None]]:
    """Read a store at one change, and the digest of the running index at the same change.

    Args:
        url: of the service; None for none, and then the digest is None.

    Raises:
        NotComparable: no service answers, or it never was at the same change as the store.
    """
    if url is None:
        with store.reading() as txn:
            yield StoreCheck(store, txn), None
        return
    reached = 0, 0
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(WAIT_S)
        sequence, digest = read_index_state(url)
        with store.reading() as txn:
            check = StoreCheck(store, txn)
            if sequence == check.sequence:
                yield check, digest
                return
        reached = sequence, check.sequence
    raise NotComparable(
        f"it is at change {reached[0]}, the store at {reached[1]}. Try again when less is being "
        "indexed, and make sure that --path is the store of that service."
    )


def read_index_state(url: str) -> tuple[int, str]:
    """Return the last change that the running index has, and the digest of what it holds.

    Raises:
        NotComparable: no service answers, or it refuses to.
    """
    try:
        answer = fetch_stats(url)["chunk_index"]
        return int(answer["sequence"]), str(answer["digest"])
    except RequestFailed as error:
        raise NotComparable(str(error)) from None
    except (ValueError, KeyError, TypeError) as error:
        raise NotComparable(f"no Inset service answers at {url} ({error!r}).") from None


def report(check: StoreCheck, digest: str | None) -> int:
    """Check a store, print a line for each thing that is wrong, and then a sentence.

    Args:
        digest: of the running index; None if it isn't compared.

    Returns:
        The exit status.
    """
    damaged: set[str] = set()
    count = 0
    for damage in find_damage(check):
        with tqdm.external_write_mode(sys.stdout):
            print(damage.id or "-", damage.part, damage.what, sep="\t")
        damaged.add(damage.id)
        count += 1
    compared = ""
    if digest is not None and int(digest, 16) != check.digest:
        print("-\tindex\tholds other photos or vectors than the store: restart it")
        count += 1
    elif digest is not None:
        compared = " The index holds the same."
    if count:
        photos = len(damaged - {""})
        print(
            f"{count} problems, {photos} of {check.photos:,} photos are affected. Delete the "
            "damaged photos and index them again, or restore a backup; and check the disk."
        )
        return WRONG
    print(
        f"All is well: {check.photos:,} photos and {check.log_entries:,} log entries, up to change "
        f"{check.sequence}.{compared}"
    )
    return 0


def find_damage(check: StoreCheck) -> Iterator[Damage]:
    """Yield all that is wrong with a store, with progress bars."""
    for found in bar(check.photo_damage(), check.photos, "photo"):
        yield from found
    for found in bar(check.log_damage(), check.log_entries, "entry"):
        yield from found
    yield from check.other_damage()


def back_up(arguments: argparse.Namespace) -> int:
    """Copy a store into a file.

    Raises:
        Refused: the file exists already.
    """
    file: Path = arguments.file
    if file.exists() and not arguments.force:
        raise Refused(f"{file} exists already: choose another name, or give --force.")
    with closing(StoreReader(arguments.path)) as store:
        state = store.stats()
        with byte_bar(state.used_bytes) as progress:
            backup(store, file, progress.update)
    print(f"Backed up {state.photos:,} photos into {file}, {megabytes(file.stat().st_size)}.")
    return 0


def restore_backup(arguments: argparse.Namespace) -> int:
    """Make a store from a backup.

    Raises:
        Refused: there is no such file.
    """
    file: Path = arguments.file
    if not file.is_file():
        raise Refused(f"There is no file {file}: give one that `scripts/store.py backup` made.")
    with byte_bar(file.stat().st_size) as progress:
        restore(file, arguments.path, progress.update)
    with closing(StoreReader(arguments.path)) as store:
        photos = store.stats().photos
    print(
        f"Restored {photos:,} photos into {arguments.path}. Start the service with it, and check "
        "it with: scripts/store.py verify"
    )
    return 0


def compact_store(arguments: argparse.Namespace) -> int:
    """Give free space back to the disk."""
    size = (arguments.path / DATA).stat().st_size if (arguments.path / DATA).is_file() else 0
    with byte_bar(size) as progress:
        before, after = compact(arguments.path, progress.update)
    print(f"Compacted from {megabytes(before)} to {megabytes(after)}.")
    return 0


def export(arguments: argparse.Namespace) -> int:
    """Write all originals, and a line for each record."""
    folder: Path = arguments.folder
    damaged = written = 0
    with closing(StoreReader(arguments.path)) as store:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "records.jsonl") as lines:
            for id in bar(store.ids(), store.stats().photos, "photo"):
                try:
                    record = store.record(id)
                    file = folder / (id + suffix(record.media_type))
                    if not (file.is_file() and file.stat().st_size == record.bytes):
                        record, data = store.original(id)
                        with replacing(file) as target:
                            target.write(data)
                        written += 1
                except UnknownId:
                    continue  # it was deleted in the meantime
                except CorruptRecord as error:
                    damaged += 1
                    print(error.detail, file=sys.stderr)
                    continue
                line = json.dumps({"file": file.name} | record.model_dump()) + "\n"
                lines.write(line.encode())
    print(f"Wrote {written:,} originals and records.jsonl into {folder}; {damaged} were damaged.")
    return WRONG if damaged else 0


def suffix(media_type: str) -> str:
    """Return the usual suffix of such files, with its dot."""
    known = mimetypes.guess_extension(media_type) or ""
    return known or "." + media_type.partition("/")[2].removeprefix("x-")


def bar(items: Iterable[T], total: int, unit: str) -> Iterable[T]:
    """Yield items with a progress bar."""
    return tqdm(items, total=total, unit=unit, unit_scale=True)


def byte_bar(total: int) -> tqdm:
    """Return a progress bar for so many bytes."""
    return tqdm(total=total, unit="B", unit_scale=True)


def megabytes(size: int) -> str:
    """Return a number of bytes in megabytes, as text."""
    return f"{size / 1e6:,.1f} MB"


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: object, description: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=description, description=description)
        added.add_argument(
            "--path",
            type=lambda path: ROOT / Path(path).expanduser(),
            default=ROOT / "data",
            metavar="FOLDER",
            help="the store; relative to this repository, like store.path (data)",
        )
        added.set_defaults(run=run)
        return added

    command("stats", stats, "count photos, chunks, bytes and log entries")
    verifying = command(
        "verify", verify, "check every photo, and that all parts of the store agree"
    )
    verifying.add_argument("--url", help="compare the index of the service here as well")
    saving = command("backup", back_up, "copy the store into a file, also while it is in use")
    saving.add_argument("file", type=Path, metavar="FILE")
    saving.add_argument("--force", action="store_true", help="write over a file that exists")
    loading = command("restore", restore_backup, "make a store from a backup")
    loading.add_argument("file", type=Path, metavar="FILE")
    command(
        "compact", compact_store, "give free space back to the disk; the service must be stopped"
    )
    reindexing = command(
        "reindex",
        reindex,
        "encode all photos again with the configured encoder; resumable, and the service may run",
    )
    reindexing.add_argument(
        "--config", type=Path, default=DEFAULT_CONFIG, help="of the service (serve_config.yaml)"
    )
    reindexing.add_argument(
        "--remove-old", action="store_true", help="remove the old store when the new one is there"
    )
    exporting = command("export", export, "write all originals, and records.jsonl; resumable")
    exporting.add_argument("folder", type=Path, metavar="FOLDER")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    arguments = parse(words)
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt as interrupt:
        print(
            "\nInterrupted. Nothing is left half done; the same command starts again, or continues."
        )
        return exit_status(interrupt)
    except (Refused, StartupError, Unavailable) as error:
        print(error, file=sys.stderr)
    except OSError as error:
        print(
            f"A file can't be read or written ({error}): check free space and permissions.",
            file=sys.stderr,
        )
    except lmdb.Error as error:
        print(
            f"The store in {arguments.path} can't be read ({error}): check the disk, or restore a "
            "backup.",
            file=sys.stderr,
        )
    return WRONG


if __name__ == "__main__":
    end_on_signals()
    sys.exit(main())
