"""How many bytes it takes to decode an image."""

from __future__ import annotations

from PIL import ImageFile

from deployments.decoding.containers.found import Found


def cost(image: ImageFile.ImageFile, found: Found) -> int:
    return found.width * found.height * 16
