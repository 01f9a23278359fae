"""Real photos in the shared service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.running.waiting import together
from tests.support.service.http_client import index

LIBRARY = [
    *("astronaut.png", "camera.png", "chelsea.png", "clock_motion.png", "coffee.png", "color.png"),
    *("horse.png", "hubble_deep_field.jpg", "motorcycle_left.png", "page.png", "retina.jpg"),
    "rocket.jpg",
]


@pytest.fixture(scope="module")
def library(client: httpx.Client, photos: Path) -> dict[str, dict[str, Any]]:
    """Return the records of real photos that are stored, by file name.

    Storing them again is quick; a file of tests that deletes everything takes them from no other.
    """
    files = [photos / name for name in LIBRARY]
    records = together(
        [lambda file=file: index(client, file.read_bytes(), filename=file.name) for file in files]
    )
    return {record["filename"]: record for record in records}
