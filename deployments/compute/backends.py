"""The backends that run a network: torch, or OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from deployments.compute.device import Placement
from deployments.settings import NetworkSection

# Turns uint8 `[n, 3, h, w]` into the network's output, whatever runs it.
Network = Callable[[torch.Tensor], torch.Tensor]


def require_backend(settings: NetworkSection, name: str, digest: Callable[[], str]) -> None:
    """Check that this machine can run a network with the backend of the settings.

    Args:
        name: the model's name, for messages.
        digest: returns the SHA-256 of the model's weights.

    Raises:
        ModelUnavailable: OpenVINO isn't installed, or there is no int8 network of these weights.
    """
    if settings.backend == "openvino":
        from deployments.compute import openvino  # raises ModelUnavailable if it isn't installed

        if settings.dtype == "int8":
            openvino.find_int8(name, digest())


def build_network(
    load: Callable[[torch.device, torch.dtype], nn.Module],
    placement: Placement,
    *,
    side: int,
    name: str,
    digest: Callable[[], str],
    mean: Sequence[float] = (0, 0, 0),
    std: Sequence[float] = (1, 1, 1),
) -> Network:
    """Return a network that runs on the backend and the device of its placement.

    Args:
        load: returns torch's network on a device, in a number format. The network takes pixels as
            uint8, or as normalised floating point.
        side: side of a square image that the network accepts, pixels.
        name, digest: see `require_backend`.
        mean, std: mean and standard deviation of each input channel, on a scale from 0 to 1.

    Raises:
        ModelUnavailable: see `require_backend`.
    """
    if placement.backend == "torch":
        return load(placement.device, placement.dtype)
    # Imported here because it is an optional extra, and slow to import.
    from deployments.compute.openvino import CompiledNetwork, convert, read_int8

    if placement.dtype == torch.int8:
        model = read_int8(name, digest())
    else:
        model = convert(load(placement.device, torch.float32), side)
    return CompiledNetwork(model, placement.dtype, placement.passes, mean, std)
