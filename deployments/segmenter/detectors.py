"""Loading a detector, of whichever kind it is."""

from __future__ import annotations

from deployments.compute.device import Placement
from deployments.segmenter.canvas_detectors import TorchScriptDetector, YoloV5Detector
from deployments.segmenter.detection import Detector
from deployments.segmenter.files import DetectorFiles
from deployments.segmenter.transformers_detector import TransformersDetector
from deployments.settings import SegmenterSettings

DETECTORS = {
    "yolov5": YoloV5Detector,
    "torchscript": TorchScriptDetector,
    "transformers": TransformersDetector,
}


def load_detector(
    files: DetectorFiles, settings: SegmenterSettings, placement: Placement
) -> Detector:
    """Load a detector.

    Args:
        files: of the detector, see `files.find_detector`.
        settings: of the segmenter: the detector's input size, batches and overlap of boxes.
        placement: what runs the network, and where.

    Raises:
        ModelUnavailable: it can't be used; says why.
    """
    return DETECTORS[files.kind](files.path, settings, placement)
