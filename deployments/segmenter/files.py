"""Find a detector's files, without loading it."""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deployments.compute.backends import require_backend
from deployments.compute.weights import YOLOV5_NAMES, hub_folder, sha256, yolov5_weights
from deployments.errors import ModelUnavailable
from deployments.segmenter.checkpoint import open_archive
from deployments.settings import SegmenterSettings


@dataclass(frozen=True, slots=True)
class DetectorFiles:
    """A detector on this machine.

    Attributes:
        path: its file, or the folder of a detector of transformers.
        kind: a YOLOv5 checkpoint, a TorchScript export of YOLOv5, or a detector of transformers.
    """

    path: Path
    kind: Literal["yolov5", "torchscript", "transformers"]


def find_detector(settings: SegmenterSettings) -> DetectorFiles:
    """Find a detector, and download it if necessary.

    `settings.model_name_or_path` is a pretrained YOLOv5 (`yolov5s`), a YOLOv5 checkpoint or
    TorchScript file, a folder with a detector of transformers, or the name of one on the Hugging
    Face hub (`organisation/model`).

    Raises:
        ModelUnavailable: there is no such model, it can't be downloaded, or the backend can't run
            it in this number format.
    """
    path = _find(settings.model_name_or_path)
    files = DetectorFiles(path, _kind(path))
    if settings.backend == "openvino" and files.kind != "yolov5":
        raise ModelUnavailable(
            f"backend: openvino runs YOLOv5 checkpoints only, but {settings.model_name_or_path} is "
            "not one: set segmenter.backend to torch."
        )
    require_backend(settings, path.stem, lambda: sha256(path))
    return files


def _kind(path: Path) -> Literal["yolov5", "torchscript", "transformers"]:
    if path.is_dir():
        return "transformers"
    return "torchscript" if is_torchscript(path) else "yolov5"


def _find(model_name_or_path: str) -> Path:
    if model_name_or_path in YOLOV5_NAMES:
        return yolov5_weights(model_name_or_path)
    path = Path(model_name_or_path).expanduser()
    if path.is_file() or (path / "config.json").is_file():
        return path
    if not path.exists() and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", model_name_or_path):
        return hub_folder(model_name_or_path)
    raise ModelUnavailable(
        f"There is no detector {model_name_or_path!r}: it is not one of {', '.join(YOLOV5_NAMES)}; "
        f"{path.absolute()} is neither a file nor a folder with a config.json; and it is not a "
        "hub name (organisation/model). Set segmenter.model_name_or_path to one of these."
    )


def is_torchscript(path: Path) -> bool:
    """Return whether a file is a TorchScript export, which contains code, or a checkpoint.

    Raises:
        ModelUnavailable: the file is not in PyTorch's zip format.
    """
    try:
        with open_archive(path) as archive:
            return any(name.split("/")[1:2] == ["code"] for name in archive.namelist())
    except zipfile.BadZipFile as error:
        raise ModelUnavailable(
            f"The model file {path} is damaged ({error}): replace it."
        ) from error
