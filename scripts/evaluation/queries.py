"""Queries whose answer is known: parts of photos, distorted, the same ones from the same seed."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from common.photos import find_images
from PIL import Image
from tqdm import tqdm

from deployments.boxes import outer_box
from deployments.decoding.image import decode
from deployments.errors import InsetError
from deployments.limits import ImageLimits
from deployments.records import Box, Quad
from deployments.segmenter.suppression import intersection_over_union
from evaluation.distortions import Distortion
from evaluation.geometry import apply, bounds, corners, homography
from evaluation.kinds import ABSENT, KINDS, PARTS, PartKind
from evaluation.views import View

Corners = tuple[float, float, float, float]  # x1, y1, x2, y2, pixels

LIMIT = 10  # photos of an answer
SMALLEST_OBJECT = 48  # pixels, of each side
LARGEST_OBJECT = 0.5  # of the photo's area
JITTER = 0.1  # most that a corner moves, as a share of the box's sides
PATCHES = 3  # of a photo; the last one is turned
PATCH_SIDES = (0.15, 0.5)  # shares of the photo's
MIDDLES = 2  # of a photo without labels
MIDDLE_SIDES = (0.3, 0.7)  # shares of the photo's
PER_KIND = 200
ABSENT_QUERIES = 2000
PICTURES = 8  # photos that are kept decoded


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
class Place:
    """Where a query's content is in a photo.

    Attributes:
        photo: the id of the photo.
        name: of that photo.
        content: corners of what is of the photo, in the query; all of it, unless something frames
            or hides a part of it.
        quad: the same corners, in the photo.
        box: around the quad, inside the photo.
        whole: the corners of the query, in the photo. What frames the content may lie beyond it.
    """

    photo: str
    name: str
    content: Quad
    quad: Quad
    box: Box
    whole: Quad

    @classmethod
    def of(cls, photo: Photo, size: tuple[int, int], view: View) -> Place:
        """Return the place of a view.

        Args:
            size: width and height of the photo.
        """
        whole = apply(view.to_photo, corners(*view.picture.size))
        box = bounds(view.quad, *size)
        return cls(photo.id, photo.name, view.content, view.quad, box, whole)

    def of_part(self, part: Box) -> Quad:
        """Return where a box of the query is in the photo."""
        x1, y1, x2, y2 = part
        to_photo = homography(self.content, self.quad)
        return apply(to_photo, corners(x2 - x1, y2 - y1, x1, y1))


@dataclass(frozen=True, slots=True)
class Query:
    """A part of a photo, as somebody might search by it.

    Attributes:
        kind: one of `ALL_KINDS`.
        name: of the photo it was cut from.
        places: the right answers. None for a query that is absent, four for a collage.
        also: ids of photos of which parts are in it too, which nobody looks for.
        turned: whether it is a part that is turned by 15 degrees, and mirrored.
        data: a JPEG.
    """

    kind: str
    name: str
    places: tuple[Place, ...]
    also: tuple[str, ...]
    turned: bool
    data: bytes


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a photo to be cut out.

    Attributes:
        kind: `object`: a labelled box; `patch`: anywhere.
        number: among those of this kind and photo.
        size: width and height of the photo.
    """

    photo: Photo
    kind: PartKind
    number: int
    box: Box
    size: tuple[int, int]

    @property
    def key(self) -> str:
        return f"{self.photo.name} {self.kind} {self.number}"

    @property
    def turned(self) -> bool:
        """Whether a query that is this part, and nothing more, is turned and mirrored."""
        return self.kind == "patch" and self.number == PATCHES - 1


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


def make_queries(
    photos: Sequence[Photo],
    labels: Path | None,
    seed: int,
    *,
    kinds: Collection[str] = PARTS,
    per_kind: int = PER_KIND,
    absent: Sequence[Photo] = (),
    absent_queries: int = ABSENT_QUERIES,
) -> list[Query]:
    """Make the queries; the same ones from the same names of the photos and the same seed.

    Those that are objects and patches depend on their own photo alone. Of the other kinds those
    parts come first whose name, with the kind and the seed, has the smallest checksum: with a
    smaller number, or with fewer photos, they are a part of the same ones. Only what stands beside
    them, in a collage and where a half is covered, depends on which other photos there are.

    Args:
        labels: folder of boxes in YOLO's format; photos without a file there are reported.
        kinds: of `ALL_KINDS`.
        per_kind: most queries of each kind but objects, patches and absent ones.
        absent: photos from which the absent queries are cut.
        absent_queries: most of these.

    Raises:
        EvaluationFailed: a photo is broken, a line is not a box, or there are too few photos.
        OSError: a file can't be read.
    """
    changed = [kind for kind in KINDS if kind in kinds and kind != ABSENT]
    for kind in changed:
        if KINDS[kind].parts > len({photo.id for photo in photos}):
            raise EvaluationFailed(
                f"A query of the kind {kind} has parts of {KINDS[kind].parts} different photos, "
                "and there are fewer: choose other ones with --kinds."
            )
    queries: list[Query] = []
    parts: list[Part] = []
    unlabelled = []
    for photo in tqdm(photos, unit="photo", desc="cutting queries", leave=False):
        picture = read_photo(photo)
        file = label_file(photo, labels) if labels else None
        labelled = read_labels(file, *picture.size) if file else []
        if labels and not file:
            unlabelled.append(photo.name)
        for name in PARTS:
            # A generator for each photo and kind, so that neither other photos nor labels change
            # the draw.
            rng = generator(seed, name, photo.name)
            some = find_parts(photo, picture.size, name, rng, labelled)
            parts += some
            if name in kinds:
                queries += _cut(some, picture, rng)
    if unlabelled:
        print(
            f"{len(unlabelled)} photos have no file in {labels}, so no object queries: "
            f"{', '.join(unlabelled[:5])}{' ...' if len(unlabelled) > 5 else ''}",
            file=sys.stderr,
        )
    for kind in changed:
        queries += _change(kind, parts, per_kind, seed)
    if ABSENT in kinds and absent:
        queries += _change(ABSENT, absent_parts(absent, seed), absent_queries, seed)
    return queries


def generator(*words: object) -> np.random.Generator:
    """Return a generator of random numbers that follow from some words."""
    return np.random.default_rng(_checksum(*words))


def _checksum(*words: object) -> int:
    digest = hashlib.sha256(" ".join(map(str, words)).encode()).digest()
    return int.from_bytes(digest[:8], "big")


def find_parts(
    photo: Photo,
    size: tuple[int, int],
    kind: PartKind,
    rng: np.random.Generator,
    labelled: Sequence[Corners],
) -> list[Part]:
    """Return the parts of one kind of a photo.

    Args:
        size: width and height of the photo.
        labelled: x1, y1, x2, y2 of the labelled objects, pixels.
    """
    boxes = object_boxes(labelled, *size, rng) if kind == "object" else patch_boxes(*size, rng)
    return [Part(photo, kind, number, box, size) for number, box in enumerate(boxes)]


def absent_parts(photos: Sequence[Photo], seed: int) -> list[Part]:
    """Return parts of photos without labels: two from the middle and three from anywhere of each.

    What somebody photographed is in the middle.
    """
    parts = []
    for photo in tqdm(photos, unit="photo", desc="reading absent photos", leave=False):
        size = read_photo(photo).size
        for kind in PARTS:
            rng = generator(seed, ABSENT, kind, photo.name)
            middle = [middle_box(*size, rng) for _ in range(MIDDLES)] if kind == "object" else []
            parts += find_parts(photo, size, kind, rng, middle)
    return parts


def _cut(parts: Sequence[Part], picture: Image.Image, rng: np.random.Generator) -> Iterator[Query]:
    """Yield the queries that are parts of a photo themselves."""
    for part in parts:
        distortion = Distortion.draw(rng, part.turned)
        view = distortion.view(picture, part.box)
        place = Place.of(part.photo, part.size, view)
        data = distortion.save(view.picture)
        yield Query(part.kind, part.photo.name, (place,), (), part.turned, data)


def _change(name: str, parts: Sequence[Part], most: int, seed: int) -> list[Query]:
    """Return the queries of a kind."""
    kind = KINDS[name]
    read = lru_cache(maxsize=PICTURES)(read_photo)  # several parts of a photo follow each other
    chosen = sorted(parts, key=lambda part: _checksum(seed, name, part.key))[:most]
    queries = []
    for part in tqdm(_in_order(chosen, parts), unit="query", desc=f"making {name}", leave=False):
        rng = generator(seed, "change", name, part.key)
        together = [part, *_companions(part, parts, kind.parts - 1, f"{seed} {name}")]
        turned = name == ABSENT and part.turned
        distortions = [Distortion.draw(rng, turned) for _ in together]
        views = [
            distortion.view(read(one.photo), one.box)
            for distortion, one in zip(distortions, together, strict=True)
        ]
        shown = kind.change(views, rng)
        places = [
            Place.of(one.photo, one.size, view)
            for one, view in zip(together, shown, strict=False)
            if name != ABSENT
        ]
        also = tuple(one.photo.id for one in together[len(shown) :])
        data = distortions[0].save(shown[0].picture)
        queries.append(Query(name, part.photo.name, tuple(places), also, turned, data))
    return queries


def _in_order(chosen: Sequence[Part], parts: Sequence[Part]) -> list[Part]:
    """Return some parts in the order of all parts, in which those of a photo are together."""
    keys = {part.key for part in chosen}
    return [part for part in parts if part.key in keys]


def _companions(part: Part, parts: Sequence[Part], count: int, salt: str) -> list[Part]:
    """Return parts of so many other photos, all of them different."""
    companions: dict[str, Part] = {}
    if count:
        for other in sorted(parts, key=lambda one: _checksum(salt, part.key, one.key)):
            if other.photo.id != part.photo.id:
                companions.setdefault(other.photo.id, other)
    return list(companions.values())[:count]


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


def middle_box(width: int, height: int, rng: np.random.Generator) -> Corners:
    """Return a box about the middle of a photo of so many pixels."""
    w, h = (side * rng.uniform(*MIDDLE_SIDES) for side in (width, height))
    x, y = (room * rng.uniform(0.25, 0.75) for room in (width - w, height - h))
    return (x, y, x + w, y + h)


def iou(box: Corners, boxes: Sequence[Corners]) -> list[float]:
    """Return the intersection over union of a box with each of others, 0 to 1."""
    one, others = (torch.tensor(b, dtype=torch.float64) for b in (box, boxes))
    return intersection_over_union(one, others.reshape(-1, 4)).tolist()
