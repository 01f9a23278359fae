"""The object detectors of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from deployments.compute.crops import MAX_ASPECT
from deployments.compute.device import Placement
from deployments.errors import ModelUnavailable, first_line
from deployments.segmenter.detection import Detections, equal_shapes, visible_detections
from deployments.segmenter.letterbox import PADDING_GREY
from deployments.segmenter.suppression import suppress
from deployments.settings import SegmenterSettings


class TransformersDetector:
    """Runs any object detector that transformers' `AutoModelForObjectDetection` loads.

    The model's own image processor chooses the size of its input.

    Args:
        folder: has `config.json`, `preprocessor_config.json` and the weights. No code in it is
            ever run.
        settings: the segmenter's settings.
        placement: where the network runs.

    Raises:
        ModelUnavailable: the folder can't be used; the message says why.
    """

    def __init__(self, folder: Path, settings: SegmenterSettings, placement: Placement) -> None:
        # Imported here because it takes seconds, and YOLOv5 doesn't need it.
        from transformers import AutoImageProcessor, AutoModelForObjectDetection

        only_local = {"local_files_only": True, "trust_remote_code": False}
        try:
            # The other backend of processors needs torchvision.
            self.processor = AutoImageProcessor.from_pretrained(folder, backend="pil", **only_local)
            network = AutoModelForObjectDetection.from_pretrained(
                folder, dtype=placement.dtype, **only_local
            )
        except (OSError, ValueError, ImportError, RuntimeError, KeyError, TypeError) as error:
            raise ModelUnavailable(
                f"The detector in {folder} can't be loaded: {first_line(error)}."
            ) from error
        self.network = network.eval().requires_grad_(False).to(placement.device)
        self.names = self.network.config.id2label
        self.settings = settings
        self.placement = placement

    @torch.inference_mode()
    def detect(
        self, images: Sequence[torch.Tensor], thresholds: Sequence[float]
    ) -> list[Detections]:
        """See `Detector.detect`."""
        # One at a time, because the processor would pad the images of a batch to the largest one.
        padded = [_limit_aspect(image.cpu().numpy()) for image in images]
        inputs = [
            self.processor(image, return_tensors="pt", input_data_format="channels_last")
            for image in padded
        ]
        found: dict[int, Detections] = {}
        shapes = [one["pixel_values"].shape for one in inputs]
        for indices in equal_shapes(shapes, self.settings.batch_size):
            outputs = self._run([inputs[i] for i in indices])
            sizes = [padded[i].shape[:2] for i in indices]
            lowest = min(thresholds[i] for i in indices)
            results = self.processor.post_process_object_detection(
                outputs, threshold=lowest, target_sizes=sizes
            )
            for i, result in zip(indices, results, strict=True):
                found[i] = self._select(result, images[i].shape, thresholds[i])
        return [found[i] for i in range(len(images))]

    def _run(self, inputs: list[dict[str, torch.Tensor]]) -> object:
        names = [name for name in ("pixel_values", "pixel_mask") if name in inputs[0]]
        batch = {
            name: torch.cat([one[name] for one in inputs]).to(self.placement.device)
            for name in names
        }
        batch["pixel_values"] = batch["pixel_values"].to(self.placement.dtype)
        outputs = self.network(**batch)
        outputs.logits = outputs.logits.float()
        outputs.pred_boxes = outputs.pred_boxes.float()
        return outputs

    def _select(
        self, result: dict[str, torch.Tensor], shape: Sequence[int], threshold: float
    ) -> Detections:
        confidences, classes, boxes = (result[key].cpu() for key in ("scores", "labels", "boxes"))
        order = confidences.sort(descending=True, stable=True).indices
        order = order[confidences[order] > threshold]
        confidences, classes, boxes = confidences[order], classes[order], boxes[order]
        height, width, _ = shape
        boxes = boxes.clamp(torch.zeros(4), torch.tensor([width, height, width, height]).float())
        kept = suppress(boxes[None], classes[None], self.settings.iou_threshold)[0]
        names = [self.names[i] for i in range(len(self.names))]
        return visible_detections(
            boxes[kept].numpy(), confidences[kept].numpy(), classes[kept].numpy(), names
        )


def _limit_aspect(image: np.ndarray) -> np.ndarray:
    """Pad a very oblong image, at the right or at the bottom, to an aspect of `MAX_ASPECT`.

    Image processors scale both sides by one factor, so a strip's short side would vanish.
    """
    height, width = image.shape[:2]
    least = -(-max(height, width) // MAX_ASPECT)
    missing = (max(0, least - height), max(0, least - width))
    if missing == (0, 0):
        return image
    padding = ((0, missing[0]), (0, missing[1]), (0, 0))
    return np.pad(image, padding, constant_values=PADDING_GREY)
