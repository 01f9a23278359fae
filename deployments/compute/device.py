"""Devices and number formats by name, and copies to a device and back, for every network."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from deployments.settings import NetworkSection

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Placement:
    """What runs a network, and where.

    Attributes:
        backend: `torch` or `openvino`.
        device: always the CPU for OpenVINO.
        dtype: the number format it computes in.
    """

    backend: str
    device: torch.device
    dtype: torch.dtype


def place(settings: NetworkSection) -> Placement:
    """Return where the network of a section of the settings runs on this machine."""
    device = resolve_device("cpu" if settings.backend == "openvino" else settings.device)
    return Placement(settings.backend, device, resolve_dtype(settings.dtype, device))


def resolve_device(name: str) -> torch.device:
    """Return the torch device for `auto`, `cpu`, `cuda` or `cuda:n`.

    `auto` is the GPU where there is one. A CUDA device that torch can't see is a warning and
    falls back to the CPU.

    Raises:
        ValueError: for any other name.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:n, not {name!r}")
    available = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not (
        available and (device.index or 0) < torch.cuda.device_count()
    ):
        warnings.warn(
            f"device {name!r} was asked for, but torch sees no such GPU: using the CPU. "
            "Check the NVIDIA driver and that torch was installed with CUDA.",
            stacklevel=2,
        )
        return torch.device("cpu")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the torch dtype for `auto`, `float32`, `bfloat16`, `float16` or `int8`.

    `auto` is bfloat16 where the hardware computes in it, float32 elsewhere. int8 is for networks
    that were calibrated, which OpenVINO runs.

    Raises:
        ValueError: for any other name.
    """
    if name == "auto":
        return torch.bfloat16 if _computes_bfloat16(device) else torch.float32
    if name == "int8":
        return torch.int8
    if name not in DTYPES:
        raise ValueError(f"dtype must be auto, {', '.join(DTYPES)}, int8, not {name!r}")
    return DTYPES[name]


def _computes_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # Without these instructions a CPU converts to float32 and back: slower than float32 itself.
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def pinned(array: np.ndarray, device: torch.device) -> np.ndarray:
    """Copy an array to memory from where a GPU fetches it by itself; for a CPU leave it as it is.

    Torch keeps such memory, and gives it to no one else as long as a GPU may read from it.
    """
    if device.type == "cpu":
        return array
    return torch.from_numpy(array).pin_memory().numpy()


def upload(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Send an array to a device, in the order of its stream; nobody waits for a GPU's copy."""
    if device.type != "cpu" and not torch.from_numpy(array).is_pinned():
        array = pinned(array, device)
    return torch.from_numpy(array).to(device, non_blocking=True)


def download(tensors: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """Fetch tensors from whatever devices they are on, and wait once for all of them."""
    # What comes from a GPU without waiting comes into pinned memory.
    fetched = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
    for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return [tensor.numpy() for tensor in fetched]
