"""Find an encoder's files and properties, without loading it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from deployments.compute.backends import require_backend
from deployments.compute.weights import hub_folder, revision_of, sha256
from deployments.errors import EncoderMismatch, ModelUnavailable
from deployments.records import EncoderIdentity, EncoderState
from deployments.settings import EncoderSettings, display_name

# OpenAI's statistics of the training images, for models whose folder has no others.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
PREPROCESSING = "preprocessor_config.json"
# One thread encodes an image with models/compact (6 MB) in 9 ms; two that wait passively take 14.
SMALL_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class EncoderFiles:
    """An encoder on this machine.

    Attributes:
        folder: the folder of its files.
        identity: tells its vectors from those of other encoders.
        image_size: side of its square input, pixels.
        squash: how images become square: the whole image is squashed, or the centre is cut out.
        mean, std: mean and standard deviation of each input channel, on a scale from 0 to 1.
        has_text: whether it has a text tower.
        is_small: whether one thread encodes a single image faster than two.
        revision: its commit on the hub; None if it doesn't come from there.
    """

    folder: Path
    identity: EncoderIdentity
    image_size: int
    squash: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    has_text: bool
    is_small: bool
    revision: str | None

    @property
    def state(self) -> EncoderState:
        """What `/stats` says about it."""
        return EncoderState(**asdict(self.identity), text=self.has_text)

    def require_same_as(self, other: EncoderFiles) -> None:
        """Check that these files make the same vectors as others, wherever they lie.

        Raises:
            EncoderMismatch: they don't.
        """
        differences = [
            f"{name} is {getattr(self, name)} instead of {getattr(other, name)}"
            for name in (field.name for field in fields(self) if field.name != "folder")
            if getattr(self, name) != getattr(other, name)
        ]
        if differences:
            raise EncoderMismatch(
                f"The encoder in {self.folder} is not the one that the service was started with: "
                f"{'; '.join(differences)}. Give each node the same files, and restart the service "
                "after you have changed them."
            )


def find_encoder(settings: EncoderSettings) -> EncoderFiles:
    """Find a CLIP model, and download it if necessary.

    `settings.pretrained_model_name_or_path` is a folder in the format of transformers, or a name
    on the Hugging Face hub.

    Raises:
        ModelUnavailable: it is neither, can't be downloaded, isn't a CLIP model, needs its images
            scaled in a way that isn't supported, or the backend can't run it in this number
            format.
    """
    name = settings.pretrained_model_name_or_path
    folder = Path(name)
    if not folder.is_dir():
        folder = hub_folder(name)
    try:
        config = json.loads((folder / "config.json").read_text())
        has_text = config["model_type"] == "clip"
        vision = config["vision_config"] if has_text else config
        if config["model_type"] not in ("clip", "clip_vision_model"):
            raise KeyError(config["model_type"])
        dimension = config.get("projection_dim", 512)
        weights = next(
            folder / file
            for file in ("model.safetensors", "pytorch_model.bin")
            if (folder / file).is_file()
        )
        image_size = vision.get("image_size", 224)
    except (OSError, ValueError, KeyError, StopIteration) as error:
        raise ModelUnavailable(
            f"The encoder {name!r} ({folder}) is not a CLIP model: it "
            "needs a config.json with model_type clip or clip_vision_model and a "
            f"model.safetensors ({type(error).__name__}: {error})."
        ) from None
    identity = EncoderIdentity(display_name(name), dimension, sha256(weights))
    require_backend(settings, identity.name, lambda: identity.digest)
    preprocessing = _read_preprocessing(folder)
    return EncoderFiles(
        folder,
        identity,
        image_size,
        _squashes(folder, preprocessing, image_size),
        tuple(preprocessing.get("image_mean", CLIP_MEAN)),
        tuple(preprocessing.get("image_std", CLIP_STD)),
        has_text,
        is_small=weights.stat().st_size < SMALL_BYTES,
        revision=revision_of(folder),
    )


def _read_preprocessing(folder: Path) -> dict[str, Any]:
    """Return a model's preprocessor config; empty if it has none: CLIP's defaults apply then."""
    file = folder / PREPROCESSING
    try:
        return json.loads(file.read_text()) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise ModelUnavailable(
            f"{file} can't be read ({error}): correct it or copy the model again."
        ) from None


def _squashes(folder: Path, preprocessing: dict[str, Any], image_size: int) -> bool:
    """Return whether images are squashed to a square, or their centre square is cut out.

    Raises:
        ModelUnavailable: the preprocessor config asks for something else.
    """
    size, cropped = preprocessing.get("size"), preprocessing.get("do_center_crop", True)
    if size == {"height": image_size, "width": image_size}:
        return True  # and the centre square of a square is all of it
    if cropped and not (isinstance(size, dict) and "height" in size):
        return False
    raise ModelUnavailable(
        f"{folder / PREPROCESSING} has size {json.dumps(size)} and do_center_crop "
        f"{json.dumps(cropped)}. Set size to a shortest_edge, with do_center_crop, or to "
        f'{{"height": {image_size}, "width": {image_size}}}, the image_size of config.json.'
    )
