"""Photos, tiny models and a running service for the tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import skimage

PHOTOS = Path(skimage.__file__).parent / "data"


@pytest.fixture(scope="session")
def photos() -> Path:
    """Folder of the free photos in scikit-image's wheel."""
    return PHOTOS
