"""Random numbers on a device, all of which follow from a seed."""

from __future__ import annotations

import math

import torch


class Chance:
    """A source of random tensors.

    The same seed gives the same numbers on the same kind of device; a GPU draws others than a CPU.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        self._generator = torch.Generator(device).manual_seed(seed)

    def uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        drawn = torch.rand(shape, generator=self._generator, device=self.device)
        return low + (high - low) * drawn

    def log_uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        return self.uniform(math.log(low), math.log(high), *shape).exp()

    def normal(self, deviation: float, *shape: int) -> torch.Tensor:
        return deviation * torch.randn(shape, generator=self._generator, device=self.device)

    def happens(self, probability: float, *shape: int) -> torch.Tensor:
        """Return booleans that are true with a probability."""
        return self.uniform(0, 1, *shape) < probability

    def orders(self, rows: int, length: int) -> torch.Tensor:
        """Return the numbers below `length`, in a random order in each row."""
        return self.uniform(0, 1, rows, length).argsort(dim=1)
