"""Calibrate the networks that serve_config.yaml wants in int8, on photos of your own.

    scripts/quantize.py FOLDER... [--config serve_config.yaml]

In int8 OpenVINO computes with 8 bits a number, and the steps between them must fit the numbers that
occur: so the networks look at what they will see, photos laid on the detector's canvas, and crops
as the segmenter cuts them. The result lies in the cache folder under the digest of the weights,
where `backend: openvino` with `dtype: int8` finds it.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from common.paths import ROOT
from index import find_images
from tqdm import tqdm

from deployments.compute.images import decode
from deployments.compute.weights import sha256
from deployments.encoder.encoder import Encoder
from deployments.errors import InsetError, ModelUnavailable, StartupError
from deployments.segmenter.checkpoint import read_checkpoint
from deployments.segmenter.detectors import find_detector
from deployments.segmenter.segmenter import Segmenter
from deployments.segmenter.yolov5 import lay_on_canvases, letterbox, load_network
from deployments.settings import SegmenterSettings, Settings

try:
    # First, because it keeps NNCF quiet.
    from deployments.compute.openvino import convert, write_int8  # isort: skip
    import nncf
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet
except (ImportError, ModelUnavailable) as error:
    sys.exit(
        "Quantising needs OpenVINO and NNCF: install them with .venv/bin/pip install -e "
        f"'.[openvino]' ({error})."
    )

CPU = torch.device("cpu")
CROPS = 8  # of each photo, and of a batch


class QuantisationFailed(Exception):
    """There is nothing to quantise, or nothing to do it with; the message says what."""


def read_settings(config: Path) -> Settings:
    """Return what a config says of this application.

    Raises:
        QuantisationFailed: it can't be read, or is no config of Inset.
        StartupError: an option is wrong.
    """
    try:
        applications = yaml.safe_load(config.read_text())["applications"]
        (args,) = (app["args"] for app in applications if app["import_path"] == "graph:build")
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise QuantisationFailed(f"{config} is no config of Inset: {error!r}") from None
    return Settings.parse(args, ROOT)


def read_photos(files: Sequence[Path], settings: Settings) -> tuple[list[bytes], list[np.ndarray]]:
    """Return the bytes and the pixels of photos; those that the service would refuse are told.

    Raises:
        QuantisationFailed: none is left.
    """
    data, pixels = [], []
    for file in tqdm(files, unit="photo", desc="reading"):
        try:
            content = file.read_bytes()
            pixels.append(decode(content, settings.limits.image).pixels)
        except (InsetError, OSError) as error:
            tqdm.write(f"{file} is left out: {error}", file=sys.stderr)
        else:
            data.append(content)
    if not data:
        raise QuantisationFailed("None of the photos can be read.")
    return data, pixels


def quantise_detector(settings: SegmenterSettings, photos: Sequence[np.ndarray]) -> Path:
    """Calibrate YOLOv5 on photos on their canvases; returns the file.

    Raises:
        ModelUnavailable: it can't be had, or is no YOLOv5.
    """
    path = find_detector(settings.model_name_or_path, backend="openvino")
    network = load_network(read_checkpoint(path), CPU, torch.float32)
    canvases = []
    for pixels in photos:
        place = letterbox(*pixels.shape[:2], settings.image_size, network.stride)
        canvases.append(lay_on_canvases([torch.from_numpy(pixels)], [place], CPU))
    # The last layer, the convolutions before the boxes and their arithmetic, takes 3 % of the time,
    # and 8 bits are too few for coordinates.
    head = rf"__module\.model\.{len(network.model) - 1}[./].*"
    model = nncf.quantize(
        convert(network, 2 * network.stride),
        nncf.Dataset(canvases, lambda canvas: canvas.permute(0, 3, 1, 2).float().numpy() / 255),
        subset_size=len(canvases),
        preset=nncf.QuantizationPreset.MIXED,
        # The whole range that occurs: NNCF's own choice cuts off what is rare, and an object is.
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX
        ),
        ignored_scope=nncf.IgnoredScope(patterns=[head]),
    )
    return write_int8(model, sha256(path))


def quantise_encoder(encoder: Encoder, crops: Sequence[np.ndarray]) -> Path:
    """Calibrate CLIP's image tower on crops; returns the file.

    Args:
        encoder: in float32, run by torch.
        crops: batches of uint8 `[n, size, size, 3]`.
    """
    model = nncf.quantize(
        convert(encoder.tower, encoder.files.image_size),
        nncf.Dataset(crops, lambda batch: encoder.preprocess(batch).numpy()),
        subset_size=len(crops),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER,
        # What sees pixels and what makes the vector: most of the error, hardly any of the time.
        ignored_scope=nncf.IgnoredScope(patterns=[".*patch_embedding.*", ".*visual_projection.*"]),
    )
    return write_int8(model, encoder.files.identity.digest)


def cut_crops(settings: SegmenterSettings, encoder: Encoder, data: list[bytes]) -> list[np.ndarray]:
    """Return crops as the segmenter cuts them, some of each photo, mixed, in batches.

    Raises:
        ModelUnavailable: the detector can't be had.
    """
    options: dict[str, Any] = settings.model_dump(
        exclude={"backend", "dtype", "threads", "batch_wait_ms"}
    )
    files = encoder.files
    segmenter = Segmenter(**options, crop_size=files.image_size, squash=files.squash)
    random = np.random.default_rng(0)
    some = []
    for photo in tqdm(data, unit="photo", desc="cutting crops"):
        (segmented,) = segmenter.segment([photo])
        some.append(random.permutation(segmented.crops)[:CROPS])
    crops = random.permutation(np.concatenate(some))
    return np.array_split(crops, -(-len(crops) // CROPS))


def run(arguments: argparse.Namespace) -> None:
    """Calibrate what is wanted.

    Raises:
        QuantisationFailed, StartupError
    """
    settings = read_settings(arguments.config)
    detector, encoder = (s.dtype == "int8" for s in (settings.segmenter, settings.encoder))
    if not (detector or encoder):
        raise QuantisationFailed(
            f"{arguments.config} wants no network in int8: set backend: openvino and dtype: int8 "
            "of the segmenter, of the encoder, or of both, and run this again."
        )
    files = find_images(arguments.folders)
    if not files:
        raise QuantisationFailed("There are no photos in there.")
    chosen = random.Random(0).sample(files, min(len(files), arguments.photos))
    data, pixels = read_photos(chosen, settings)
    if detector:
        print(f"The detector in int8: {quantise_detector(settings.segmenter, pixels)}")
    if encoder:
        name = settings.encoder.pretrained_model_name_or_path
        network = Encoder(name, device="cpu", dtype="float32")
        crops = cut_crops(settings.segmenter, network, data)
        print(f"The encoder in int8: {quantise_encoder(network, crops)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="or single files")
    parser.add_argument(
        "--config", type=Path, default=ROOT / "serve_config.yaml", help="(serve_config.yaml)"
    )
    parser.add_argument(
        "--photos", type=int, default=100, help="most photos to look at (%(default)s)"
    )
    arguments = parser.parse_args()
    if arguments.photos < 1:
        parser.error("--photos must be at least 1")
    # NNCF's own function for this would silence every handler of this process.
    logging.getLogger("nncf").setLevel(logging.ERROR)
    try:
        run(arguments)
    except (QuantisationFailed, StartupError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
