"""The main job, seen: photos are indexed, a small picture is cut out of one, and it is found.

    scripts/demo [--once] [FOLDER]

Starts the service as `serve run serve_config.yaml` does and leaves it running until Ctrl-C, or
with --once until the search is done. The photos are those in scikit-image's wheel, or a folder's.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import skimage
from common.paths import ROOT
from index import find_images, index_files
from PIL import Image, ImageOps
from search import draw, search, table

from deployments.compute.weights import yolov5_weights
from deployments.errors import ModelUnavailable

URL = "http://127.0.0.1:8000"
LOG = ROOT / "demo.log"
QUERY, PICTURE = ROOT / "demo-query.jpg", ROOT / "demo.png"
START_S = 180


class DemoFailed(Exception):
    """Something didn't work; the message says what."""


def start_service() -> subprocess.Popen:
    """Start `serve run serve_config.yaml` and return when it answers.

    Raises:
        DemoFailed: it doesn't, or something else already does.
    """
    if is_ready():
        raise DemoFailed(f"Something already answers at {URL}: stop it first.")
    print("Starting the service ...", end="", flush=True)
    start = time.monotonic()
    serve = Path(sys.executable).with_name("serve")
    with LOG.open("wb") as log:
        service = subprocess.Popen(
            [serve, "run", "serve_config.yaml"], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
        )
    while not is_ready():
        time.sleep(0.5)
        print(".", end="", flush=True)
        if service.poll() is not None or time.monotonic() - start > START_S:
            stop_service(service)
            raise DemoFailed(f"\nThe service did not start. Its last words ({LOG}):\n{tail(LOG)}")
    print(f" ready after {time.monotonic() - start:.0f} s at {URL}")
    return service


def is_ready() -> bool:
    try:
        return httpx.get(f"{URL}/healthz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def stop_service(service: subprocess.Popen) -> None:
    """Stop the service as Ctrl-C does."""
    service.terminate()
    try:
        service.wait(60)
    except subprocess.TimeoutExpired:
        service.kill()


def tail(file: Path, lines: int = 15) -> str:
    return "\n".join(file.read_text(errors="replace").splitlines()[-lines:])


def cut_query(files: list[Path]) -> tuple[dict[str, Any], Image.Image]:
    """Cut an object out of an indexed photo, a little beside its box, smaller and recompressed.

    Returns:
        The photo's record, and the query.

    Raises:
        DemoFailed: no object is large enough in any of the photos.
    """
    photos = {file.name: file for file in files}
    records = httpx.get(f"{URL}/images", params={"limit": 1000}, timeout=60).json()["images"]
    candidates = []
    for record in records:
        for chunk in record["chunks"]:
            x1, y1, x2, y2 = chunk["box"]
            share = (x2 - x1) * (y2 - y1) / (record["width"] * record["height"])
            large = share < 0.5 and min(x2 - x1, y2 - y1) >= 64
            if record["filename"] in photos and chunk["source"] == "detection" and large:
                candidates.append((share, record, chunk))
    if not candidates:
        raise DemoFailed("The detector found no object to cut out: give a folder of other photos.")
    _, record, chunk = max(candidates, key=lambda candidate: candidate[0])

    x1, y1, x2, y2 = chunk["box"]
    jitter = random.Random(0)
    shifted = (
        max(0, x1 + jitter.uniform(-0.05, 0.05) * (x2 - x1)),
        max(0, y1 + jitter.uniform(-0.05, 0.05) * (y2 - y1)),
        min(record["width"], x2 + jitter.uniform(-0.05, 0.05) * (x2 - x1)),
        min(record["height"], y2 + jitter.uniform(-0.05, 0.05) * (y2 - y1)),
    )
    with Image.open(photos[record["filename"]]) as photo:
        crop = ImageOps.exif_transpose(photo).convert("RGB").crop(tuple(map(round, shifted)))
    query = crop.resize((max(1, crop.width * 2 // 3), max(1, crop.height * 2 // 3)))
    print(
        f"Cut out: the {chunk['label']} of {record['filename']}, moved by some per cent, scaled "
        f"to {query.width} x {query.height} pixels, JPEG quality 70."
    )
    return record, query


def find(files: list[Path]) -> bool:
    """Index, cut, search and draw; returns whether the right photo came first."""
    print(f"Indexing {len(files)} photos ...")
    summary = asyncio.run(index_files(URL, files))
    for file, reason in summary.failures:
        print(f"  {file.name}: {reason}")
    record, query = cut_query(files)
    encoded = io.BytesIO()
    query.save(encoded, "JPEG", quality=70)
    QUERY.write_bytes(encoded.getvalue())

    start = time.monotonic()
    matches = search(URL, encoded.getvalue(), limit=5)
    milliseconds = 1000 * (time.monotonic() - start)
    print(f"Searched in {milliseconds:.0f} ms:\n{table(matches)}")
    draw(URL, QUERY, matches, PICTURE)
    print(f"Drawn in {PICTURE.name}.")
    encoder = httpx.get(f"{URL}/stats", timeout=60).json()["encoder"]["name"]
    print(f"Encoder: {encoder}{describe(ROOT / encoder)}")
    found = bool(matches) and matches[0]["id"] == record["id"]
    print(
        "The photo it was cut from came first."
        if found
        else f"NOT FOUND: the photo it was cut from, {record['filename']}, did not come first."
    )
    return found


def describe(encoder: Path) -> str:
    """Return what the model card of an encoder in this repository says first."""
    card = encoder / "README.md"
    return ": " + card.read_text().splitlines()[2] if card.is_file() else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="photos of your own")
    parser.add_argument("--once", action="store_true", help="stop the service at the end")
    arguments = parser.parse_args()
    if arguments.folder:
        files = find_images([arguments.folder])
    else:
        wheel = Path(skimage.__file__).parent / "data"
        files = sorted([*wheel.glob("*.png"), *wheel.glob("*.jpg")])
    if not files:
        parser.error(f"no images in {arguments.folder}")

    service = None
    try:
        yolov5_weights("yolov5s")
        service = start_service()
        found = find(files)
        if not arguments.once:
            print(f"\nThe service is running. Open {URL} in a browser,")
            print(f"and drop {QUERY.name} on the page; or, for machines:")
            print(f"  curl -F file=@{QUERY.name} {URL}/search")
            print("Ctrl-C stops it.")
            service.wait()
        return 0 if found else 1
    except (DemoFailed, ModelUnavailable) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopping the service ...")
        return 130
    finally:
        if service is not None:
            stop_service(service)


if __name__ == "__main__":
    sys.exit(main())
