"""The yardstick: one process that does the service's work, as one would write it in an hour.

No Ray, no HTTP, no database: Pillow, YOLOv5 on a square canvas, CLIP by transformers in batches of
32, one array of vectors that is compared and sorted, and everything written to disk at the end. It
makes the same chunks as the service, but promises nothing: a crash loses all photos.
scripts/bench.py plain measures it.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import CLIPVisionModelWithProjection
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from deployments.boxes import outer_box
from deployments.compute.device import resolve_dtype
from deployments.compute.weights import yolov5_weights
from deployments.records import Box
from deployments.segmenter.canvas_detectors import CPU_BATCH
from deployments.segmenter.checkpoint import read_checkpoint
from deployments.segmenter.chunks import contrasts, distinct_tiles
from deployments.segmenter.letterbox import PADDING_GREY, Letterbox, square_letterbox
from deployments.segmenter.suppression import select
from deployments.segmenter.yolov5 import load_network
from deployments.settings import SegmenterSettings
from deployments.tiles import tile_boxes

CROPS = 32  # in one forward pass


class Plain:
    """Photos in memory, found by parts of them.

    Args:
        encoder: folder of a CLIP.
        settings: of the segmenter.
        tuned: whether number format, batch and memory layout are the service's; otherwise they are
            the libraries' defaults.
    """

    def __init__(self, encoder: Path, settings: SegmenterSettings, tuned: bool) -> None:
        cpu = torch.device("cpu")
        self.settings = settings
        self.batch = CPU_BATCH if tuned else 1
        self.format = torch.channels_last if tuned else torch.contiguous_format
        self.dtype = resolve_dtype("auto", cpu) if tuned else torch.float32
        checkpoint = read_checkpoint(yolov5_weights(settings.model_name_or_path))
        detector = load_network(checkpoint, cpu, self.dtype)
        # torch's signatures lack the option for modules.
        self.detector = detector.to(memory_format=self.format)  # type: ignore[call-overload]
        self.encoder = CLIPVisionModelWithProjection.from_pretrained(encoder, dtype=self.dtype)
        self.size = self.encoder.eval().config.image_size
        file = encoder / "preprocessor_config.json"
        options = json.loads(file.read_text()) if file.is_file() else {}
        size = options.get("size")
        self.squash = isinstance(size, dict) and "height" in size
        self.mean = torch.tensor(options.get("image_mean", OPENAI_CLIP_MEAN))
        self.std = torch.tensor(options.get("image_std", OPENAI_CLIP_STD))

    def index(self, photos: Sequence[bytes], folder: Path) -> None:
        """Detect, cut and encode all photos, then write them and their vectors to a folder."""
        self.chunks: list[tuple[int, Box]] = []
        vectors = []
        for start in range(0, len(photos), self.batch):
            images = [decode(photo) for photo in photos[start : start + self.batch]]
            boxes = self.boxes(images)
            of_images = list(zip(images, boxes, strict=True))
            vectors.append(self.encode([self.cut(i, box) for i, of in of_images for box in of]))
            self.chunks += [(start + n, box) for n, of in enumerate(boxes) for box in of]
        self.vectors = np.concatenate(vectors)
        np.save(folder / "vectors.npy", self.vectors)
        (folder / "chunks.json").write_text(json.dumps(self.chunks))
        for photo in photos:
            (folder / hashlib.sha256(photo).hexdigest()).write_bytes(photo)

    def search(self, picture: bytes) -> list[int]:
        """Return the numbers of the ten nearest photos."""
        image = decode(picture)
        (vector,) = self.encode([self.cut(image, (0, 0, *image.size))])
        order = np.argsort(-(self.vectors @ vector))
        return list(dict.fromkeys(self.chunks[place][0] for place in order))[:10]

    @torch.inference_mode()
    def boxes(self, images: Sequence[Image.Image]) -> list[list[Box]]:
        """Return the boxes of each photo's objects and tiles, and of the whole."""
        side = self.settings.image_size
        places = [square_letterbox(image.height, image.width, side) for image in images]
        canvases = np.stack([lay(i, place) for i, place in zip(images, places, strict=True)])
        batch = torch.from_numpy(canvases).permute(0, 3, 1, 2).to(self.dtype) / 255
        predictions = self.detector(batch.contiguous(memory_format=self.format))
        thresholds = [self.settings.confidence_threshold] * len(images)
        found = select(predictions, thresholds, self.settings.iou_threshold)
        return [self._chunks(*photo) for photo in zip(images, found, places, strict=True)]

    def _chunks(self, image: Image.Image, found: np.ndarray, place: Letterbox) -> list[Box]:
        inside = place.boxes_on_image(found[:, :4])
        inside = inside[(inside[:, 2] > inside[:, 0]) & (inside[:, 3] > inside[:, 1])]
        objects = [outer_box((x1, y1, x2, y2), *image.size) for x1, y1, x2, y2 in inside.tolist()]
        tiles = tile_boxes(
            *image.size, self.settings.tiles, self.settings.max_tiles, self.settings.tile_overlap
        )
        least = self.settings.min_tile_contrast
        others = distinct_tiles(tiles, objects)
        if least and others:
            cut = [np.asarray(self.cut(image, tile)) for tile in others]
            crops = torch.from_numpy(np.stack(cut))
            pairs = zip(others, contrasts(crops), strict=True)
            others = [tile for tile, contrast in pairs if contrast >= least]
        return [*objects, *others, (0, 0, *image.size)]

    def cut(self, image: Image.Image, box: Box) -> Image.Image:
        """Cut a box out as a square of the encoder's size."""
        square = (self.size, self.size)
        if self.squash:
            return image.resize(square, Image.Resampling.BICUBIC, box)
        return ImageOps.fit(image.crop(box), square, Image.Resampling.BICUBIC)

    @torch.inference_mode()
    def encode(self, crops: Sequence[Image.Image]) -> np.ndarray:
        """Return float32 `[len(crops), d]`, L2-normalised."""
        vectors = []
        for start in range(0, len(crops), CROPS):
            pixels = torch.from_numpy(
                np.stack([np.asarray(crop) for crop in crops[start : start + CROPS]])
            )
            values = ((pixels / 255 - self.mean) / self.std).permute(0, 3, 1, 2).to(self.dtype)
            embeds = self.encoder(pixel_values=values).image_embeds.float()
            vectors.append(torch.nn.functional.normalize(embeds, dim=-1).numpy())
        return np.concatenate(vectors)


def decode(data: bytes) -> Image.Image:
    """Return the upright picture in RGB."""
    return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")


def lay(image: Image.Image, place: Letterbox) -> np.ndarray:
    """Lay a photo on its canvas: uint8 `[height, width, 3]`."""
    canvas = Image.new("RGB", place.canvas, (PADDING_GREY,) * 3)
    scaled = image.resize(place.scaled[::-1], Image.Resampling.BILINEAR)
    canvas.paste(scaled, (place.left, place.top))
    return np.asarray(canvas)
