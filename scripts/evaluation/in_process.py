"""Photos indexed and searched as the service does it, by its own classes in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from deployments.chunk_index.index import ChunkIndex
from deployments.compute.crops import scale_crop
from deployments.ranker import Ranker
from deployments.records import Box, Neighbours
from deployments.segmenter.segmenter import Segmenter
from deployments.settings import ChunkIndexSettings, SegmenterSettings
from evaluation.encoders import CropEncoder
from evaluation.figures import Answer, Found, Row, describe
from evaluation.queries import LIMIT, EvaluationFailed, Photo, Query, open_picture

BATCH = 8  # photos


def evaluate(
    name: str,
    encoder: CropEncoder,
    options: dict[str, Any],
    photos: Sequence[Photo],
    queries: Sequence[Query],
) -> Row:
    """Index photos with an encoder and a segmenter, and search by the queries.

    Args:
        name: the encoder's name, for the report.
        options: of the segmenter, as in serve_config.yaml.

    Raises:
        EvaluationFailed: a photo is broken.
        ModelUnavailable: the detector is not available.
    """
    settings = SegmenterSettings.model_validate({"batch_size": BATCH} | options)
    segmenter = Segmenter(settings, crop_size=encoder.size, squash=encoder.squash)
    index, chunks, rate = index_photos(encoder, segmenter, photos, name)
    answers = asyncio.run(search(encoder, index, chunks, queries, name))
    return Row(name, describe(options), index.dimension, chunks, answers, rate)


def index_photos(
    encoder: CropEncoder, segmenter: Segmenter, photos: Sequence[Photo], name: str
) -> tuple[ChunkIndex, dict[str, list[Box]], float]:
    """Segment, encode and index photos.

    Args:
        name: of the encoder, for the progress bar.

    Returns:
        The index, the boxes of each photo's chunks, and how many photos a second were segmented
        and encoded, from bytes to vectors.

    Raises:
        EvaluationFailed: a photo is broken.
    """
    vectors: dict[str, np.ndarray] = {}
    chunks: dict[str, list[Box]] = {}
    seconds = 0.0
    with tqdm(total=len(photos), unit="photo", desc=f"indexing, {name}") as bar:
        for start in range(0, len(photos), BATCH):
            batch = photos[start : start + BATCH]
            images = [photo.file.read_bytes() for photo in batch]
            began = time.monotonic()
            segmented = segmenter.segment(images)
            for photo, result in zip(batch, segmented, strict=True):
                if isinstance(result, Exception):
                    raise EvaluationFailed(f"{photo.file}: {result}")
                vectors[photo.id] = encoder.encode(result.crops.cpu().numpy())
                chunks[photo.id] = [chunk.box for chunk in result.chunks]
            seconds += time.monotonic() - began
            bar.update(len(batch))
    dimension = next(iter(vectors.values())).shape[1]
    index = ChunkIndex(dimension, ChunkIndexSettings(engine="exact", device="cpu"))
    for id, of_photo in vectors.items():
        index.put(id, of_photo)
    return index, chunks, len(photos) / seconds


async def search(
    encoder: CropEncoder,
    index: ChunkIndex,
    chunks: dict[str, list[Box]],
    queries: Sequence[Query],
    name: str,
) -> list[Answer]:
    """Search by each query.

    Args:
        chunks: the boxes of each photo's chunks, by its id.
        name: of the encoder, for the progress bar.
    """
    ranker, answers = Ranker(), []
    for query in tqdm(queries, unit="query", desc=f"searching, {name}"):
        vector = encode_query(encoder, query)

        async def fetch(count: int, vector: np.ndarray = vector) -> Neighbours:
            return index.search(vector[np.newaxis], count)[0]

        ranked = await ranker.rank(fetch, LIMIT)
        nearest = ((photo.id, photo.chunks[0][0]) for photo in ranked)
        answers.append(Answer(tuple(Found(id, chunks[id][number]) for id, number in nearest)))
    return answers


def encode_query(encoder: CropEncoder, query: Query) -> np.ndarray:
    """Encode a query as the service does: float32 `[d]`."""
    pixels = torch.from_numpy(np.array(open_picture(query.data)))
    box = (0, 0, pixels.shape[1], pixels.shape[0])
    crop = scale_crop(pixels, box, encoder.size, squash=encoder.squash)
    return encoder.encode(crop.numpy()[np.newaxis])[0]
