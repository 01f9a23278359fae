"""Devices and number formats by name, and copies to and from a device."""

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
        dtype: the number format that the network computes in.
        passes: how many passes of the network run at the same time.
    """

    backend: str
    device: torch.device
    dtype: torch.dtype
    passes: int = 1


def place(settings: NetworkSection, passes: int = 1) -> Placement:
    """Return where the network of a settings section runs on this machine."""
    device = resolve_device("cpu" if settings.backend == "openvino" else settings.device)
    return Placement(settings.backend, device, resolve_dtype(settings.dtype, device), passes)


def resolve_device(name: str) -> torch.device:
    """Return the torch device for `auto`, `cpu`, `cuda` or `cuda:n`.

    `auto` is the GPU if there is one. If torch can't see a CUDA device, this warns and returns the
    CPU.

    Raises:
        ValueError: it is another name.
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
            "Check the NVIDIA driver, and that torch was installed with CUDA.",
            stacklevel=2,
        )
        return torch.device("cpu")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the torch dtype for `auto`, `float32`, `bfloat16`, `float16` or `int8`.

    `auto` is bfloat16 if the hardware computes in it, otherwise float32. int8 is for calibrated
    networks, which OpenVINO runs.

    Raises:
        ValueError: it is another name.
    """
    if name == "auto":
        return torch.bfloat16 if _computes_bfloat16(device) else torch.float32
    if name == "int8":
        return torch.int8
    if name not in DTYPES:
        raise ValueError(f"dtype must be auto, {', '.join(DTYPES)} or int8, not {name!r}")
    return DTYPES[name]


def _computes_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # Without these instructions a CPU converts to float32 and back, slower than float32 itself.
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def pinned(array: np.ndarray, device: torch.device) -> np.ndarray:
    """Return a copy in pinned memory, which a GPU reads directly; for a CPU the array itself.

    Torch doesn't reuse pinned memory as long as a GPU may read from it.
    """
    if device.type == "cpu":
        return array
    return torch.from_numpy(array).pin_memory().numpy()


def upload(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy an array to a device, in the order of its stream, without waiting for a GPU."""
    return move(torch.from_numpy(array), device)


def move(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor to a device if it isn't there; see `upload`."""
    if tensor.device.type == "cpu" and device.type != "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type != "cpu")


def download(tensors: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """Copy tensors from any devices to the CPU, and wait once for all of them."""
    # These copies from a GPU go into pinned memory.
    fetched = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
    for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return [tensor.numpy() for tensor in fetched]
