"""What verification costs a search: the same queries with it and without, one after the other.

Both are measured in the same minute, so that the ratio holds on a machine whose pace changes. The
photos are measured as they are, and enlarged to what cameras make of them, with the same queries.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common.own_service import OwnService
from PIL import Image, ImageOps
from tqdm import tqdm

from benchmarks.closed_loop import Answer, Client, complete, percentiles
from benchmarks.photos import cut_queries
from benchmarks.service import index_loop

WARM_UP = 8  # queries
LEAST = 20  # queries of a kind

COLUMNS = {
    "photos": ("photos", "{}"),
    "queries": ("queries cut out of", "{}"),
    "searches": ("searches", "{}"),
    "errors": ("errors", "{}"),
    "found": ("found", "{:.0%}"),
    "none_p50": ("p50 with verify=none, ms", "{:.1f}"),
    "auto_p50": ("verify=auto", "{:.1f}"),
    "p50_ratio": ("ratio", "{:.2f}"),
    "none_p95": ("p95 with verify=none, ms", "{:.1f}"),
    "auto_p95": ("verify=auto", "{:.1f}"),
    "p95_ratio": ("ratio", "{:.2f}"),
}


def in_sizes(
    files: Sequence[Path], megapixels: Sequence[int], folder: Path
) -> Iterator[tuple[str, list[Path]]]:
    """Yield photos as they are, then enlarged to each size; each with a name for it.

    Args:
        folder: gets the enlarged photos.
    """
    yield "as they are", list(files)
    for size in megapixels:
        name = f"{size} megapixels"
        enlarged = [folder / f"{size}-{number}.jpg" for number in range(len(files))]
        for file, target in zip(tqdm(files, unit="photo"), enlarged, strict=True):
            enlarge(file, size, target)
        yield name, enlarged


def enlarge(file: Path, megapixels: int, target: Path) -> None:
    """Write a photo with so many pixels as a JPEG."""
    with Image.open(file) as image:
        photo = ImageOps.exif_transpose(image).convert("RGB")
    factor = math.sqrt(megapixels * 1e6 / (photo.width * photo.height))
    size = round(factor * photo.width), round(factor * photo.height)
    photo.resize(size, Image.Resampling.BICUBIC).save(target, quality=85)


def verify(
    service: OwnService,
    name: str,
    photos: Sequence[Path],
    queries: dict[str, list[bytes]],
    in_flight: int,
    seconds: float,
) -> list[dict[str, Any]]:
    """Index photos, and search by queries of each kind with verification and without.

    Args:
        service: without photos.
        name: of the photos.
        queries: by their kind.
        in_flight: requests to index at a time.
        seconds: how long each kind is measured, at least.

    Returns:
        A row for each kind.
    """
    bodies = (photo.read_bytes() for photo in photos)
    with index_loop(service, bodies, in_flight) as loop:
        complete(loop, len(photos), "photo")
    return [
        {"photos": name, "queries": kind, **compare(service, some, seconds)}
        for kind, some in queries.items()
    ]


def compare(service: OwnService, queries: Sequence[bytes], seconds: float) -> dict[str, Any]:
    """Send each query with `verify=none` and with `verify=auto`.

    Args:
        seconds: how long, at least.

    Returns:
        The figures of the answers.
    """
    client = Client(service.url)
    answers: dict[str, list[Answer]] = {"none": [], "auto": []}
    began = math.inf
    for number, query in enumerate(itertools.cycle(queries), -WARM_UP):
        if number == 0:
            began = time.perf_counter()
        if number >= LEAST and time.perf_counter() - began >= seconds:
            break
        # The one that comes first finds other things in the caches.
        for how in ("none", "auto") if number % 2 else ("auto", "none"):
            answer = client.post(f"/search?verify={how}", query, was_found)
            if number >= 0:
                answers[how].append(answer)
    client.close()
    good = {how: [answer for answer in some if answer.is_good] for how, some in answers.items()}
    times = {
        f"{how}_{share}": value
        for how, some in good.items()
        for share, value in percentiles([1000 * (a.ended - a.began) for a in some]).items()
    }
    shares = ("p50", "p95") if all(good.values()) else ()
    return {
        "searches": sum(map(len, good.values())),
        "errors": sum(map(len, answers.values())) - sum(map(len, good.values())),
        "found": sum(a.found is True for a in good["auto"]) / max(1, len(good["auto"])),
        **times,
        **{f"{share}_ratio": times[f"auto_{share}"] / times[f"none_{share}"] for share in shares},
    }


def was_found(content: bytes) -> bool | None:
    """Return what an answer says: whether the query was found; None if nobody looked."""
    return json.loads(content)["found"]


def cut_kinds(files: Sequence[Path], stored: int) -> dict[str, list[bytes]]:
    """Return queries by kind: cut out of the photos that are stored, and out of the others."""
    kinds = {"these": files[:stored], "others": files[stored:]}
    return {kind: cut_queries(some) for kind, some in kinds.items() if some}
