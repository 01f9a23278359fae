"""Read a config of the service."""

from __future__ import annotations

from pathlib import Path

import yaml

from common.paths import ROOT
from deployments.errors import StartupError
from deployments.settings import Settings

DEFAULT_CONFIG = ROOT / "serve_config.yaml"


def read_settings(config: Path) -> Settings:
    """Return the settings of this application in a config.

    Raises:
        StartupError: it can't be read, is not a config of Inset, or an option is wrong.
    """
    try:
        applications = yaml.safe_load(config.read_text())["applications"]
        (args,) = (app["args"] for app in applications if app["import_path"] == "graph:build")
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise StartupError(f"{config} is not a config of Inset: {error!r}") from None
    return Settings.parse(args, ROOT)
