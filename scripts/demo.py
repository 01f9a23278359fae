"""Show the main job: index photos, cut a small picture out of one, and find the photo by it.

    scripts/demo [--once] [FOLDER]

Starts the service as scripts/serve does. It runs until Ctrl-C, or with --once until the search is
done. The photos are those in scikit-image's wheel, or those in a folder.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.answers import count, list_answer
from common.client import URL, RequestFailed, call, fetch_stats, search
from common.drawing import draw_answer
from common.indexing import index_files
from common.paths import ROOT
from common.photos import find_images, free_photos
from common.serve_run import ServeRun, ServiceFailed
from PIL import Image, ImageOps

from deployments.compute.weights import yolov5_weights
from deployments.errors import ModelUnavailable

LOG = ROOT / "demo.log"
QUERY, PICTURE = ROOT / "demo-query.jpg", ROOT / "demo.png"
START_S = 180
STOP_S = 60
DOT_S = 0.5  # of waiting


class DemoFailed(Exception):
    """Something didn't work; the message says what."""


@contextmanager
def running_service() -> Iterator[ServeRun]:
    """Run the service of serve_config.yaml while the block runs; the block begins when it is ready.

    Raises:
        DemoFailed: something else answers at its port already.
        ServiceFailed: it doesn't start.
    """
    service = ServeRun(ROOT / "serve_config.yaml", LOG, URL, new_session=False)
    if service.is_ready():
        raise DemoFailed(f"Something already answers at {URL}: stop it first.")
    print("Starting the service ...", end="", flush=True)
    LOG.unlink(missing_ok=True)
    start = time.monotonic()
    # Where a shell script starts the demo with `&`, the service would ignore what stops it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    service.launch()
    interrupted = False
    try:
        try:
            service.wait_until_ready(
                most_s=START_S,
                every_s=DOT_S,
                while_waiting=lambda: print(".", end="", flush=True),
            )
        except ServiceFailed:
            print()
            raise
        print(f" ready after {time.monotonic() - start:.0f} s at {URL}")
        yield service
    except KeyboardInterrupt:
        print("\nStopping the service ...")
        interrupted = True
        raise
    finally:
        stop(service, interrupted=interrupted)


def stop(service: ServeRun, *, interrupted: bool) -> None:
    """Stop the service as Ctrl-C does, so that it ends what it has begun.

    Args:
        interrupted: Ctrl-C was pressed, which the terminal has sent to the service as well.
    """
    process = service.launched()
    if not interrupted:
        process.send_signal(signal.SIGINT)
    for end in (process.terminate, process.kill):
        try:
            process.wait(STOP_S)
            break
        except subprocess.TimeoutExpired:
            end()


def cut_query(files: list[Path]) -> tuple[dict[str, Any], Image.Image]:
    """Cut the largest object out of an indexed photo, moved a little and scaled down.

    Args:
        files: of the photos.

    Returns:
        The photo's record, and the query.

    Raises:
        DemoFailed: no object is large enough in any of the photos.
    """
    photos = {file.name: file for file in files}
    record, chunk = find_object(set(photos))
    x1, y1, x2, y2 = chunk["box"]
    jitter = random.Random(0)
    moved = (
        max(0, x1 + jitter.uniform(-0.05, 0.05) * (x2 - x1)),
        max(0, y1 + jitter.uniform(-0.05, 0.05) * (y2 - y1)),
        min(record["width"], x2 + jitter.uniform(-0.05, 0.05) * (x2 - x1)),
        min(record["height"], y2 + jitter.uniform(-0.05, 0.05) * (y2 - y1)),
    )
    with Image.open(photos[record["filename"]]) as photo:
        upright = ImageOps.exif_transpose(photo).convert("RGB")
    left, top, right, bottom = map(round, moved)
    crop = upright.crop((left, top, right, bottom))
    query = crop.resize((max(1, crop.width * 2 // 3), max(1, crop.height * 2 // 3)))
    print(
        f"Cut out: the {chunk['label']} of {record['filename']}, moved by a few per cent, scaled "
        f"to {query.width} x {query.height} pixels, JPEG quality 70."
    )
    return record, query


def find_object(filenames: set[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the record and the chunk of the object with the largest share of its photo.

    Objects of more than half of a photo, or of less than 64 pixels a side, are left out.

    Args:
        filenames: of the photos to look at.

    Raises:
        DemoFailed: there is none.
        RequestFailed
    """
    records = call(URL, "GET", "/images", params={"limit": 1000}).json()["images"]
    candidates = []
    for record in records:
        if record["filename"] not in filenames:
            continue
        for chunk in record["chunks"]:
            x1, y1, x2, y2 = chunk["box"]
            share = (x2 - x1) * (y2 - y1) / (record["width"] * record["height"])
            is_fit = share < 0.5 and min(x2 - x1, y2 - y1) >= 64
            if chunk["source"] == "detection" and is_fit:
                candidates.append((share, record, chunk))
    if not candidates:
        raise DemoFailed("The detector found no object to cut out: give a folder of other photos.")
    _, record, chunk = max(candidates, key=lambda candidate: candidate[0])
    return record, chunk


def find(files: list[Path]) -> bool:
    """Index, cut, search and draw; return whether the right photo came first.

    Raises:
        DemoFailed, RequestFailed
    """
    print(f"Indexing {len(files)} photos ...")
    summary = asyncio.run(index_files(URL, files))
    for file, reason in summary.failures:
        print(f"  {file.name}: {reason}")
    record, query = cut_query(files)
    encoded = io.BytesIO()
    query.save(encoded, "JPEG", quality=70)
    QUERY.write_bytes(encoded.getvalue())

    start = time.monotonic()
    answer = search(URL, encoded.getvalue(), limit=5)
    milliseconds = 1000 * (time.monotonic() - start)
    stats = fetch_stats(URL)
    among = count(stats["store"]["photos"], "photo")
    print(f"Searched in {milliseconds:.0f} ms.")
    print(list_answer(answer, among, query.size))
    draw_answer(URL, QUERY, answer, PICTURE)
    print(f"Drawn in {PICTURE.name}.")
    encoder = stats["encoder"]["name"]
    print(f"Encoder: {encoder}{describe_encoder(ROOT / encoder)}")
    first = next(iter(answer["matches"]), None)
    if first is None or first["id"] != record["id"]:
        print(f"NOT FOUND: the photo it was cut from, {record['filename']}, did not come first.")
        return False
    # Photos of one's own may be too plain to verify.
    print(
        f"The photo it was cut from came first{', and was verified' if first['verified'] else ''}."
    )
    return True


def describe_encoder(folder: Path) -> str:
    """Return the first sentence in the model card of an encoder of this repository."""
    card = folder / "README.md"
    return ": " + card.read_text().splitlines()[2] if card.is_file() else ""


def find_photos(folder: Path | None) -> list[Path]:
    """Return the photos in a folder, or those in scikit-image's wheel."""
    if folder is not None:
        return find_images([folder])
    free = free_photos()
    return sorted([*free.glob("*.png"), *free.glob("*.jpg")])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="photos of your own")
    parser.add_argument("--once", action="store_true", help="stop the service at the end")
    arguments = parser.parse_args()
    files = find_photos(arguments.folder)
    if not files:
        parser.error(f"no images in {arguments.folder}")
    try:
        yolov5_weights("yolov5s")
        with running_service() as service:
            found = find(files)
            if not arguments.once:
                print(f"\nThe service is running. Open {URL} in a browser,")
                print(f"and drop {QUERY.name} on the page; or, for machines:")
                print(f"  curl -F file=@{QUERY.name} {URL}/search")
                print("Ctrl-C stops it.")
                service.launched().wait()
        return 0 if found else 1
    except (DemoFailed, ModelUnavailable, RequestFailed, ServiceFailed) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
