"""Folders of this repository."""

from __future__ import annotations

import os
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent
ROOT = SCRIPTS.parent
COMPACT = ROOT / "models" / "compact"  # the encoder of serve_config.yaml
# PYTHONPATH of processes that import what the commands import.
IMPORT_PATH = f"{ROOT}{os.pathsep}{SCRIPTS}"
