"""Values of command line options that several commands have."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from common.paths import COMPACT
from deployments.settings import EncoderSettings, SegmenterSettings

ENCODER_NAME = "pretrained_model_name_or_path"
DEFAULT_ENCODER = {ENCODER_NAME: str(COMPACT)}


def positive(text: str) -> int:
    """Parse a whole number of at least 1.

    Raises:
        ArgumentTypeError, ValueError: it is something else.
    """
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def empty_folder(parser: argparse.ArgumentParser, folder: Path | None) -> Path:
    """Return a folder that was asked for, made if it has to be, or a temporary one.

    Raises:
        SystemExit: it is not empty.
    """
    if folder is None:
        return Path(tempfile.mkdtemp(prefix=f"{parser.prog.removesuffix('.py')}-"))
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        parser.error(f"{folder} is not empty")
    return folder


def parse_segmenter(text: str) -> dict[str, Any]:
    """Parse options that serve_config.yaml has under `segmenter`, a JSON object.

    Raises:
        ArgumentTypeError: it is something else, or an option is wrong.
    """
    return parse_section(text, "segmenter", SegmenterSettings)


def parse_encoder(text: str) -> dict[str, Any]:
    """Parse the name of an encoder, or options that serve_config.yaml has under `encoder`.

    Raises:
        ArgumentTypeError: an option is wrong.
    """
    if not text.startswith("{"):
        return {ENCODER_NAME: text}
    return DEFAULT_ENCODER | parse_section(text, "encoder", EncoderSettings)


def parse_section(
    text: str, name: str, section: type[SegmenterSettings | EncoderSettings]
) -> dict[str, Any]:
    """Parse options of a section of serve_config.yaml, a JSON object.

    Returns:
        The options that were given, validated; not the defaults of the others.

    Raises:
        ArgumentTypeError: it is something else, or an option is wrong.
    """
    try:
        given = json.loads(text)
        settings = section.model_validate(given)
    except ValueError as error:  # pydantic's are of this kind too
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a JSON object with options of the {name} ({error})"
        ) from None
    return settings.model_dump(mode="json", include=set(given))
