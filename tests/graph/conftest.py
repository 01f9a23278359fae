"""The graph in this process, with photos in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.graph import batches
from tests.support.graph.graph_in_process import call, run


@pytest.fixture(scope="package")
def batches_without_replicas() -> Iterator[None]:
    """Let `serve.batch` work where no replica is around it, for all of these tests."""
    with batches.batches_without_replicas():
        yield


@pytest.fixture(scope="package")
def pictures(photos: Path) -> dict[str, bytes]:
    """Return photos by their short names."""
    names = ("chelsea.png", "coffee.png", "motorcycle_left.png", "astronaut.png")
    return {name.split(".")[0].split("_")[0]: (photos / name).read_bytes() for name in names}


@pytest.fixture(scope="package")
def inset(
    slow: None,
    tmp_path_factory: pytest.TempPathFactory,
    batches_without_replicas: None,
    pictures: dict[str, bytes],
) -> Any:
    """Return a handle of the graph of serve_config.yaml, with photos whose ids are their names."""
    handle = run(tmp_path_factory.mktemp("inset"))
    for name, data in pictures.items():
        call(handle.index, data, id=name, filename=f"{name}.png")
    return handle
