"""Index folders of photos: several requests in flight, a progress bar, resumable.

    scripts/index.py FOLDER... [--metadata '{"year": 2024}']

A photo whose bytes are stored already is not sent again, and keeps the metadata it has; so an
interrupted run goes on where it was when the same command is given again. Exit status 1 if any
photo failed.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from PIL import Image
from tqdm import tqdm

from deployments.errors import BadParameter
from deployments.metadata import parse_metadata
from deployments.records import Metadata

IN_FLIGHT = 8
ATTEMPTS = 5
# Longer than the service's own limit, so that it is the service which says what was wrong.
TIMEOUT = httpx.Timeout(130, connect=10)


@dataclass
class Summary:
    """What became of the photos: a count of each status, and why files failed."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[Path, str]] = field(default_factory=list)


class Failed(Exception):
    """One photo could not be indexed; the message says why."""


def find_images(folders: list[Path]) -> list[Path]:
    """Return the files below folders that look like images by their suffix, in order."""
    suffixes = set(Image.registered_extensions())
    files = []
    for folder in folders:
        if folder.is_file():
            files.append(folder)
            continue
        found = (path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
        files += sorted(path for path in found if path.is_file())
    return files


async def index_files(
    url: str, files: list[Path], in_flight: int = IN_FLIGHT, metadata: Metadata | None = None
) -> Summary:
    """Index files through the service at `url`, with a progress bar.

    Args:
        metadata: of all of them.

    Returns:
        The summary, also of what was done before an interruption (`asyncio.CancelledError`).
    """
    summary = Summary()
    queue = iter(files)
    limits = httpx.Limits(max_connections=in_flight)
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT, limits=limits) as client:
        with tqdm(total=len(files), unit="photo", smoothing=0.1) as bar:

            async def work() -> None:
                for file in queue:
                    try:
                        summary.counts[await index_file(client, file, metadata)] += 1
                    except (Failed, OSError) as error:
                        summary.counts["failed"] += 1
                        summary.failures.append((file, str(error)))
                    bar.set_postfix(summary.counts)
                    bar.update()

            async with asyncio.TaskGroup() as group:
                for _ in range(in_flight):
                    group.create_task(work())
    return summary


async def index_file(
    client: httpx.AsyncClient, file: Path, metadata: Metadata | None = None
) -> str:
    """Index one file unless it is stored already; returns `created` or `exists`.

    Raises:
        Failed: the service refused it, or can't be reached.
        OSError: it can't be read.
    """
    data = await asyncio.to_thread(file.read_bytes)
    digest = hashlib.sha256(data).hexdigest()
    known = await send(client, "GET", f"/images/{digest}/record")
    if known.status_code == 200:
        return "exists"
    answer = await send(
        client,
        "POST",
        "/index",
        params={"filename": file.name, "metadata": json.dumps(metadata or {})},
        content=data,
        headers={"Content-Type": "image/*"},
    )
    if answer.status_code != 201:
        raise Failed(explain(answer))
    return answer.json()["images"][0]["status"]


async def send(
    client: httpx.AsyncClient, method: str, path: str, **request: object
) -> httpx.Response:
    """Send a request, again after a while when the service is overloaded or restarting.

    Raises:
        Failed: it stays unreachable.
    """
    for attempt in range(ATTEMPTS):
        try:
            response = await client.request(method, path, **request)
        except httpx.TransportError as error:
            wait_s, problem = 2**attempt, f"{type(error).__name__} {error}".strip()
        else:
            if response.status_code != 503:
                return response
            wait_s, problem = float(response.headers.get("Retry-After", 2)), explain(response)
        if attempt < ATTEMPTS - 1:
            await asyncio.sleep(wait_s)
    raise Failed(f"given up after {ATTEMPTS} attempts: {problem}")


def explain(response: httpx.Response) -> str:
    """Return what a problem answer says."""
    try:
        return f"{response.status_code}: {response.json()['detail']}"
    except (ValueError, KeyError):
        return f"{response.status_code}: {response.text[:200]}"


def read_metadata(text: str) -> Metadata:
    """Return what `--metadata` says; a mistake in it ends the run before the first photo."""
    try:
        return parse_metadata(text)
    except BadParameter as error:
        raise argparse.ArgumentTypeError(error.detail) from None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="or single files")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the service (%(default)s)")
    parser.add_argument(
        "--in-flight", type=int, default=IN_FLIGHT, help="requests at a time (%(default)s)"
    )
    parser.add_argument(
        "--metadata",
        type=read_metadata,
        metavar="JSON",
        help="of all photos of this run: what searches can filter by, as '{\"year\": 2024}'",
    )
    arguments = parser.parse_args()

    missing = [str(folder) for folder in arguments.folders if not folder.exists()]
    if missing:
        parser.error(f"no such folder: {', '.join(missing)}")
    files = find_images(arguments.folders)
    if not files:
        parser.error("no images in there (files are told by their suffix)")
    try:
        httpx.get(f"{arguments.url}/healthz", timeout=30).raise_for_status()
    except httpx.HTTPError as error:
        print(f"No service answers at {arguments.url}: {error}", file=sys.stderr)
        print("Start it with: serve run serve_config.yaml", file=sys.stderr)
        return 1

    try:
        summary = asyncio.run(
            index_files(arguments.url, files, arguments.in_flight, arguments.metadata)
        )
    except KeyboardInterrupt:
        print("\nInterrupted. What was counted is stored; the same command goes on from there.")
        return 130
    counts = summary.counts
    print(
        f"{len(files)} photos: {counts['created']} indexed, {counts['exists']} were already "
        f"stored, {counts['failed']} failed."
    )
    for file, reason in summary.failures:
        print(f"  {file}: {reason}", file=sys.stderr)
    return 1 if summary.failures else 0


if __name__ == "__main__":
    sys.exit(main())
