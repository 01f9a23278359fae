"""Devices and number formats by name, and the ways there and back, the same for every network."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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


# For replicas that compute: several of them share the cores, and OpenMP threads that spin while
# they wait for work take the cores from the others (measured: half of the indexing rate). It has to
# be in the environment before torch is loaded.
COMPUTING_REPLICA = {
    "num_cpus": 0,
    "runtime_env": {"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}},
}
# For one that also jumps about in gigabytes. glibc (2.35 or newer) asks the kernel for pages of
# 2 MiB then, if it does so from the beginning of the process.
HUGE_PAGES_REPLICA = {
    "num_cpus": 0,
    "runtime_env": {
        "env_vars": {"OMP_WAIT_POLICY": "PASSIVE", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    },
}


def compute_threads(threads: int | None, passes: int = 1) -> ThreadPoolExecutor:
    """Return the threads from which a replica runs its network.

    An event loop that waits for them stays free for other requests and for health checks; and torch
    keeps one team of threads for each thread that calls it, so there should be no more of them.

    Args:
        threads: on the CPU, of all teams together; None for all cores. Without this Ray would set
            it to the replica's `num_cpus`, which is a share for scheduling, not a limit.
        passes: how many run the network at the same time.
    """
    team = (threads or count_cores()) // passes
    return ThreadPoolExecutor(passes, initializer=torch.set_num_threads, initargs=(team,))


def passes_at_once(threads: int | None, backend: str, device: torch.device) -> int:
    """Return how many passes at the same time make the most of a replica's threads.

    The threads of torch's team wait for each other after each layer: on two cores, two passes of
    one thread each do 1.2 (YOLOv5s) to 1.3 times (a small CLIP) what two threads do together.
    OpenVINO gains nothing by it, and a GPU has its own way.
    """
    return threads or count_cores() if backend == "torch" and device.type == "cpu" else 1


def count_cores() -> int:
    return os.cpu_count() or 1
