"""The segmenter and the encoder as the service configures them, without the service."""

from __future__ import annotations

from deployments.encoder.encoder import Encoder
from deployments.segmenter.segmenter import Segmenter
from deployments.settings import EncoderSettings, SegmenterSettings

# Options of the deployments alone.
OF_DEPLOYMENT = {"batch_wait_ms", "threads"}


def make_segmenter(settings: SegmenterSettings, crop_size: int, squash: bool) -> Segmenter:
    """Return the segmenter that the service would have with these settings.

    Args:
        settings: the section `segmenter` of serve_config.yaml.
        crop_size: side of the encoder's input, pixels.
        squash: whether a box is scaled to the square whatever its shape.

    Raises:
        ModelUnavailable: the detector is not available.
    """
    options = settings.model_dump(exclude=OF_DEPLOYMENT)
    return Segmenter(**options, crop_size=crop_size, squash=squash)


def make_encoder(settings: EncoderSettings) -> Encoder:
    """Return the encoder that the service would have with these settings.

    Args:
        settings: the section `encoder` of serve_config.yaml.

    Raises:
        ModelUnavailable: it can't be found or downloaded.
    """
    return Encoder(**settings.model_dump(exclude=OF_DEPLOYMENT))
