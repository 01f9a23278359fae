"""Object detectors: pictures in, labelled boxes out, whatever the network behind."""

from __future__ import annotations

import json
import re
import zipfile
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from deployments.compute.images import MAX_ASPECT
from deployments.compute.weights import YOLOV5_NAMES, hub_folder, sha256, yolov5_weights
from deployments.errors import ModelUnavailable
from deployments.segmenter.checkpoint import open_archive, read_checkpoint
from deployments.segmenter.suppression import select, suppress
from deployments.segmenter.yolov5 import (
    PADDING_GREY,
    Letterbox,
    lay_on_canvases,
    letterbox,
    load_network,
    square_letterbox,
)

# On a CPU larger batches are slower: their activations leave the cache, and the allocator gives
# such large blocks back to the kernel after each layer.
CPU_BATCH = 4


@dataclass(frozen=True, slots=True)
class Detections:
    """What was found in one image.

    Attributes:
        boxes: float32 `[n, 4]`, x1, y1, x2, y2 in pixels of the image, inside it.
        confidences: float32 `[n]`, 0 to 1, most confident first.
        labels: the class name of each.
    """

    boxes: np.ndarray
    confidences: np.ndarray
    labels: list[str]


class Detector(Protocol):
    """Any object detector."""

    def detect(
        self, images: Sequence[torch.Tensor], thresholds: Sequence[float]
    ) -> list[Detections]:
        """Find objects.

        Args:
            images: uint8 `[height, width, 3]`, RGB, upright; of any sizes, on any devices.
            thresholds: for each image, what a detection's confidence must exceed.

        Returns:
            One `Detections` for each image, in order; none depends on the other images.
        """


class YoloV5Detector:
    """A YOLOv5 checkpoint, run on the smallest canvas that holds the scaled image.

    Args:
        path: the `.pt` file.
        image_size: what the longer side of an image is scaled to, pixels.
        iou_threshold: overlap from which the less confident of two boxes of a class is dropped.
        batch_size: images of equal canvas that are run together at most.
        backend: what runs the network, `torch` or `openvino`.

    Raises:
        ModelUnavailable: the file can't be used; says why.
    """

    def __init__(
        self,
        path: Path,
        *,
        image_size: int,
        iou_threshold: float,
        batch_size: int,
        device: torch.device,
        dtype: torch.dtype,
        backend: str = "torch",
    ) -> None:
        checkpoint = read_checkpoint(path)
        self.stride = max(checkpoint.stride)
        if backend == "openvino":
            from deployments.compute.openvino import CompiledNetwork, convert, read_int8

            if dtype == torch.int8:
                model = read_int8(path.stem, sha256(path))
            else:
                model = convert(load_network(checkpoint, device, torch.float32), 2 * self.stride)
            self.network = CompiledNetwork(model, dtype)
        else:
            self.network = load_network(checkpoint, device, dtype)
        self.names = checkpoint.names
        self.image_size = image_size
        self.iou_threshold = iou_threshold
        self.batch_size = batch_size
        self.device = device

    @torch.inference_mode()
    def detect(
        self, images: Sequence[torch.Tensor], thresholds: Sequence[float]
    ) -> list[Detections]:
        """See `Detector.detect`."""
        places = [letterbox(*image.shape[:2], self.image_size, self.stride) for image in images]
        return _detect_on_canvases(
            self.network, images, places, thresholds, self.names, self.iou_threshold,
            self.batch_size, self.device,
        )  # fmt: skip


class TorchScriptDetector:
    """YOLOv5 as exported to TorchScript: one fixed square canvas.

    Args:
        path: the `.torchscript` file. Its `config.txt`, where there is one, says the canvas and
            the class names.
        image_size: side of the canvas, pixels, where the file doesn't say it.
        iou_threshold: overlap from which the less confident of two boxes of a class is dropped.
        batch_size: images that are run together at most.

    Raises:
        ModelUnavailable: the file can't be used; says why.
    """

    def __init__(
        self, path: Path, *, image_size: int, iou_threshold: float, batch_size: int,
        device: torch.device,
    ) -> None:  # fmt: skip
        extra = {"config.txt": ""}
        try:
            self.network = torch.jit.load(path, map_location=device, _extra_files=extra).eval()
            config = json.loads(extra["config.txt"] or "{}")
            self.image_size = int(config.get("shape", [image_size])[-1])
            self.names = _names(config.get("names", []))
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise ModelUnavailable(
                f"The TorchScript file {path} can't be used: {_first_line(error)}."
            ) from error
        self.iou_threshold = iou_threshold
        self.batch_size = batch_size
        self.device = device
        weights = next(self.network.parameters(), torch.empty(0))
        self.dtype = weights.dtype  # the number format is part of the export

    @torch.inference_mode()
    def detect(
        self, images: Sequence[torch.Tensor], thresholds: Sequence[float]
    ) -> list[Detections]:
        """See `Detector.detect`."""
        places = [square_letterbox(*image.shape[:2], self.image_size) for image in images]
        return _detect_on_canvases(
            self._predict, images, places, thresholds, self.names, self.iou_threshold,
            self.batch_size, self.device,
        )  # fmt: skip

    def _predict(self, batch: torch.Tensor) -> torch.Tensor:
        output = self.network(batch.to(self.dtype) / 255)
        prediction = output if isinstance(output, torch.Tensor) else output[0]
        return prediction.float()


def _names(names: list[str] | dict[str, str]) -> list[str]:
    """Return class names by index, whether a JSON list or an object with indices for keys."""
    return [names[str(i)] for i in range(len(names))] if isinstance(names, dict) else names


def _detect_on_canvases(
    predict: Callable[[torch.Tensor], torch.Tensor],
    images: Sequence[torch.Tensor],
    places: list[Letterbox],
    thresholds: Sequence[float],
    names: list[str],
    iou_threshold: float,
    batch_size: int,
    device: torch.device,
) -> list[Detections]:
    """Run a network with YOLOv5's output on letterboxed images, those of equal canvas together."""
    if device.type == "cpu":
        batch_size = min(batch_size, CPU_BATCH)
    found: dict[int, Detections] = {}
    for indices in _batches([place.canvas for place in places], batch_size):
        canvases = lay_on_canvases(
            [images[i] for i in indices], [places[i] for i in indices], device
        )
        # Permuted, [n, h, w, 3] already lies in memory as channels_last wants it.
        predictions = predict(canvases.permute(0, 3, 1, 2))
        selected = select(predictions, [thresholds[i] for i in indices], iou_threshold)
        for i, rows in zip(indices, selected, strict=True):
            boxes = places[i].boxes_on_image(rows[:, :4])
            found[i] = _detections(boxes, rows[:, 4], rows[:, 5].astype(int), names)
    return [found[i] for i in range(len(images))]


def _batches(shapes: Sequence[Hashable], batch_size: int) -> Iterator[list[int]]:
    """Yield the indices of equal shapes together, at most `batch_size` at a time."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, shape in enumerate(shapes):
        groups[shape].append(index)
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def _detections(
    boxes: np.ndarray, confidences: np.ndarray, classes: np.ndarray, names: list[str]
) -> Detections:
    """Return what stayed, without the boxes that lie beside the image."""
    visible = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    labels = [names[c] if c < len(names) else str(c) for c in classes[visible].tolist()]
    return Detections(boxes[visible], confidences[visible], labels)


class TransformersDetector:
    """Any object detector that transformers' `AutoModelForObjectDetection` knows.

    The model's own image processor decides the size of its input.

    Args:
        folder: holds `config.json`, `preprocessor_config.json` and the weights. No code in it is
            ever run.
        iou_threshold: overlap from which the less confident of two boxes of a class is dropped.
        batch_size: images of equal input size that are run together at most.

    Raises:
        ModelUnavailable: the folder can't be used; says why.
    """

    def __init__(
        self, folder: Path, *, iou_threshold: float, batch_size: int,
        device: torch.device, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        # Imported here: YOLOv5 needs none of it, and it takes seconds.
        from transformers import AutoImageProcessor, AutoModelForObjectDetection

        only_local = {"local_files_only": True, "trust_remote_code": False}
        try:
            # The other kind of processor needs torchvision.
            self.processor = AutoImageProcessor.from_pretrained(folder, backend="pil", **only_local)
            network = AutoModelForObjectDetection.from_pretrained(folder, dtype=dtype, **only_local)
        except (OSError, ValueError, ImportError, RuntimeError, KeyError, TypeError) as error:
            raise ModelUnavailable(
                f"The detector in {folder} can't be loaded: {_first_line(error)}."
            ) from error
        self.network = network.eval().requires_grad_(False).to(device)
        self.names = self.network.config.id2label
        self.iou_threshold = iou_threshold
        self.batch_size = batch_size
        self.device = device
        self.dtype = dtype

    @torch.inference_mode()
    def detect(
        self, images: Sequence[torch.Tensor], thresholds: Sequence[float]
    ) -> list[Detections]:
        """See `Detector.detect`."""
        # One by one: processed together, the small ones would be padded to the largest.
        padded = [_less_oblong(image.cpu().numpy()) for image in images]
        inputs = [
            self.processor(image, return_tensors="pt", input_data_format="channels_last")
            for image in padded
        ]
        found: dict[int, Detections] = {}
        shapes = [one["pixel_values"].shape for one in inputs]
        for indices in _batches(shapes, self.batch_size):
            outputs = self._run([inputs[i] for i in indices])
            sizes = [padded[i].shape[:2] for i in indices]
            lowest = min(thresholds[i] for i in indices)
            results = self.processor.post_process_object_detection(
                outputs, threshold=lowest, target_sizes=sizes
            )
            for i, result in zip(indices, results, strict=True):
                found[i] = self._select(result, images[i].shape[:2], thresholds[i])
        return [found[i] for i in range(len(images))]

    def _run(self, inputs: list[dict[str, torch.Tensor]]) -> object:
        names = [name for name in ("pixel_values", "pixel_mask") if name in inputs[0]]
        batch = {name: torch.cat([one[name] for one in inputs]).to(self.device) for name in names}
        batch["pixel_values"] = batch["pixel_values"].to(self.dtype)
        outputs = self.network(**batch)
        outputs.logits = outputs.logits.float()
        outputs.pred_boxes = outputs.pred_boxes.float()
        return outputs

    def _select(
        self, result: dict[str, torch.Tensor], size: tuple[int, int], threshold: float
    ) -> Detections:
        confidences, classes, boxes = (result[key].cpu() for key in ("scores", "labels", "boxes"))
        order = confidences.sort(descending=True, stable=True).indices
        order = order[confidences[order] > threshold]
        confidences, classes, boxes = confidences[order], classes[order], boxes[order]
        height, width = size
        boxes = boxes.clamp(torch.zeros(4), torch.tensor([width, height, width, height]).float())
        kept = suppress(boxes[None], classes[None], self.iou_threshold)[0]
        names = [self.names[i] for i in range(len(self.names))]
        return _detections(
            boxes[kept].numpy(), confidences[kept].numpy(), classes[kept].numpy(), names
        )


def _less_oblong(image: np.ndarray) -> np.ndarray:
    """Pad an image that is very long for its width, at the right or below.

    Image processors scale both sides by one factor: a strip's short side would get no pixels.
    """
    height, width = image.shape[:2]
    least = -(-max(height, width) // MAX_ASPECT)
    missing = (max(0, least - height), max(0, least - width))
    if missing == (0, 0):
        return image
    padding = ((0, missing[0]), (0, missing[1]), (0, 0))
    return np.pad(image, padding, constant_values=PADDING_GREY)


def find_detector(model_name_or_path: str, *, backend: str = "torch", dtype: str = "auto") -> Path:
    """Return the file or folder of a detector, downloaded if need be.

    Args:
        model_name_or_path: a pretrained YOLOv5 (`yolov5s`), a YOLOv5 checkpoint or TorchScript
            file, a folder with a transformers detector, or the name of one on the Hugging Face
            hub (`organisation/model`).
        backend: what is to run it, `torch` or `openvino`.
        dtype: the number format by name.

    Raises:
        ModelUnavailable: there is no such model, it can't be downloaded, or the backend can't run
            it, or not in this number format.
    """
    path = _find(model_name_or_path)
    if backend == "openvino":
        from deployments.compute.openvino import find_int8  # refused where it isn't installed

        if path.is_dir() or is_torchscript(path):
            raise ModelUnavailable(
                f"backend: openvino runs YOLOv5 checkpoints only, and {model_name_or_path} is "
                "none: set segmenter.backend to torch."
            )
        if dtype == "int8":
            find_int8(path.stem, sha256(path))
    return path


def _find(model_name_or_path: str) -> Path:
    if model_name_or_path in YOLOV5_NAMES:
        return yolov5_weights(model_name_or_path)
    path = Path(model_name_or_path).expanduser()
    if path.is_file() or (path / "config.json").is_file():
        return path
    if not path.exists() and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", model_name_or_path):
        return hub_folder(model_name_or_path)
    raise ModelUnavailable(
        f"There is no detector {model_name_or_path!r}: it is none of {', '.join(YOLOV5_NAMES)}, "
        f"no file and no folder with a config.json at {path.absolute()}, and no hub name "
        "(organisation/model); name one of these."
    )


def load_detector(
    model_name_or_path: str,
    *,
    image_size: int,
    iou_threshold: float,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
    backend: str = "torch",
) -> Detector:
    """Load a detector by name or path.

    Args:
        model_name_or_path: see `find_detector`.
        image_size: side of YOLOv5's input, pixels.
        iou_threshold: overlap from which the less confident of two boxes of a class is dropped.
        batch_size: images that are run together at most.
        backend: what runs it, see `find_detector`.

    Raises:
        ModelUnavailable: there is no such model, or it can't be used; says why.
    """
    path = find_detector(model_name_or_path, backend=backend)
    common = {"iou_threshold": iou_threshold, "batch_size": batch_size, "device": device}
    if path.is_dir():
        return TransformersDetector(path, dtype=dtype, **common)
    if is_torchscript(path):
        return TorchScriptDetector(path, image_size=image_size, **common)
    return YoloV5Detector(path, image_size=image_size, dtype=dtype, backend=backend, **common)


def is_torchscript(path: Path) -> bool:
    """Tell an exported network (it carries its code) from a checkpoint.

    Raises:
        ModelUnavailable: neither; not in PyTorch's zip format.
    """
    try:
        with open_archive(path) as archive:
            return any(name.split("/")[1:2] == ["code"] for name in archive.namelist())
    except zipfile.BadZipFile as error:
        raise ModelUnavailable(f"The model file {path} is damaged: {error}.") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
