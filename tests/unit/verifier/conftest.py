"""Real photos to look at."""

from __future__ import annotations

import numpy as np
import pytest
from skimage import data

NAMES = ("coffee", "chelsea", "astronaut", "rocket")


@pytest.fixture(scope="session")
def seen() -> dict[str, np.ndarray]:
    """Return photos by name: uint8 `[height, width, 3]`, RGB."""
    return {name: getattr(data, name)() for name in NAMES}
