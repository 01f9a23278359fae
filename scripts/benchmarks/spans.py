"""Record when functions of a service's processes begin and end, for `benchmarks.stages`.

A service that is measured is built by `benchmarks.spans:build`, and each of its processes imports
this module with the deployment that it gets. The service's own code knows nothing of it.
"""

from __future__ import annotations

import functools
import inspect
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from fastapi import FastAPI

from deployments.chunk_index import deployment as chunk_index_deployment
from deployments.chunk_index import index
from deployments.decoding import decoder
from deployments.encoder import deployment as encoder_deployment
from deployments.encoder import encoder
from deployments.ingress import deployment as ingress_deployment
from deployments.photo_encoder import deployment as photo_encoder_deployment
from deployments.segmenter import canvas_detectors, segmenter
from deployments.store import deployment as store_deployment
from deployments.store import store
from deployments.verifier import deployment as verifier_deployment
from deployments.verifier import verifier
from graph import build

__all__ = ["build"]

FOLDER = "INSET_SPANS"  # the variable of the environment that names the folder of the records

# What is recorded. A function of a module is recorded where it is imported: `scale_down` as it
# is called in `segmenter`, for example. Labels are the qualified names.
DEPLOYMENTS: list[tuple[Any, list[str]]] = [
    (ingress_deployment.IngressDeployment, ["_store", "search"]),
    (photo_encoder_deployment.PhotoEncoderDeployment, ["encode"]),
    (encoder_deployment.QueryEncoderDeployment, ["encode_query", "encode_looks"]),
    (chunk_index_deployment.ChunkIndexDeployment, ["rank", "rank_all"]),
    (store_deployment.StoreDeployment, ["find", "put", "records", "previews"]),
    (verifier_deployment.VerifierDeployment, ["verify", "verify_again"]),
]
CLASSES: list[tuple[type, list[str]]] = [
    (FastAPI, ["__call__"]),
    (segmenter.Segmenter, ["segment", "cut"]),
    (canvas_detectors.CanvasDetector, ["detect"]),
    (decoder.Decoder, ["decode"]),
    (encoder.Encoder, ["encode_photos", "squares"]),
    (index.ChunkIndex, ["search"]),
    (store.Store, ["prepare", "commit"]),
    (verifier.Verifier, ["verify", "verify_again"]),
]
MODULES: list[tuple[ModuleType, list[str]]] = [
    (segmenter, ["scale_down", "make_thumbnail", "make_preview"]),
    (encoder_deployment, ["make_sketch"]),
    (verifier, ["open_preview", "propose_by_correlation", "propose_by_features", "align"]),
    (verifier, ["describe_view", "describe_region"]),
]


def install() -> None:
    """Replace the functions that are stages of a request by ones that record their times."""
    # The decorator of a deployment wraps its class, which the process that builds the graph sends
    # to the replicas.
    classes = [(deployment.func_or_class, names) for deployment, names in DEPLOYMENTS]
    for owner, names in [*classes, *CLASSES, *MODULES]:
        for name in names:
            trace(owner, name)


def trace(owner: Any, name: str) -> None:
    """Replace a function of a module, or a method of a class, by one that records its times."""
    function = getattr(owner, name)
    setattr(owner, name, traced(function, function.__qualname__))


def traced(function: Callable, label: str) -> Callable:
    """Wrap a function so that each call writes its begin and end, nanoseconds, and a label."""
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
