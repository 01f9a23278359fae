"""Load a detector of any kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from deployments.compute.device import Placement
from deployments.segmenter.canvas_detectors import TorchScriptDetector, YoloV5Detector
from deployments.segmenter.detection import Detector
from deployments.segmenter.files import DetectorFiles
from deployments.segmenter.transformers_detector import TransformersDetector
from deployments.settings import SegmenterSettings

DETECTORS: dict[str, Callable[[Path, SegmenterSettings, Placement], Detector]] = {
    "yolov5": YoloV5Detector,
    "torchscript": TorchScriptDetector,
    "transformers": TransformersDetector,
}


def load_detector(
    files: DetectorFiles, settings: SegmenterSettings, placement: Placement
) -> Detector:
    """Load a detector.

    Args:
        files: the detector's files, see `files.find_detector`.
        settings: the segmenter's settings, among them input size, batch size and overlap of boxes.
        placement: what runs the network, and where.

    Raises:
        ModelUnavailable: the detector can't be used; the message says why.
    """
    return DETECTORS[files.kind](files.path, settings, placement)
