"""What JPEG does to pictures, computed on the device that they are on.

The bytes are not made, because what is lost is lost before: by the colour format (chroma at half
the resolution) and by the rounding of each block's frequencies.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

BLOCK = 8
# Annex K of the standard: by how much each frequency is rounded at quality 50.
LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *4 * ((99,) * BLOCK,),
)


def compress(pictures: torch.Tensor, qualities: torch.Tensor) -> torch.Tensor:
    """Return pictures as they are after JPEG.

    Args:
        pictures: levels 0 to 255, float32 `[n, 3, height, width]`; both sides multiples of 16.
        qualities: 1 to 100, as libjpeg counts them, `[n]`.
    """
    red, green, blue = pictures.unbind(1)
    exact = 0.299 * red + 0.587 * green + 0.114 * blue
    blueness, redness = (blue - exact) / 1.772, (red - exact) / 1.402
    luma = _round_frequencies(exact - 128, LUMA, qualities) + 128
    blueness, redness = (
        _double(_round_frequencies(_halve(plane), CHROMA, qualities))
        for plane in (blueness, redness)
    )
    red, blue = luma + 1.402 * redness, luma + 1.772 * blueness
    green = (luma - 0.299 * red - 0.114 * blue) / 0.587
    return torch.stack([red, green, blue], dim=1).clamp(0, 255).round()


def _round_frequencies(
    plane: torch.Tensor, table: tuple[tuple[int, ...], ...], qualities: torch.Tensor
) -> torch.Tensor:
    """Round the levels of `[n, height, width]`, -128 to 127, and the frequencies of each block."""
    n, height, width = plane.shape
    percent = torch.where(qualities < 50, (5000 / qualities).floor(), 200 - 2 * qualities)
    steps = torch.tensor(table, dtype=torch.float32, device=plane.device)
    steps = ((steps * percent.view(n, 1, 1) + 50) / 100).floor().clamp(1, 255)
    steps = steps.view(n, 1, 1, BLOCK, BLOCK)
    blocks = plane.round().reshape(n, height // BLOCK, BLOCK, width // BLOCK, BLOCK).transpose(2, 3)
    waves = _cosines(plane.device)
    rounded = (waves @ blocks @ waves.T / steps).round() * steps
    levels = (waves.T @ rounded @ waves).round().clamp(-128, 127)
    return levels.transpose(2, 3).reshape(n, height, width)


def _cosines(device: torch.device) -> torch.Tensor:
    """Return the matrix of the discrete cosine transform of a block's rows."""
    places = torch.arange(BLOCK, dtype=torch.float32, device=device)
    waves = torch.cos(math.pi / BLOCK * places[:, None] * (places + 0.5)) / math.sqrt(BLOCK / 2)
    waves[0] /= math.sqrt(2)
    return waves


def _halve(plane: torch.Tensor) -> torch.Tensor:
    return functional.avg_pool2d(plane[:, None], 2)[:, 0]


def _double(plane: torch.Tensor) -> torch.Tensor:
    return functional.interpolate(
        plane[:, None], scale_factor=2, mode="bilinear", align_corners=False
    )[:, 0]
