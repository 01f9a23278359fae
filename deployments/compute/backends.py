"""Which backend runs a network: torch, or OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from deployments.compute.device import Placement
from deployments.settings import NetworkSection

# From uint8 `[n, 3, h, w]` to its output, whatever runs it.
Network = Callable[[torch.Tensor], torch.Tensor]


def require_backend(settings: NetworkSection, name: str, digest: Callable[[], str]) -> None:
    """Check that this machine can run a network as the settings say.

    Args:
        name: of the model, for people.
        digest: returns the SHA-256 of its weights.

    Raises:
        ModelUnavailable: OpenVINO isn't installed, or there is no int8 network of these weights.
    """
    if settings.backend == "openvino":
        from deployments.compute import openvino  # raises where it isn't installed

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
    """Return a network that runs as it is placed.

    Args:
        load: returns the network of torch on a device, in a number format. It takes pixels as
            uint8, or as floating point that is normalised already.
        side: of a square picture that it takes, pixels.
        name, digest: see `require_backend`.
        mean, std: of the channels of its input, on a scale from 0 to 1.

    Raises:
        ModelUnavailable: see `require_backend`.
    """
    if placement.backend == "torch":
        return load(placement.device, placement.dtype)
    # An extra of pyproject.toml, and slow to import.
    from deployments.compute.openvino import CompiledNetwork, convert, read_int8

    if placement.dtype == torch.int8:
        model = read_int8(name, digest())
    else:
        model = convert(load(placement.device, torch.float32), side)
    return CompiledNetwork(model, placement.dtype, mean, std)
