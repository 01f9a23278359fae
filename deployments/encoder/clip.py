"""CLIP's two towers, loaded by transformers.

Importing transformers takes seconds and a hundred megabytes. So this module is imported only where
a model is loaded, and not in the process that builds the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers import CLIPTextModelWithProjection as CLIPText
from transformers import CLIPVisionModelWithProjection as CLIPVision
from transformers.utils import logging as transformers_logging

from deployments.encoder.files import EncoderFiles
from deployments.errors import ModelUnavailable

Tower = TypeVar("Tower", bound=PreTrainedModel)


class ImageTower(torch.nn.Module):
    """The image tower, which normalises its input first.

    Args:
        network: transformers' image tower.
        mean, std: mean and standard deviation of each input channel, on a scale from 0 to 1.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: CLIPVision, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        # Always float32: in half precision, pixels would lose half a grey level.
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalise pixels, uint8 `[n, 3, h, w]` to float32 of the same shape.

        Together with `Encoder.squares` this equals transformers' `CLIPImageProcessor` within 2 of
        255 grey levels: both round the scaled pixels to whole levels, by different code. If the
        image is squashed, one pixel in a thousand may differ by more, at sharp edges.
        """
        return (pixels.float() / 255 - self.mean) / self.std

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the vectors of pixels `[n, 3, h, w]`: `[n, dimension]`, not yet normalised.

        Args:
            pixels: uint8, or float32 as `normalise` returns it.
        """
        values = self.normalise(pixels) if pixels.dtype == torch.uint8 else pixels
        return self.network(pixel_values=values.to(self.network.dtype)).image_embeds


def load_image_tower(files: EncoderFiles, dtype: torch.dtype) -> ImageTower:
    """Load the image tower, on the CPU.

    Raises:
        ModelUnavailable: the weights can't be read, or some are missing.
    """
    return ImageTower(_load(files, CLIPVision, dtype), files.mean, files.std)


def load_text_tower(
    files: EncoderFiles, dtype: torch.dtype
) -> tuple[PreTrainedTokenizerBase, CLIPText]:
    """Load the tokenizer and the text tower, on the CPU.

    Raises:
        ModelUnavailable: the weights can't be read, or some are missing.
    """
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(files.folder)
    return tokenizer, _load(files, CLIPText, dtype)


def _load(files: EncoderFiles, model_class: type[Tower], dtype: torch.dtype) -> Tower:
    # A file may hold two towers, and transformers would report the weights of the other one as
    # unexpected at every start. Missing ones are checked below.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    config = AutoConfig.from_pretrained(files.folder, local_files_only=True)
    if files.has_text:
        # The dimension is shared, so a tower's own section of the config doesn't have it.
        tower = config.text_config if model_class is CLIPText else config.vision_config
        tower.projection_dim = config.projection_dim
        config = tower
    try:
        # With `output_loading_info` it returns a pair, which its types don't say.
        loaded: Any = model_class.from_pretrained(
            files.folder,
            config=config,
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise ModelUnavailable(f"The encoder in {files.folder} can't be loaded: {error}") from error
    model: Tower
    model, report = loaded
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"]))
        raise ModelUnavailable(f"The encoder in {files.folder} lacks weights: {missing}.")
    model.eval()
    return model
