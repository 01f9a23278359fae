"""What the processes of a service note down for `bench_stages`: when a function began and ended.

A service that is measured is built by `bench_spans:build`, and each of its processes imports this
module with the deployment that it gets. The service's own code knows nothing of it.
"""

from __future__ import annotations

import functools
import inspect
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deployments.chunk_index import deployment as chunk_index_deployment
from deployments.chunk_index import index
from deployments.encoder import deployment as encoder_deployment
from deployments.encoder import encoder
from deployments.ingress import app
from deployments.ingress import deployment as ingress_deployment
from deployments.segmenter import canvas_detectors, segmenter
from deployments.segmenter import deployment as segmenter_deployment
from deployments.store import deployment as store_deployment
from deployments.store import store
from graph import build

__all__ = ["build"]

FOLDER = "INSET_SPANS"  # the variable of the environment that says where to


def install() -> None:
    """Have the functions that are stages of a request note their times."""
    # The class of a deployment is behind it. It travels, from the process that builds the graph.
    for deployment, names in [
        (ingress_deployment.IngressDeployment, ["index", "search"]),
        (segmenter_deployment.SegmenterDeployment, ["segment"]),
        (encoder_deployment.EncoderDeployment, ["encode_photo", "encode_query"]),
        (chunk_index_deployment.ChunkIndexDeployment, ["rank"]),
        (store_deployment.StoreDeployment, ["find", "put", "records"]),
    ]:
        for name in names:
            note(deployment.func_or_class, name)
    for owner, name in [
        (app.FastAPI, "__call__"),
        (segmenter.Segmenter, "segment"),
        (segmenter.Segmenter, "_cut"),
        (canvas_detectors.CanvasDetector, "detect"),
        (encoder.Encoder, "encode_images"),
        (encoder.Encoder, "squares"),
        (index.ChunkIndex, "search"),
        (store.Store, "apply"),
    ]:
        note(owner, name)
    for module, name in [
        (segmenter, "decode"),
        (segmenter, "make_thumbnail"),
        (encoder_deployment, "decode"),
    ]:
        note(module, name)


def note(owner: Any, name: str) -> None:
    """Replace a function of a module, or a method of a class, by one that notes its times."""
    function = getattr(owner, name)
    setattr(owner, name, noting(function, function.__qualname__))


def noting(function: Callable, label: str) -> Callable:
    """Wrap a function so that each call writes `label begin end`, nanoseconds."""
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            begin = time.monotonic_ns()
            try:
                return await function(*args, **kwargs)
            finally:
                write(label, begin)

    else:

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            begin = time.monotonic_ns()
            try:
                return function(*args, **kwargs)
            finally:
                write(label, begin)

    return wrapped


def write(label: str, begin: int) -> None:
    """Append a line to this process's file."""
    line = f"{begin} {time.monotonic_ns()} {label}\n"  # one clock for all processes of a machine
    os.write(_file(), line.encode())


@functools.cache
def _file() -> int:
    path = Path(os.environ[FOLDER]) / str(os.getpid())
    return os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)


if FOLDER in os.environ:
    install()
