"""Queries whose answer is known: parts of photos, distorted, the same ones from the same seed."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from common.photos import find_images
from PIL import Image
from tqdm import tqdm

from deployments.compute.images import decode, outer_box
from deployments.errors import InsetError
from deployments.limits import ImageLimits
from deployments.records import Box
from deployments.segmenter.suppression import intersection_over_union
from evaluation.distortions import Distortion

Corners = tuple[float, float, float, float]  # x1, y1, x2, y2, pixels

LIMIT = 10  # photos of an answer
SMALLEST_OBJECT = 48  # pixels, of each side
LARGEST_OBJECT = 0.5  # of the photo's area
JITTER = 0.1  # most that a corner moves, as a share of the box's sides
PATCHES = 3  # of a photo; the last one is turned
PATCH_SIDES = (0.15, 0.5)  # shares of the photo's


class EvaluationFailed(Exception):
    """The evaluation can't continue; the message says why."""


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo to be indexed.

    Attributes:
        name: its path in the folder, with slashes.
        id: SHA-256 of its bytes: files of the same bytes are the same photo.
    """

    file: Path
    name: str
    id: str


@dataclass(frozen=True, slots=True)
class Query:
    """A part of a photo, as somebody might search by it.

    Attributes:
        photo: the id of the photo it was cut from: the right answer.
        name: of that photo.
        kind: `object`: cut around a labelled box; `patch`: anywhere.
        box: where it was cut.
        turned: whether it is turned and mirrored.
        data: a JPEG.
    """

    photo: str
    name: str
    kind: Literal["object", "patch"]
    box: Box
    turned: bool
    data: bytes


def find_photos(folder: Path, limit: int | None = None) -> list[Photo]:
    """Return the photos below a folder, in the order of their names.

    Raises:
        EvaluationFailed: there are none.
        OSError: one can't be read.
    """
    named = sorted((file.relative_to(folder).as_posix(), file) for file in find_images([folder]))
    if not named:
        raise EvaluationFailed(
            f"There are no images in {folder} (files are recognised by their suffix)."
        )
    return [
        Photo(file, name, hashlib.sha256(file.read_bytes()).hexdigest())
        for name, file in named[:limit]
    ]


def make_queries(photos: Sequence[Photo], labels: Path | None, seed: int) -> list[Query]:
    """Cut the queries; those of a photo depend on its name and the seed, not on other photos.

    Args:
        labels: folder of boxes in YOLO's format; photos without a file there are reported.

    Raises:
        EvaluationFailed: a photo is broken, or a line is not a box.
        OSError: a file can't be read.
    """
    queries: list[Query] = []
    unlabelled = []
    for photo in tqdm(photos, unit="photo", desc="cutting queries", leave=False):
        picture = read_photo(photo)
        file = label_file(photo, labels) if labels else None
        if file:
            boxes = read_labels(file, *picture.size)
            queries += _cut(photo, picture, "object", seed, boxes)
        elif labels:
            unlabelled.append(photo.name)
        queries += _cut(photo, picture, "patch", seed)
    if unlabelled:
        print(
            f"{len(unlabelled)} photos have no file in {labels}, so no object queries: "
            f"{', '.join(unlabelled[:5])}{' ...' if len(unlabelled) > 5 else ''}",
            file=sys.stderr,
        )
    return queries


def read_photo(photo: Photo) -> Image.Image:
    """Return the upright photo in RGB.

    Raises:
        EvaluationFailed: it is broken.
        OSError: it can't be read.
    """
    try:
        return open_picture(photo.file.read_bytes())
    except InsetError as error:
        raise EvaluationFailed(f"{photo.file}: {error.detail}") from None


def open_picture(data: bytes) -> Image.Image:
    """Decode a picture as the product does.

    Raises:
        InsetError: it is not an image, or broken.
    """
    return Image.fromarray(decode(data, ImageLimits()).pixels)


def label_file(photo: Photo, labels: Path) -> Path | None:
    """Return the file with a photo's boxes: in the same subfolder, or in `labels` itself."""
    same = (labels / photo.name).with_suffix(".txt")
    return next((file for file in (same, labels / same.name) if file.is_file()), None)


def read_labels(file: Path, width: int, height: int) -> list[Corners]:
    """Read boxes in YOLO's text format: lines of `class cx cy w h`, relative to the photo.

    Returns:
        x1, y1, x2, y2 in pixels, inside the photo.

    Raises:
        EvaluationFailed: a line is something else.
    """
    boxes = []
    for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            kind, *rest = line.split()
            int(kind)
            cx, cy, w, h = map(float, rest)
            if not (0 <= cx <= 1 and 0 <= cy <= 1 and 0 < w <= 1 and 0 < h <= 1):
                raise ValueError(line)
        except ValueError:
            raise EvaluationFailed(
                f"{file}, line {number}: {line.strip()[:80]!r} is not a box. A line is `class cx "
                "cy w h`: a whole number, then centre and size, relative to the photo, 0 to 1."
            ) from None
        boxes.append(
            (
                max(0.0, cx - w / 2) * width,
                max(0.0, cy - h / 2) * height,
                min(1.0, cx + w / 2) * width,
                min(1.0, cy + h / 2) * height,
            )
        )
    return boxes


def _cut(
    photo: Photo,
    picture: Image.Image,
    kind: Literal["object", "patch"],
    seed: int,
    labelled: Sequence[Corners] = (),
) -> Iterator[Query]:
    """Yield the queries of one kind from a photo."""
    # A generator for each photo and kind, so that neither other photos nor labels change the draw.
    digest = hashlib.sha256(f"{seed} {kind} {photo.name}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    boxes = (
        object_boxes(labelled, *picture.size, rng)
        if kind == "object"
        else patch_boxes(*picture.size, rng)
    )
    for number, box in enumerate(boxes):
        turned = kind == "patch" and number == PATCHES - 1
        data = Distortion.draw(rng, turned).jpeg(picture, box)
        yield Query(photo.id, photo.name, kind, box, turned, data)


def object_boxes(
    labelled: Sequence[Corners],
    width: int,
    height: int,
    rng: np.random.Generator,
) -> list[Box]:
    """Return boxes around the labelled objects, except those that are small or most of the photo.

    Args:
        labelled: x1, y1, x2, y2 of each object, pixels.
        width, height: of the photo, pixels.
    """
    boxes = []
    for x1, y1, x2, y2 in labelled:
        w, h = x2 - x1, y2 - y1
        if min(w, h) < SMALLEST_OBJECT or w * h > LARGEST_OBJECT * width * height:
            continue
        moved = np.array([x1, y1, x2, y2]) + rng.uniform(-JITTER, JITTER, 4) * [w, h, w, h]
        left, top, right, bottom = np.rint(moved).tolist()
        boxes.append(outer_box((left, top, right, bottom), width, height))
    return boxes


def patch_boxes(width: int, height: int, rng: np.random.Generator) -> list[Box]:
    """Return boxes anywhere in a photo of so many pixels."""
    boxes = []
    for _ in range(PATCHES):
        w, h = (max(1, round(side * rng.uniform(*PATCH_SIDES))) for side in (width, height))
        x, y = (int(rng.integers(room + 1)) for room in (width - w, height - h))
        boxes.append((x, y, x + w, y + h))
    return boxes


def iou(box: Corners, boxes: Sequence[Corners]) -> list[float]:
    """Return the intersection over union of a box with each of others, 0 to 1."""
    one, others = (torch.tensor(b, dtype=torch.float64) for b in (box, boxes))
    return intersection_over_union(one, others.reshape(-1, 4)).tolist()
