"""YOLOv5 detectors, from a checkpoint or a TorchScript export. They see letterboxed images."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from deployments.compute.backends import Network, build_network
from deployments.compute.device import Placement
from deployments.compute.weights import sha256
from deployments.errors import ModelUnavailable, first_line
from deployments.segmenter.checkpoint import read_checkpoint
from deployments.segmenter.detection import Detections, equal_shapes, visible_detections
from deployments.segmenter.letterbox import (
    Letterbox,
    lay_on_canvases,
    letterbox,
    square_letterbox,
)
from deployments.segmenter.suppression import select
from deployments.segmenter.yolov5 import load_network
from deployments.settings import SegmenterSettings

# On a CPU, larger batches are slower: their activations don't fit into the cache, and the allocator
# returns such large blocks to the kernel after each layer.
CPU_BATCH = 4


class CanvasDetector:
    """Runs a network with YOLOv5's output on letterboxed images, in batches of equal canvases.

    Args:
        network: turns uint8 `[n, 3, h, w]` into float32 `[n, anchors, 5 + classes]`, see
            `YoloV5.forward`.
        place: returns the letterbox of an image with this height and width.
        names: the class names.
        settings: the segmenter's settings.
        device: the device to make the canvases on.
    """

    def __init__(
        self,
        network: Network,
        place: Callable[[int, int], Letterbox],
        names: Sequence[str],
        settings: SegmenterSettings,
        device: torch.device,
    ) -> None:
        self.network = network
        self.names = names
        self.batch_size = settings.batch_size
        if device.type == "cpu":
            self.batch_size = min(settings.batch_size, CPU_BATCH)
        self._place = place
        self._iou_threshold = settings.iou_threshold
        self._device = device

    @torch.inference_mode()
    def detect(
        self, images: Sequence[torch.Tensor], thresholds: Sequence[float]
    ) -> list[Detections]:
        """See `Detector.detect`."""
        places = [self._place(image.shape[0], image.shape[1]) for image in images]
        found: dict[int, Detections] = {}
        for indices in equal_shapes([place.canvas for place in places], self.batch_size):
            canvases = lay_on_canvases(
                [images[i] for i in indices], [places[i] for i in indices], self._device
            )
            # The permuted [n, h, w, 3] has the memory layout channels_last without a copy.
            predictions = self.network(canvases.permute(0, 3, 1, 2))
            selected = select(predictions, [thresholds[i] for i in indices], self._iou_threshold)
            for i, rows in zip(indices, selected, strict=True):
                boxes = places[i].boxes_on_image(rows[:, :4])
                classes = rows[:, 5].astype(int)
                found[i] = visible_detections(boxes, rows[:, 4], classes, self.names)
        return [found[i] for i in range(len(images))]


class YoloV5Detector(CanvasDetector):
    """Runs a YOLOv5 checkpoint on the smallest canvas that holds the scaled image.

    On a GPU it takes a square one, so that images of all shapes go through the network together:
    a GPU takes as long for one image as for many.

    Args:
        path: the `.pt` file.
        settings: the segmenter's settings.
        placement: what runs the network, and where.

    Raises:
        ModelUnavailable: the file can't be used; the message says why.
    """

    def __init__(self, path: Path, settings: SegmenterSettings, placement: Placement) -> None:
        checkpoint = read_checkpoint(path)
        stride = max(checkpoint.stride)

        def load(device: torch.device, dtype: torch.dtype) -> nn.Module:
            return load_network(checkpoint, device, dtype)

        fit = square_letterbox if placement.device.type == "cuda" else letterbox

        def place(height: int, width: int) -> Letterbox:
            return fit(height, width, settings.image_size, stride)

        network = build_network(
            load, placement, side=2 * stride, name=path.stem, digest=lambda: sha256(path)
        )
        super().__init__(network, place, checkpoint.names, settings, placement.device)


class TorchScriptDetector(CanvasDetector):
    """Runs a TorchScript export of YOLOv5, with a fixed square canvas and number format.

    Args:
        path: the `.torchscript` file. If it contains a `config.txt`, that gives the canvas and the
            class names.
        settings: the segmenter's settings; `image_size` is the side of the canvas if the file
            doesn't give it.
        placement: where the network runs.

    Raises:
        ModelUnavailable: the file can't be used; the message says why.
    """

    def __init__(self, path: Path, settings: SegmenterSettings, placement: Placement) -> None:
        extra = {"config.txt": ""}
        try:
            exported = torch.jit.load(path, map_location=placement.device, _extra_files=extra)
            config = json.loads(extra["config.txt"] or "{}")
            side = int(config.get("shape", [settings.image_size])[-1])
            names = _names(config.get("names", []))
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise ModelUnavailable(
                f"The TorchScript file {path} can't be used: {first_line(error)}."
            ) from error
        exported = exported.eval()
        dtype = next(exported.parameters(), torch.empty(0)).dtype  # part of the export

        def predict(batch: torch.Tensor) -> torch.Tensor:
            output = exported(batch.to(dtype) / 255)
            prediction = output if isinstance(output, torch.Tensor) else output[0]
            return prediction.float()

        def place(height: int, width: int) -> Letterbox:
            return square_letterbox(height, width, side)

        super().__init__(predict, place, names, settings, placement.device)


def _names(names: list[str] | dict[str, str]) -> list[str]:
    """Return class names by index, from a JSON list or a JSON object whose keys are indices."""
    return [names[str(i)] for i in range(len(names))] if isinstance(names, dict) else names
