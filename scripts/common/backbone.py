"""YOLOv5s's backbone as an encoder: trained on photos, with weights that the service has anyway."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from deployments.compute.weights import yolov5_weights
from deployments.segmenter.checkpoint import read_checkpoint
from deployments.segmenter.yolov5 import load_network

SIDE = 128  # of its input, pixels


class Backbone:
    """The means of the feature maps at strides 8, 16 and 32.

    Raises:
        ModelUnavailable: the weights are not available.
    """

    def __init__(self) -> None:
        checkpoint = read_checkpoint(yolov5_weights("yolov5s"))
        self.network = load_network(checkpoint, torch.device("cpu"), torch.float32)
        self.means: list[torch.Tensor] = []
        for layer in (4, 6, 9):  # the ends of the stages at strides 8, 16 and 32
            self.network.model[layer].register_forward_hook(self._remember)

    def _remember(self, module: torch.nn.Module, args: Any, output: torch.Tensor) -> None:
        self.means.append(output.mean((2, 3)))

    @torch.inference_mode()
    def __call__(self, crops: np.ndarray) -> np.ndarray:
        """Embed uint8 `[n, SIDE, SIDE, 3]`: float32 `[n, 896]`, of any length."""
        self.means.clear()
        self.network(torch.from_numpy(crops).permute(0, 3, 1, 2))
        return torch.cat(self.means, 1).numpy()


def unit(vectors: np.ndarray) -> np.ndarray:
    """L2-normalise the last axis."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
