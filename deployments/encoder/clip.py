"""CLIP's two towers, as transformers loads them.

Importing transformers costs seconds and a hundred megabytes, so this is imported where a model is
loaded, and not by what only has to know which model it is: the process that builds the graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers import CLIPTextModelWithProjection as CLIPText
from transformers import CLIPVisionModelWithProjection as CLIPVision
from transformers.utils import logging as transformers_logging

from deployments.errors import ModelUnavailable

if TYPE_CHECKING:
    from deployments.encoder.encoder import EncoderFiles

# A file may hold two towers: transformers would list the weights of the other one as unexpected at
# every start. Missing ones are looked for in `_load`.
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


def load_image_tower(files: EncoderFiles, dtype: torch.dtype) -> CLIPVision:
    """Load the tower of the pictures, on the CPU.

    Raises:
        ModelUnavailable: the weights can't be read, or some are missing.
    """
    return _load(files, CLIPVision, dtype)


def load_text_tower(
    files: EncoderFiles, dtype: torch.dtype
) -> tuple[PreTrainedTokenizerBase, CLIPText]:
    """Load the tokenizer and the tower of the texts, on the CPU.

    Raises:
        ModelUnavailable: the weights can't be read, or some are missing.
    """
    return AutoTokenizer.from_pretrained(files.folder), _load(files, CLIPText, dtype)


def _load(
    files: EncoderFiles, model_class: type[PreTrainedModel], dtype: torch.dtype
) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(files.folder, local_files_only=True)
    if files.has_text:
        # A tower read from a whole CLIP takes its own section, but not the shared dimension.
        tower = config.text_config if model_class is CLIPText else config.vision_config
        tower.projection_dim = config.projection_dim
        config = tower
    try:
        model, report = model_class.from_pretrained(
            files.folder,
            config=config,
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise ModelUnavailable(f"The encoder in {files.folder} can't be loaded: {error}") from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"]))
        raise ModelUnavailable(f"The encoder in {files.folder} lacks weights: {missing}.")
    return model.eval()
