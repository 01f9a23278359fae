"""Crops, pictures and texts to vectors: CLIP's two towers."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray import serve

from deployments.compute.batching import batched
from deployments.compute.device import (
    COMPUTING_REPLICA,
    compute_threads,
    passes_at_once,
    resolve_device,
    resolve_dtype,
    upload,
)
from deployments.compute.images import decode, scale_crop
from deployments.compute.weights import hub_folder
from deployments.errors import BadParameter, ModelUnavailable
from deployments.limits import ImageLimits
from deployments.records import EncodedPhoto, EncoderIdentity, EncoderState, SegmentedPhoto
from deployments.settings import HEALTH_CHECK_S, EncoderSettings, check_backend, display_name

# OpenAI's statistics of the training images, used where a model's folder doesn't bring its own.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
PREPROCESSING = "preprocessor_config.json"
# models/compact (6 MB) encodes one picture in 9 ms by one thread, in 14 by two that wait passively.
SMALL_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class EncoderFiles:
    """What is known of an encoder without loading it.

    Attributes:
        folder: where its files lie.
        identity: what its vectors are stamped with.
        image_size: side of the square picture it looks at, pixels.
        squash: how pictures become square: all of them squashed, or the centre square cut out.
        has_text: it has a text tower.
        is_small: one picture is through it before a second thread has woken up.
    """

    folder: Path
    identity: EncoderIdentity
    image_size: int
    squash: bool
    has_text: bool
    is_small: bool

    @property
    def state(self) -> EncoderState:
        """What `/stats` says of it."""
        return EncoderState(**asdict(self.identity), text=self.has_text)


def find_encoder(
    pretrained_model_name_or_path: str, *, backend: str = "torch", dtype: str = "auto"
) -> EncoderFiles:
    """Locate a CLIP model: a folder, or a name on the Hugging Face hub.

    Args:
        backend: what is to run its image tower, `torch` or `openvino`.
        dtype: the number format by name.

    Raises:
        ModelUnavailable: it is neither, can't be downloaded, isn't a CLIP model, wants its
            pictures scaled in a way that we can't, or the backend can't run it, or not in this
            number format.
    """
    folder = Path(pretrained_model_name_or_path)
    if not folder.is_dir():
        folder = hub_folder(pretrained_model_name_or_path)
    try:
        config = json.loads((folder / "config.json").read_text())
        has_text = config["model_type"] == "clip"
        vision = config["vision_config"] if has_text else config
        if config["model_type"] not in ("clip", "clip_vision_model"):
            raise KeyError(config["model_type"])
        dimension = config.get("projection_dim", 512)
        weights = next(
            folder / name
            for name in ("model.safetensors", "pytorch_model.bin")
            if (folder / name).is_file()
        )
        image_size = vision.get("image_size", 224)
    except (OSError, ValueError, KeyError, StopIteration) as error:
        raise ModelUnavailable(
            f"The encoder {pretrained_model_name_or_path!r} ({folder}) is not a CLIP model: it "
            "needs a config.json with model_type clip or clip_vision_model and a "
            f"model.safetensors ({type(error).__name__}: {error})."
        ) from None
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    identity = EncoderIdentity(display_name(pretrained_model_name_or_path), dimension, digest)
    if backend == "openvino":
        from deployments.compute.openvino import find_int8  # refused where it isn't installed

        if dtype == "int8":
            find_int8(identity.name, digest)
    squash, is_small = _squashes(folder, image_size), weights.stat().st_size < SMALL_BYTES
    return EncoderFiles(folder, identity, image_size, squash, has_text, is_small)


class Encoder:
    """CLIP's image tower and, where the model has one, its text tower.

    Args:
        pretrained_model_name_or_path: a hub name or a folder in the format of transformers.
        backend: what runs the image tower: `torch`, or `openvino` on the CPU. The text tower is
            run by torch.
        device: `auto`, `cpu` or `cuda[:n]`.
        dtype: `auto` (bfloat16 where the hardware computes in it), `float32`, `bfloat16`,
            `float16`, or, by OpenVINO, `int8`.
        batch_size: most pictures in one forward pass.

    Attributes:
        files: where it was found, and what is known of it.
        tower: the network of the pictures, as the backend runs it.

    Raises:
        ModelUnavailable: the model can't be found or downloaded.
        ValueError: an unknown backend, device or dtype, or one that doesn't go with another.
    """

    def __init__(
        self,
        pretrained_model_name_or_path: str = "openai/clip-vit-base-patch32",
        *,
        backend: str = "torch",
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = 16,
    ) -> None:
        check_backend(backend, device, dtype)
        self.backend = backend
        self.device = resolve_device("cpu" if backend == "openvino" else device)
        self.dtype = resolve_dtype(dtype, self.device)
        self.batch_size = batch_size
        self.files = find_encoder(pretrained_model_name_or_path, backend=backend)
        preprocessing = _read_preprocessing(self.files.folder)
        self._mean = torch.tensor(preprocessing.get("image_mean", CLIP_MEAN), device=self.device)
        self._std = torch.tensor(preprocessing.get("image_std", CLIP_STD), device=self.device)
        if backend == "openvino":
            from deployments.compute.openvino import CompiledNetwork, convert, read_int8

            if self.dtype == torch.int8:
                model = read_int8(self.files.identity.name, self.files.identity.digest)
            else:
                from deployments.encoder.clip import load_image_tower  # takes seconds: see there

                model = convert(load_image_tower(self.files, torch.float32), self.files.image_size)
            mean, std = self._mean.tolist(), self._std.tolist()
            self.tower = CompiledNetwork(model, self.dtype, mean, std)
        else:
            from deployments.encoder.clip import load_image_tower

            self.tower = load_image_tower(self.files, self.dtype).to(self.device)

    def encode_images(self, images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """Encode pictures.

        Args:
            images: uint8 `[height, width, 3]` each, RGB, of any size; or all in one array.

        Returns:
            float32 `[len(images), dimension]`, L2-normalised.
        """
        batches = [
            self._embed_images(images[start : start + self.batch_size])
            for start in range(0, len(images), self.batch_size)
        ]
        return np.concatenate([np.zeros((0, self.files.identity.dimension), np.float32), *batches])

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Encode texts into the space of the pictures; what is over the tower's length is cut.

        Returns:
            float32 `[len(texts), dimension]`, L2-normalised.

        Raises:
            BadParameter: the model has no text tower.
        """
        if not self.files.has_text:
            raise BadParameter(
                f"The encoder {self.files.identity.name} has no text tower: search by a picture, "
                "or set encoder.pretrained_model_name_or_path to a CLIP model that has one."
            )
        tokenizer, model = self._text_tower
        tokens = tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=model.config.max_position_embeddings,
            return_tensors="pt",
        )
        with torch.inference_mode():
            return _normalised(model(**tokens.to(self.device)).text_embeds)

    def preprocess(self, images: Sequence[np.ndarray] | np.ndarray) -> torch.Tensor:
        """Scale to a square and normalise, on the device, as the torch backend does.

        The same as transformers' `CLIPImageProcessor`, within 2 of 255 grey levels: the scaled
        pixels are rounded to whole levels in both, by different code. Squashed, a pixel in a
        thousand may differ by more, at sharp edges.

        Returns:
            float32 `[len(images), 3, image_size, image_size]`.
        """
        squares = self._squares(images)
        return ((squares.float() / 255 - self._mean) / self._std).permute(0, 3, 1, 2)

    def _squares(self, images: Sequence[np.ndarray] | np.ndarray) -> torch.Tensor:
        size = self.files.image_size
        if isinstance(images, np.ndarray) and images.shape[1:3] == (size, size):
            return upload(images, self.device)  # crops, at once
        return torch.stack(
            [
                scale_crop(
                    torch.as_tensor(image, device=self.device),
                    (0, 0, image.shape[1], image.shape[0]),
                    self.files.image_size,
                    self.files.squash,
                )
                for image in images
            ]
        )

    def _embed_images(self, images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            if self.backend == "openvino":  # which normalises the pixels itself
                return _normalised(self.tower(self._squares(images).permute(0, 3, 1, 2)))
            pixel_values = self.preprocess(images).to(self.dtype)
            return _normalised(self.tower(pixel_values=pixel_values).image_embeds)

    @cached_property
    def _text_tower(self) -> tuple:
        # Loaded when the first text comes: replicas that only index never pay for it.
        from deployments.encoder.clip import load_text_tower

        dtype = torch.float32 if self.dtype == torch.int8 else self.dtype  # int8 is for pictures
        tokenizer, tower = load_text_tower(self.files, dtype)
        return tokenizer, tower.to(self.device)


def _normalised(embeddings: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(embeddings.float(), dim=-1).cpu().numpy()


def _read_preprocessing(folder: Path) -> dict[str, Any]:
    """Return what a model's folder says of its pictures; nothing where CLIP's own ways hold."""
    file = folder / PREPROCESSING
    try:
        return json.loads(file.read_text()) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"{file} can't be read ({error}).") from None


def _squashes(folder: Path, image_size: int) -> bool:
    """Whether pictures are squashed to the square, in the words of transformers' CLIP.

    Raises:
        ModelUnavailable: neither that nor the centre square.
    """
    preprocessing = _read_preprocessing(folder)
    size, cropped = preprocessing.get("size"), preprocessing.get("do_center_crop", True)
    if size == {"height": image_size, "width": image_size}:
        return True  # and the centre square of a square is all of it
    if cropped and not (isinstance(size, dict) and "height" in size):
        return False
    raise ModelUnavailable(
        f"{folder / PREPROCESSING} has size {json.dumps(size)} and do_center_crop "
        f"{json.dumps(cropped)}: pictures can be scaled by their shortest_edge with "
        "do_center_crop, or all of them to "
        f'{{"height": {image_size}, "width": {image_size}}}, the image_size of config.json.'
    )


@serve.deployment(
    max_ongoing_requests=64,
    max_queued_requests=256,
    health_check_period_s=HEALTH_CHECK_S,
    ray_actor_options=COMPUTING_REPLICA,
)
class EncoderDeployment:
    """An `Encoder` behind batches limited by the number of crops.

    It is bound twice, for photos and for queries, so that a search doesn't wait behind the crops
    of the photos being indexed.

    Args:
        low_latency: be quick with one picture, rather than get through many.
    """

    def __init__(
        self, settings: EncoderSettings, limits: ImageLimits, low_latency: bool = False
    ) -> None:
        self.limits = limits
        # OpenVINO takes as many threads as torch has in the thread that loads it.
        with compute_threads(settings.threads) as loading:
            self.encoder = loading.submit(
                Encoder,
                settings.pretrained_model_name_or_path,
                backend=settings.backend,
                device=settings.device,
                dtype=settings.dtype,
                batch_size=settings.batch_size,
            ).result()
        threads, passes = settings.threads, 1
        if not low_latency:
            passes = passes_at_once(threads, settings.backend, self.encoder.device)
        elif self.encoder.files.is_small:
            threads = threads or 1
        self._threads = compute_threads(threads, passes)
        # The first forward pass is slow (memory, kernels): let it be no one's request.
        size = self.encoder.files.image_size
        self._threads.submit(
            self.encoder.encode_images, np.zeros((1, size, size, 3), np.uint8)
        ).result()
        options = {
            "at_once": passes,
            "wait_s": settings.batch_wait_ms / 1000,
            "max_batch_size": settings.batch_size,
        }
        self._encode_texts = batched(self._encode_texts_together, **options)
        self._encode_images = batched(
            self._encode_images_together,
            batch_size_fn=lambda items: sum(map(len, items)),
            **options,
        )

    async def encode_photo(self, photo: SegmentedPhoto) -> EncodedPhoto:
        """Replace a photo's crops by their vectors."""
        # serve.batch refuses an item that is larger than a batch.
        size = self.encoder.batch_size
        pieces = [photo.crops[start : start + size] for start in range(0, len(photo.crops), size)]
        vectors = await asyncio.gather(*map(self._encode_images, pieces))
        return EncodedPhoto(
            photo.width,
            photo.height,
            photo.media_type,
            photo.animated,
            photo.chunks,
            np.concatenate(vectors),
            photo.thumbnail,
        )

    async def encode_query(
        self, data: bytes, box: tuple[float, float, float, float] | None
    ) -> np.ndarray:
        """Encode a picture, or a part of it, as its crop would be: float32 `[dimension]`.

        Raises:
            BadParameter: the box lies outside the picture.
            TooLarge, NotAnImage, BrokenImage
        """
        crop = await asyncio.to_thread(self._cut_query, data, box)
        vectors = await self._encode_images(crop[np.newaxis])
        return vectors[0]

    async def encode_text(self, text: str) -> np.ndarray:
        """Encode a text: float32 `[dimension]`.

        Raises:
            BadParameter: the encoder has no text tower.
        """
        return await self._encode_texts(text)

    async def ping(self) -> None:
        """Answer, to show that it can."""

    def _cut_query(self, data: bytes, box: tuple[float, float, float, float] | None) -> np.ndarray:
        pixels = decode(data, self.limits).pixels
        height, width = pixels.shape[:2]
        if box is None:
            box = (0, 0, width, height)
        elif box[0] >= width or box[1] >= height or box[2] <= 0 or box[3] <= 0:
            raise BadParameter(
                f"The box {box} lies outside of the picture, which has {width} x {height} pixels."
            )
        files = self.encoder.files
        return scale_crop(torch.from_numpy(pixels), box, files.image_size, files.squash).numpy()

    async def _encode_images_together(self, crops: list[np.ndarray]) -> list[np.ndarray]:
        loop = asyncio.get_running_loop()
        vectors = await loop.run_in_executor(
            self._threads, self.encoder.encode_images, np.concatenate(crops)
        )
        return np.split(vectors, np.cumsum([len(item) for item in crops])[:-1])

    async def _encode_texts_together(self, texts: list[str]) -> list[np.ndarray]:
        loop = asyncio.get_running_loop()
        return list(await loop.run_in_executor(self._threads, self.encoder.encode_texts, texts))
