"""The encoder: turns crops, queries and texts into vectors, with CLIP's two towers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from deployments.compute.backends import build_network
from deployments.compute.crops import scale_crop
from deployments.compute.device import download, move, place
from deployments.encoder.files import find_encoder
from deployments.errors import BadParameter, InsetError
from deployments.settings import EncoderSettings

logger = logging.getLogger(__name__)

# How far the squared length of a vector may be from 1.
LENGTH_TOLERANCE = 0.01


class Encoder:
    """Encodes images with CLIP's image tower, and texts with its text tower if it has one.

    Args:
        settings: the model, and what runs its image tower. The text tower always runs in torch.
        passes: how many passes of the image tower run at the same time.

    Attributes:
        files: the model's files and properties.
        placement: what runs the image tower, and where.
        tower: the image tower; turns uint8 `[n, 3, image_size, image_size]` into vectors.

    Raises:
        ModelUnavailable: the model can't be found, downloaded or run.
    """

    def __init__(
        self,
        settings: EncoderSettings = EncoderSettings(),  # noqa: B008  (frozen)
        *,
        passes: int = 1,
    ) -> None:
        self.settings = settings
        self.placement = place(settings, passes)
        self.files = find_encoder(settings)

        def load(device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
            from deployments.encoder.clip import load_image_tower  # takes seconds

            return load_image_tower(self.files, dtype).to(device)

        self.tower = build_network(
            load,
            self.placement,
            side=self.files.image_size,
            name=self.files.identity.name,
            digest=lambda: self.files.identity.digest,
            mean=self.files.mean,
            std=self.files.std,
        )

    def encode_images(self, images: Sequence[np.ndarray] | np.ndarray | torch.Tensor) -> np.ndarray:
        """Encode images.

        Args:
            images: uint8 `[height, width, 3]` each, RGB, of any size; or one array of all; or a
                tensor on any device.

        Returns:
            float32 `[len(images), dimension]`, L2-normalised.

        Raises:
            InsetError: an image has no usable vector, see `_checked`.
        """
        return _result_of(self._checked(self._embed_images(images), "pictures"))

    def encode_photos(self, crops: Sequence[torch.Tensor]) -> list[np.ndarray | InsetError]:
        """Encode the crops of several photos together.

        Args:
            crops: of each photo uint8 `[n, image_size, image_size, 3]`, on one device.

        Returns:
            One result for each photo, in order: the vectors of its crops, or its error. An error
            doesn't affect the other photos.
        """
        if not crops:
            return []
        vectors = self._embed_images(torch.cat(list(crops)))
        ends = np.cumsum([len(of_photo) for of_photo in crops])
        return [self._checked(of_photo, "pictures") for of_photo in np.split(vectors, ends[:-1])]

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Encode texts, into the same space as images. Texts beyond the tower's length are cut.

        Returns:
            float32 `[len(texts), dimension]`, L2-normalised.

        Raises:
            BadParameter: the model has no text tower.
            InsetError: a text has no usable vector.
            EncoderMismatch: the model's files are others than when the image tower was loaded.
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
            embeds = model(**tokens.to(self.placement.device)).text_embeds
            (vectors,) = download([_normalised(embeds)])
        return _result_of(self._checked(vectors, "texts"))

    def squares(self, images: Sequence[np.ndarray] | np.ndarray | torch.Tensor) -> torch.Tensor:
        """Scale images to the input of the image tower.

        Returns:
            uint8 `[len(images), 3, image_size, image_size]` on the device.
        """
        size = self.files.image_size
        if isinstance(images, np.ndarray):
            images = torch.from_numpy(images)
        if isinstance(images, torch.Tensor) and images.shape[1:3] == (size, size):
            pixels = move(images, self.placement.device)  # crops, which have this size already
        else:
            pixels = torch.stack(
                [
                    scale_crop(
                        torch.as_tensor(image, device=self.placement.device),
                        (0, 0, image.shape[1], image.shape[0]),
                        size,
                        self.files.squash,
                    )
                    for image in images
                ]
            )
        return pixels.permute(0, 3, 1, 2)

    @torch.inference_mode()
    def _embed_images(self, images: Sequence[np.ndarray] | np.ndarray | torch.Tensor) -> np.ndarray:
        batch_size = self.settings.batch_size
        batches = [torch.zeros(0, self.files.identity.dimension)]
        for start in range(0, len(images), batch_size):
            squares = self.squares(images[start : start + batch_size])
            batches.append(_normalised(self.tower(squares)))
        return np.concatenate(download(batches))

    def _checked(self, vectors: np.ndarray, what: str) -> np.ndarray | InsetError:
        """Return vectors, or the error of whoever asked for them if some can't be compared.

        Where numbers overflow, as in float16, a vector is not finite; if all become 0, it is 0.
        """
        usable = np.abs((vectors * vectors).sum(1) - 1) < LENGTH_TOLERANCE  # False for NaN
        if usable.all():
            return vectors
        error = InsetError(
            f"The encoder {self.files.identity.name} computes no usable vector of "
            f"{np.count_nonzero(~usable)} of {len(usable)} {what}, in {self.placement.dtype}. "
            "Nothing is wrong with the request. If it happens again, whoever runs the service "
            "should set encoder.dtype to float32."
        )
        logger.error("%s", error)
        return error

    @cached_property
    def _text_tower(self) -> tuple[Any, Any]:
        # Loaded for the first text, so that replicas that only index don't load it.
        from deployments.encoder.clip import load_text_tower

        find_encoder(self.settings).require_same_as(self.files)  # they may have been replaced
        dtype = self.placement.dtype
        if dtype == torch.int8:  # only the image tower runs in int8
            dtype = torch.float32
        tokenizer, tower = load_text_tower(self.files, dtype)
        torch.nn.Module.to(tower, self.placement.device)  # the types of its own `to` are wrong
        return tokenizer, tower


def _result_of(outcome: np.ndarray | InsetError) -> np.ndarray:
    if isinstance(outcome, InsetError):
        raise outcome
    return outcome


def _normalised(embeddings: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(embeddings.float(), dim=-1)
