"""How well photos are found by parts of themselves, on photos of your own.

    scripts/evaluate.py --images PHOTOS --labels LABELS --distractors OTHERS

**The queries** are cut from the photos, from a fixed seed: *objects*, the labelled boxes (YOLO's
text format) of at least 48 x 48 pixels and at most half of the photo, each corner moved by up to
10 % of the box's sides; and *patches*, three of each photo, of 15 to 50 % of its width and of its
height, anywhere. All are scaled by 0.5 to 1.3, made darker or lighter (0.75 to 1.3) and more or
less colourful (0.6 to 1.4), and saved as JPEG with quality 40 to 80. A third of the patches is
turned by 15 degrees and mirrored on top.

**What is searched** are the photos and the distractors, through the product's own segmenter,
encoder, index (exact) and ranker as plain classes; with --url through a running service.

**What is told**: the share of queries whose photo came first, and among the first 5 and 10; *box
IoU*, of those whose photo came first the mean IoU of the answered box with the true one; *covered*,
the share of queries whose photo has a chunk with an IoU of at least 0.3 with the query's box: the
others were lost by the segmenter, whatever the encoder does; and the recall@1 among the covered.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
import torch
from baselines import BASELINES, CropEncoder, load_encoder
from figures import Answer, Row, draw_misses, figures, misses, table
from index import IN_FLIGHT, TIMEOUT, Failed, explain, index_files, send
from PIL import Image
from pydantic import ValidationError
from queries import (
    EvaluationFailed,
    Photo,
    Query,
    find_photos,
    make_queries,
    open_picture,
    read_photo,
)
from tqdm import tqdm

from deployments.chunk_index import ChunkIndex
from deployments.errors import InsetError, ModelUnavailable
from deployments.images import scale_crop
from deployments.ranker import Ranker
from deployments.records import Box, Neighbours
from deployments.segmenter import Segmenter
from deployments.settings import SegmenterSettings, display_name

LIMIT = 10  # photos of an answer
BATCH = 8  # photos, as in serve_config.yaml
TIMED = 6 * BATCH  # photos

T = TypeVar("T")
R = TypeVar("R")


# Plain classes


def find_chunks(photos: Sequence[Photo], tiles: tuple[int, ...]) -> dict[str, list[Box]]:
    """Return the boxes of the photos' chunks, as the segmenter cuts them.

    Raises:
        EvaluationFailed: a photo is broken.
    """
    # The crops are made again for each encoder, at its size: these are not looked at.
    segmenter = Segmenter(tiles=tiles, batch_size=BATCH, crop_size=16)
    chunks = {}
    with tqdm(total=len(photos), unit="photo", desc=f"segmenting, tiles {show(tiles)}") as bar:
        for batch in batches(photos):
            found = segmenter.segment([photo.file.read_bytes() for photo in batch])
            for photo, result in zip(batch, found, strict=True):
                if isinstance(result, InsetError):
                    raise EvaluationFailed(f"{photo.file}: {result.detail}")
                chunks[photo.id] = [chunk.box for chunk in result.chunks]
            bar.update(len(batch))
    return chunks


def evaluate(
    name: str,
    encoder: CropEncoder,
    tiles: tuple[int, ...],
    photos: Sequence[Photo],
    chunks: dict[str, list[Box]],
    queries: Sequence[Query],
) -> Row:
    """Index the photos' chunks with an encoder, and search by the queries."""
    vectors = {
        photo.id: encode(encoder, read_photo(photo), chunks[photo.id])
        for photo in tqdm(photos, unit="photo", desc=f"indexing, {name}")
    }
    dimension = next(iter(vectors.values())).shape[1]
    index = ChunkIndex(dimension, engine="exact", device="cpu")
    for id, of_photo in vectors.items():
        index.put(id, of_photo)
    answers = asyncio.run(search(encoder, index, chunks, queries, name))
    rate = photos_per_second(encoder, tiles, photos[:TIMED])
    return Row(name, show(tiles), dimension, chunks, answers, rate)


def encode(encoder: CropEncoder, picture: Image.Image, boxes: Sequence[Box]) -> np.ndarray:
    """Encode parts of an RGB picture: float32 `[len(boxes), d]`."""
    pixels = torch.from_numpy(np.array(picture))
    crops = [scale_crop(pixels, box, encoder.size, squash=encoder.squash) for box in boxes]
    return encoder.encode(torch.stack(crops).numpy())


async def search(
    encoder: CropEncoder,
    index: ChunkIndex,
    chunks: dict[str, list[Box]],
    queries: Sequence[Query],
    name: str,
) -> list[Answer]:
    """Search by each query as the service does."""
    ranker, answers = Ranker(), []
    for query in tqdm(queries, unit="query", desc=f"searching, {name}"):
        picture = open_picture(query.data)
        vector = encode(encoder, picture, [(0, 0, *picture.size)])

        async def fetch(count: int, vector: np.ndarray = vector) -> Neighbours:
            return index.search(vector, count)[0]

        ranked = await ranker.rank(fetch, LIMIT)
        box = chunks[ranked[0].id][ranked[0].chunks[0][0]] if ranked else None
        answers.append(Answer([photo.id for photo in ranked], box))
    return answers


def photos_per_second(
    encoder: CropEncoder, tiles: tuple[int, ...], photos: Sequence[Photo]
) -> float:
    """Time photos through a segmenter and the encoder, from bytes to vectors."""
    segmenter = Segmenter(
        tiles=tiles, batch_size=BATCH, crop_size=encoder.size, squash=encoder.squash
    )
    images = [photo.file.read_bytes() for photo in photos]

    def run(images: Sequence[bytes]) -> None:
        for photo in segmenter.segment(images):
            encoder.encode(photo.crops)

    run(images[:BATCH])  # the first ones take longer: memory, kernels
    start = time.monotonic()
    for batch in tqdm(list(batches(images)), unit=f"{BATCH} photos", desc="timing", leave=False):
        run(batch)
    return len(images) / (time.monotonic() - start)


def batches(items: Sequence[T]) -> Iterable[Sequence[T]]:
    """Yield the items in groups."""
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))


# A service


def evaluate_service(url: str, photos: Sequence[Photo], queries: Sequence[Query]) -> Row:
    """Index the photos through a service and search there.

    Raises:
        EvaluationFailed: it can't be reached, or refuses something.
    """
    before = stats(url)["store"]["photos"]
    start = time.monotonic()
    summary = asyncio.run(index_files(url, [photo.file for photo in photos]))
    seconds = time.monotonic() - start
    if summary.failures:
        file, reason = summary.failures[0]
        raise EvaluationFailed(f"{len(summary.failures)} photos failed; {file}: {reason}")
    new = summary.counts["created"] == len(photos)
    records = asyncio.run(fetch_records(url, [photo.id for photo in photos]))
    chunks = {
        id: [tuple(chunk["box"]) for chunk in record["chunks"]] for id, record in records.items()
    }
    after = stats(url)
    others = after["store"]["photos"] - len(chunks)
    if others > 0:
        print(
            f"The service holds {others} other photos ({before} were stored when this run began): "
            "they are distractors too.",
            file=sys.stderr,
        )
    answers = asyncio.run(search_service(url, queries))
    encoder = after["encoder"]
    rate = len(photos) / seconds if new else None
    return Row(encoder["name"], "the service's", encoder["dimension"], chunks, answers, rate)


def stats(url: str) -> dict[str, Any]:
    """Return what the service says of itself.

    Raises:
        EvaluationFailed: it can't be reached.
    """
    try:
        return httpx.get(f"{url}/stats", timeout=TIMEOUT).raise_for_status().json()
    except httpx.HTTPError as error:
        raise EvaluationFailed(
            f"No service answers at {url} ({error}). Start it with: serve run serve_config.yaml"
        ) from None


async def fetch_records(url: str, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the records of photos, by id."""

    async def fetch(client: httpx.AsyncClient, id: str) -> dict[str, Any]:
        return answered(await send(client, "GET", f"/images/{id}/record"))

    distinct = list(dict.fromkeys(ids))
    return dict(zip(distinct, await each(url, fetch, distinct, "record"), strict=True))


async def search_service(url: str, queries: Sequence[Query]) -> list[Answer]:
    """Search by each query, with several requests in flight."""

    async def search(client: httpx.AsyncClient, query: Query) -> Answer:
        matches = answered(
            await send(
                client,
                "POST",
                "/search",
                params={"limit": LIMIT},
                content=query.data,
                headers={"Content-Type": "image/jpeg"},
            )
        )["matches"]
        box = tuple(matches[0]["box"]) if matches else None
        return Answer([match["id"] for match in matches], box)

    return await each(url, search, queries, "query")


def answered(response: httpx.Response) -> dict[str, Any]:
    """Return an answer's content.

    Raises:
        Failed: it is an error.
    """
    if response.status_code != 200:
        raise Failed(explain(response))
    return response.json()


async def each(
    url: str,
    ask: Callable[[httpx.AsyncClient, T], Awaitable[R]],
    items: Sequence[T],
    unit: str,
) -> list[R]:
    """Ask a service something for each item, several at a time; returns the answers in order.

    Raises:
        EvaluationFailed: the service refused one, or can't be reached.
    """
    answers: list[R | None] = [None] * len(items)
    queue = iter(enumerate(items))
    limits = httpx.Limits(max_connections=IN_FLIGHT)
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT, limits=limits) as client:
        with tqdm(total=len(items), unit=unit) as bar:

            async def work() -> None:
                for number, item in queue:
                    answers[number] = await ask(client, item)
                    bar.update()

            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(IN_FLIGHT):
                        group.create_task(work())
            except* Failed as errors:
                raise EvaluationFailed(f"{url}: {errors.exceptions[0]}") from None
    return answers


# The command


def show(tiles: tuple[int, ...]) -> str:
    """Return a setting of tiles for people."""
    return ",".join(map(str, tiles)) or "none"


def parse_tiles(text: str) -> tuple[int, ...]:
    """Return what `--tiles` says."""
    try:
        scales = () if text == "none" else text.split(",")
        return SegmenterSettings(tiles=scales).tiles
    except ValidationError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither none nor scales as 2,3 ({error.errors()[0]['msg']})"
        ) from None


def evaluate_all(
    encoders: Sequence[str],
    settings: Sequence[tuple[int, ...]],
    photos: Sequence[Photo],
    queries: Sequence[Query],
) -> list[Row]:
    """Return a row for each setting of tiles and each encoder; one that can't be had is told."""
    loaded = {}
    for name in encoders:
        try:
            loaded[name] = load_encoder(name)
        except ModelUnavailable as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    rows = []
    for tiles in settings if loaded else ():
        chunks = find_chunks(photos, tiles)
        for name, encoder in loaded.items():
            rows.append(evaluate(display_name(name), encoder, tiles, photos, chunks, queries))
    return rows


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, and print, draw and save what came out.

    Returns:
        Exit status: 1 if an encoder had to be left out.

    Raises:
        EvaluationFailed, OSError
        ModelUnavailable: the detector can't be had.
    """
    folders = [folder for folder in (arguments.images, arguments.distractors) if folder]
    photos, *distractors = (find_photos(folder, arguments.limit) for folder in folders)
    queries = make_queries(photos, arguments.labels, arguments.seed)
    known = {photo.id: photo for photo in itertools.chain(photos, *distractors)}
    distinct = list(known.values())
    if arguments.url:
        expected, rows = 1, [evaluate_service(arguments.url, distinct, queries)]
    else:
        expected = len(arguments.encoder) * len(arguments.tiles)
        rows = evaluate_all(arguments.encoder, arguments.tiles, distinct, queries)
    if not rows:
        return 1
    results = [figures(row, queries) for row in rows]
    print(f"\n{len(distinct)} photos, {len(queries)} queries, seed {arguments.seed}\n")
    print(table(results))
    if arguments.json:
        content = {
            "seed": arguments.seed,
            "photos": len({photo.id for photo in photos}),
            "distractors": len(distinct) - len({photo.id for photo in photos}),
            "rows": results,
        }
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")
    if arguments.failures:
        missed = misses(list(zip(queries, rows[0].answers, strict=True)))
        draw_misses(missed, known).save(arguments.failures)
        print(f"\nDrawn in {arguments.failures}: of {rows[0].encoder}, {len(missed)} were missed.")
    return 0 if len(rows) == expected else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, required=True, help="folder of photos to cut from")
    parser.add_argument("--labels", type=Path, help="folder of their boxes, in YOLO's text format")
    parser.add_argument("--distractors", type=Path, help="folder of other photos, indexed too")
    parser.add_argument(
        "--encoder",
        action="append",
        help=f"a CLIP, by folder or hub name, or {', '.join(BASELINES)}; may be repeated "
        "(models/compact)",
    )
    parser.add_argument(
        "--tiles",
        action="append",
        type=parse_tiles,
        help="of the segmenter, as 2,3; or none; may be repeated (the segmenter's own)",
    )
    parser.add_argument("--url", help="evaluate the service there, as it is configured")
    parser.add_argument("--seed", type=int, default=0, help="of the queries (%(default)s)")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="only N photos and N distractors, for a quick look"
    )
    parser.add_argument("--json", type=Path, metavar="OUT.json", help="write all figures there")
    parser.add_argument(
        "--failures", type=Path, metavar="OUT.png", help="draw what the first row missed there"
    )
    arguments = parser.parse_args()
    if arguments.url and (arguments.encoder or arguments.tiles):
        parser.error("with --url the service's own encoder and tiles are evaluated")
    for folder in (arguments.images, arguments.labels, arguments.distractors):
        if folder and not folder.is_dir():
            parser.error(f"no such folder: {folder}")
    if arguments.limit is not None and arguments.limit < 1:
        parser.error("--limit must be at least 1")
    root = Path(__file__).parent.parent
    arguments.encoder = arguments.encoder or [str(root / "models" / "compact")]
    arguments.tiles = arguments.tiles or [SegmenterSettings().tiles]
    try:
        return run(arguments)
    except (EvaluationFailed, ModelUnavailable, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
