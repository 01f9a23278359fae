"""Calibrate the networks that serve_config.yaml wants in int8, on photos of your own.

    scripts/quantize.py FOLDER... [--config serve_config.yaml]

In int8, OpenVINO computes with 8 bits a number, and their scale must fit the numbers that occur. So
the networks are run on typical inputs: photos on the detector's canvas, and crops as the segmenter
cuts them. The result is written to the cache folder under the digest of the weights, where
`backend: openvino` with `dtype: int8` finds it.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from common.config import DEFAULT_CONFIG, read_settings
from common.photos import find_images
from tqdm import tqdm

from deployments.compute.weights import sha256
from deployments.decoding.image import decode
from deployments.encoder.clip import ImageTower
from deployments.encoder.encoder import Encoder
from deployments.errors import InsetError, ModelUnavailable, StartupError
from deployments.segmenter.checkpoint import read_checkpoint
from deployments.segmenter.files import find_detector
from deployments.segmenter.letterbox import lay_on_canvases, letterbox
from deployments.segmenter.segmenter import Segmenter
from deployments.segmenter.yolov5 import load_network
from deployments.settings import EncoderSettings, SegmenterSettings, Settings

try:
    # First, because it keeps NNCF from reporting its use.
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
    """There is nothing to quantise, or no photo to calibrate with; the message says what."""


def read_photos(files: Sequence[Path], settings: Settings) -> tuple[list[bytes], list[np.ndarray]]:
    """Read photos; report those that the service would refuse.

    Returns:
        The encoded bytes of each, and its pixels, uint8 `[height, width, 3]`.

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
    """Calibrate YOLOv5 on photos on their canvases; return the file written.

    Args:
        photos: uint8 `[height, width, 3]` each.

    Raises:
        ModelUnavailable: the detector is not available, or not a YOLOv5.
    """
    # Whether int8 is possible is not asked here: this is what makes it possible.
    path = find_detector(settings.model_copy(update={"dtype": "float32"})).path
    network = load_network(read_checkpoint(path), CPU, torch.float32)
    canvases = []
    for pixels in photos:
        height, width = pixels.shape[:2]
        place = letterbox(height, width, settings.image_size, network.stride)
        canvases.append(lay_on_canvases([torch.from_numpy(pixels)], [place], CPU))
    # The last layer stays as it is: the convolutions before the boxes and their arithmetic take 3 %
    # of the time, and 8 bits are too few for coordinates.
    head = rf"__module\.model\.{len(network.model) - 1}[./].*"
    model = nncf.quantize(
        convert(network, 2 * network.stride),
        nncf.Dataset(canvases, lambda canvas: canvas.permute(0, 3, 1, 2).float().numpy() / 255),
        subset_size=len(canvases),
        preset=nncf.QuantizationPreset.MIXED,
        # The whole range that occurs: by default NNCF cuts off what is rare, as objects are.
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX
        ),
        ignored_scope=nncf.IgnoredScope(patterns=[head]),
    )
    return write_int8(model, sha256(path))


def quantise_encoder(encoder: Encoder, crops: Sequence[np.ndarray]) -> Path:
    """Calibrate CLIP's image tower on crops; return the file written.

    Args:
        encoder: in float32, run by torch.
        crops: batches of uint8 `[n, size, size, 3]`.
    """
    tower = encoder.tower
    assert isinstance(tower, ImageTower)
    model = nncf.quantize(
        convert(tower, encoder.files.image_size),
        nncf.Dataset(crops, lambda batch: tower.normalise(encoder.squares(batch)).numpy()),
        subset_size=len(crops),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER,
        # The first and the last layer stay as they are: in int8 they would make most of the error,
        # and they take hardly any time.
        ignored_scope=nncf.IgnoredScope(patterns=[".*patch_embedding.*", ".*visual_projection.*"]),
    )
    return write_int8(model, encoder.files.identity.digest)


def cut_crops(settings: SegmenterSettings, encoder: Encoder, data: list[bytes]) -> list[np.ndarray]:
    """Cut crops as the segmenter does, some of each photo, in random order.

    Args:
        data: encoded photos.

    Returns:
        Batches of uint8 `[n, size, size, 3]`.

    Raises:
        ModelUnavailable: the detector is not available.
    """
    # The config wants what doesn't exist yet: the detector in int8.
    on_torch = settings.model_copy(update={"backend": "torch", "dtype": "auto"})
    files = encoder.files
    segmenter = Segmenter(on_torch, crop_size=files.image_size, squash=files.squash)
    random = np.random.default_rng(0)
    some = []
    for photo in tqdm(data, unit="photo", desc="cutting crops"):
        (segmented,) = segmenter.segment([photo])
        if isinstance(segmented, Exception):
            raise segmented  # `read_photos` has left such photos out
        some.append(random.permutation(segmented.crops.cpu().numpy())[:CROPS])
    crops = random.permutation(np.concatenate(some))
    return np.array_split(crops, -(-len(crops) // CROPS))


def run(arguments: argparse.Namespace) -> None:
    """Calibrate the networks that the config wants in int8.

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
        network = Encoder(
            EncoderSettings(
                pretrained_model_name_or_path=settings.encoder.pretrained_model_name_or_path,
                device="cpu",
                dtype="float32",
            )
        )
        crops = cut_crops(settings.segmenter, network, data)
        print(f"The encoder in int8: {quantise_encoder(network, crops)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="or single files")
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="(serve_config.yaml)")
    parser.add_argument(
        "--photos", type=int, default=100, help="most photos to calibrate with (%(default)s)"
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
