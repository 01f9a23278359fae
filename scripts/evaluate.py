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
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
import torch
from common.paths import ROOT
from evaluation.encoders import BASELINES, CropEncoder, load_encoder
from evaluation.queries import (
    EvaluationFailed,
    Photo,
    Query,
    find_photos,
    make_queries,
    open_picture,
)
from evaluation.report import Answer, Row, draw_misses, figures, misses, table
from index import IN_FLIGHT, TIMEOUT, Failed, explain, index_files, send
from tqdm import tqdm

from deployments.chunk_index.index import ChunkIndex
from deployments.compute.images import scale_crop
from deployments.errors import InsetError, ModelUnavailable
from deployments.ranker import Ranker
from deployments.records import Box, Neighbours
from deployments.segmenter.segmenter import Segmenter
from deployments.settings import EncoderSettings, SegmenterSettings, display_name

LIMIT = 10  # photos of an answer
BATCH = 8  # photos, as in serve_config.yaml
NAME = "pretrained_model_name_or_path"
COMPACT = str(ROOT / "models" / "compact")

T = TypeVar("T")
R = TypeVar("R")


# Plain classes


def index_photos(
    encoder: CropEncoder, options: dict[str, Any], photos: Sequence[Photo], name: str
) -> tuple[ChunkIndex, dict[str, list[Box]], float]:
    """Segment, encode and index photos, as the service does.

    Args:
        options: of the segmenter, as in serve_config.yaml.
        name: of the encoder, for the progress bar.

    Returns:
        The index, the boxes of each photo's chunks, and how many photos a second were segmented
        and encoded, from bytes to vectors.

    Raises:
        EvaluationFailed: a photo is broken.
        ModelUnavailable: the detector can't be had.
    """
    segmenter = Segmenter(
        **{"batch_size": BATCH} | options, crop_size=encoder.size, squash=encoder.squash
    )
    vectors, chunks = {}, {}
    seconds = 0.0
    with tqdm(total=len(photos), unit="photo", desc=f"indexing, {name}") as bar:
        for start in range(0, len(photos), BATCH):
            batch = photos[start : start + BATCH]
            images = [photo.file.read_bytes() for photo in batch]
            began = time.monotonic()
            segmented = segmenter.segment(images)
            for photo, result in zip(batch, segmented, strict=True):
                if isinstance(result, InsetError):
                    raise EvaluationFailed(f"{photo.file}: {result.detail}")
                vectors[photo.id] = encoder.encode(result.crops)
                chunks[photo.id] = [chunk.box for chunk in result.chunks]
            seconds += time.monotonic() - began
            bar.update(len(batch))
    index = ChunkIndex(next(iter(vectors.values())).shape[1], engine="exact", device="cpu")
    for id, of_photo in vectors.items():
        index.put(id, of_photo)
    return index, chunks, len(photos) / seconds


def evaluate(
    name: str,
    encoder: CropEncoder,
    options: dict[str, Any],
    photos: Sequence[Photo],
    queries: Sequence[Query],
) -> Row:
    """Index the photos with an encoder and a segmenter, and search by the queries."""
    index, chunks, rate = index_photos(encoder, options, photos, name)
    answers = asyncio.run(search(encoder, index, chunks, queries, name))
    return Row(name, show(options), index.dimension, chunks, answers, rate)


def encode_query(encoder: CropEncoder, query: Query) -> np.ndarray:
    """Encode a query as the service does: float32 `[d]`."""
    pixels = torch.from_numpy(np.array(open_picture(query.data)))
    box = (0, 0, pixels.shape[1], pixels.shape[0])
    crop = scale_crop(pixels, box, encoder.size, squash=encoder.squash)
    return encoder.encode(crop.numpy()[np.newaxis])[0]


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
        vector = encode_query(encoder, query)

        async def fetch(count: int, vector: np.ndarray = vector) -> Neighbours:
            return index.search(vector[np.newaxis], count)[0]

        ranked = await ranker.rank(fetch, LIMIT)
        box = chunks[ranked[0].id][ranked[0].chunks[0][0]] if ranked else None
        answers.append(Answer([photo.id for photo in ranked], box))
    return answers


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
    return Row(encoder["name"], "of the service", encoder["dimension"], chunks, answers, rate)


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


def show(options: dict[str, Any]) -> str:
    """Return options of the segmenter for people."""
    return ", ".join(f"{name} {value}" for name, value in options.items()) or "as by default"


def parse_segmenter(text: str) -> dict[str, Any]:
    """Return what `--segmenter` says."""
    return parse_options(text, "segmenter", SegmenterSettings)


def parse_encoder(text: str) -> dict[str, Any]:
    """Return what `--encoder` says: a name, or options and perhaps the name among them."""
    if not text.startswith("{"):
        return {NAME: text}
    return {NAME: COMPACT} | parse_options(text, "encoder", EncoderSettings)


def parse_options(
    text: str, of: str, section: type[SegmenterSettings | EncoderSettings]
) -> dict[str, Any]:
    """Return options of a section of the config that are given as JSON."""
    try:
        given = json.loads(text)
        settings = section.model_validate(given)
    except ValueError as error:  # pydantic's are of this kind too
        raise argparse.ArgumentTypeError(
            f"{text!r} is no JSON object with options of the {of} ({error})"
        ) from None
    # Those of the deployment alone change nothing here.
    return settings.model_dump(mode="json", include=set(given) - {"batch_wait_ms", "threads"})


def evaluate_all(
    encoders: Sequence[dict[str, Any]],
    segmenters: Sequence[dict[str, Any]],
    photos: Sequence[Photo],
    queries: Sequence[Query],
) -> list[Row]:
    """Return a row for each encoder and segmenter; an encoder that can't be had is told."""
    loaded = {}
    for given in encoders:
        options = dict(given)
        name = options.pop(NAME)
        title = ", ".join([display_name(name), *([show(options)] if options else [])])
        try:
            loaded[title] = load_encoder(name, **options)
        except ModelUnavailable as error:
            print(f"{title} is left out: {error}", file=sys.stderr)
    return [
        evaluate(title, encoder, options, photos, queries)
        for title, encoder in loaded.items()
        for options in segmenters
    ]


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
        expected = len(arguments.encoder) * len(arguments.segmenter)
        rows = evaluate_all(arguments.encoder, arguments.segmenter, distinct, queries)
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
        type=parse_encoder,
        help=f"a CLIP, by folder or hub name, or {', '.join(BASELINES)}; or options that "
        "serve_config.yaml has under `encoder`, as an object; may be repeated (models/compact)",
    )
    parser.add_argument(
        "--segmenter",
        action="append",
        type=parse_segmenter,
        metavar="JSON",
        help="options that serve_config.yaml has under `segmenter`, as an object: "
        '\'{"tiles": [2], "confidence_threshold": 0.3}\'; may be repeated (its defaults)',
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
    if arguments.url and (arguments.encoder or arguments.segmenter):
        parser.error("with --url the service's own encoder and segmenter are evaluated")
    for folder in (arguments.images, arguments.labels, arguments.distractors):
        if folder and not folder.is_dir():
            parser.error(f"no such folder: {folder}")
    if arguments.limit is not None and arguments.limit < 1:
        parser.error("--limit must be at least 1")
    arguments.encoder = arguments.encoder or [{NAME: COMPACT}]
    arguments.segmenter = arguments.segmenter or [{}]
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
