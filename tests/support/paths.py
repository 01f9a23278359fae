"""Where things lie."""

from __future__ import annotations

from pathlib import Path

import skimage

ROOT = Path(__file__).parents[2]
PHOTOS = Path(skimage.__file__).parent / "data"  # the free photos in scikit-image's wheel
