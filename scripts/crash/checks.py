"""Compare what a service shows after a crash test with the journal of its clients."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from common.client import open_client
from common.paths import SCRIPTS

from crash.clients import CLIENTS, RETRY_S, post
from crash.journal import TIMEOUT_S, Journal, is_first, picture
from deployments.store.reader import StoreReader

# How long a killed service may take to answer again, and to acknowledge requests.
RECOVERY_S = 120
COUNTED = ("store", "chunk_index")


@dataclass(frozen=True, slots=True)
class Seen:
    """What the service shows of an id.

    Attributes:
        original: its bytes; None if there are none.
        record: the answer of `/images/{id}/record`; None if there is none.
        thumbnail: whether there is one.
        found: ids and distances, nearest first, of a search by the original, or if there is none
            by the picture that was last sent.
    """

    original: bytes | None
    record: dict[str, Any] | None
    thumbnail: bool
    found: list[tuple[str, float]]


def check_listing(
    journal: Journal, records: list[dict[str, Any]], stats: dict[str, Any]
) -> list[str]:
    """Compare the list of all photos, and the counts, with what may be stored.

    Args:
        records: all that `/images` lists.
        stats: the answer of `/stats`.

    Returns:
        A sentence for each thing that is wrong.
    """
    return check_counts(records, stats) + check_records(journal, records)


def check_records(journal: Journal, records: list[dict[str, Any]]) -> list[str]:
    """Compare the records of all photos with what may be stored; see `check_listing`."""
    listed = {record["id"]: record["sha256"] for record in records}
    wrong = []
    if len(listed) < len(records):
        wrong.append(f"{len(records) - len(listed)} photos are listed twice")
    wrong += [f"{id} is listed, and was never sent" for id in listed if id not in journal.possible]
    for id, possible in journal.possible.items():
        if listed.get(id) not in {
            None if number is None else digest(number) for number in possible
        }:
            wrong.append(f"{id} {_contradiction(possible, id in listed)}")
    return wrong


def check_counts(records: list[dict[str, Any]], stats: dict[str, Any]) -> list[str]:
    """Compare the counts of `/stats` with the list of all photos; see `check_listing`."""
    counts = {"photos": len(records), "chunks": sum(len(record["chunks"]) for record in records)}
    counted = {part: {name: stats[part][name] for name in counts} for part in COUNTED}
    return [
        f"/stats counts {counted[part]} in {part}, and listed are {counts}"
        for part in COUNTED
        if counted[part] != counts
    ]


def check_photo(id: str, possible: set[int | None], listed: bool, seen: Seen) -> list[str]:
    """Compare what the service shows of an id with what may be stored under it.

    Args:
        possible: see `Journal`.
        listed: whether it is in the list of all photos.

    Returns:
        A sentence for each thing that is wrong.
    """
    parts = {
        "original": seen.original is not None,
        "record": seen.record is not None,
        "thumbnail": seen.thumbnail,
        "listing": listed,
        "search": id in dict(seen.found),
    }
    there = [part for part, is_there in parts.items() if is_there]
    if not there:
        return [] if None in possible else [f"{id} {_contradiction(possible, False)}"]
    if len(there) < len(parts):
        return [f"{id} is there by half: only in {', '.join(there)}"]
    assert seen.original is not None
    assert seen.record is not None
    wrong = []
    if sha256(seen.original) not in {digest(number) for number in possible if number is not None}:
        wrong.append(f"{id} {_contradiction(possible, True)}")
    if seen.record["sha256"] != sha256(seen.original) or not seen.record["chunks"]:
        wrong.append(f"{id} has a record that isn't its own: {seen.record}")
    if not is_first(id, seen.found):
        wrong.append(f"{id} is not what its own bytes find first, but {seen.found[:2]}")
    return wrong


def _contradiction(possible: set[int | None], there: bool) -> str:
    if not there:
        return "was acknowledged, and is lost"
    return "was deleted, and is there" if possible == {None} else "has other bytes than were sent"


def sha256(data: bytes) -> str:
    """Return the SHA-256 of bytes, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


@cache
def digest(number: int) -> str:
    """Return the SHA-256 of the picture of a number."""
    return sha256(picture(number))


class Inspector:
    """Asks a service that has recovered, and that has no other clients, for all that it shows."""

    def __init__(self, url: str, journal: Journal) -> None:
        self._journal = journal
        self._client = open_client(url, 2 * TIMEOUT_S)

    def check_listing(self) -> list[str]:
        """See `check_listing`; the counts are asked for several times, as replicas take turns."""
        records = list(self._records())
        wrong = check_listing(self._journal, records, self._stats())
        for _ in range(8):
            wrong += check_counts(records, self._stats())
        return list(dict.fromkeys(wrong))

    def check_all(self) -> list[str]:
        """See `check_listing` and `check_photo`."""
        wrong = self.check_listing()
        listed = {record["id"] for record in self._records()}
        sequence = self._stats()["store"]["sequence"]
        ids = sorted(self._journal.possible)
        threads = ThreadPoolExecutor(CLIENTS)
        try:
            for id, seen in zip(
                ids, threads.map(lambda id: self._look_at(id, sequence), ids), strict=True
            ):
                wrong += check_photo(id, self._journal.possible[id], id in listed, seen)
        finally:
            threads.shutdown(cancel_futures=True)  # Ctrl-C doesn't wait for the others
        return list(dict.fromkeys(wrong))

    def _records(self) -> Iterator[dict[str, Any]]:
        path = "/images?limit=1000"
        while path is not None:
            listing = self._client.get(path).raise_for_status().json()
            yield from listing["images"]
            path = listing["next"]

    def _stats(self) -> dict[str, Any]:
        """Return the counts, once the replica of the index that counts has caught up."""
        deadline = time.monotonic() + RECOVERY_S
        while True:
            stats = self._client.get("/stats").raise_for_status().json()
            behind = stats["chunk_index"]["sequence"] < stats["store"]["sequence"]
            if not behind or time.monotonic() > deadline:
                return stats
            time.sleep(RETRY_S)

    def _look_at(self, id: str, sequence: int) -> Seen:
        original = self._get(f"/images/{id}")
        record = self._get(f"/images/{id}/record")
        thumbnail = self._get(f"/images/{id}/thumbnail") is not None
        if original is None and id not in self._journal.latest:
            return Seen(None, None if record is None else record.json(), thumbnail, [])
        query = picture(self._journal.latest[id]) if original is None else original.content
        # By distance alone: to look at pixels would take most of the time, and is tested elsewhere.
        answer = post(
            self._client, "/search", query, limit=10, min_sequence=sequence, verify="none"
        )
        return Seen(
            None if original is None else original.content,
            None if record is None else record.json(),
            thumbnail,
            [(m["id"], m["distance"]) for m in answer.raise_for_status().json()["matches"]],
        )

    def _get(self, path: str) -> httpx.Response | None:
        response = self._client.get(path)
        return None if response.status_code == 404 else response.raise_for_status()


def verify(store: Path, journal: Journal) -> list[str]:
    """Check the files of a store that no service uses, and compare them with the journal.

    Returns:
        A sentence for each thing that is wrong.
    """
    command = [sys.executable, str(SCRIPTS / "store.py"), "verify", "--path", str(store)]
    outcome = subprocess.run(command, capture_output=True, text=True)
    if outcome.returncode != 0:
        printed = f"{outcome.stdout[-2000:]}{outcome.stderr[-2000:]}".strip()
        return [f"scripts/store.py verify: {printed}"]
    reader = StoreReader(store)
    try:
        ids = list(reader.ids())
        found = reader.records(ids)
        lacking = [id for id in ids if not _has_preview(reader, id)]
    finally:
        reader.close()
    records = [json.loads(record) for record in found if record is not None]
    wrong = check_records(journal, records) + [f"{id} has no preview" for id in lacking]
    return [f"in the files, {what}" for what in wrong]


def _has_preview(reader: StoreReader, id: str) -> bool:
    (preview,) = reader.previews([id])
    return preview is not None and preview.data is not None
