"""What happens to pictures on their way through screens, phones and mail.

Pictures are levels 0 to 255, float32 `[n, 3, size, size]`, on any device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from training.chance import Chance
from training.jpeg import compress

GREY = (0.299, 0.587, 0.114)
# Sides that pictures of fewer pixels have: each gets the nearest of these.
SMALL_SIDES = (16, 24, 32, 40, 48, 64, 80, 96)
QUALITIES = (22, 92)
BAR = 0.22  # most of a side that a bar covers


def worn(pictures: torch.Tensor, extents: torch.Tensor, chance: Chance) -> torch.Tensor:
    """Change pictures as their way does.

    Args:
        extents: width and height in the photo of what they show, pixels, `[n, 2]`.
    """
    n = len(pictures)
    sides = extents.amax(1) * chance.log_uniform(0.35, 1.3, n)
    pictures = coarsened(pictures, sides)
    pictures = brightened(pictures, chance.uniform(0.6, 1.5, n))
    pictures = saturated(pictures, chance.uniform(0.3, 1.7, n))
    contrasts = chance.uniform(0.7, 1.4, n)
    pictures = contrasted(pictures, torch.where(chance.happens(0.4, n), contrasts, 1))
    tints = torch.where(chance.happens(0.2, n, 1), chance.uniform(0.88, 1.12, n, 3), 1)
    pictures = (pictures * tints[..., None, None]).clamp(0, 255)
    deviations = chance.uniform(0.4, 2, n)
    pictures = _where(chance.happens(0.2, n), blurred(pictures, deviations), pictures)
    noise = torch.where(chance.happens(0.2, n), chance.uniform(0, 16, n), 0)
    pictures = pictures + chance.normal(1, *pictures.shape) * noise.view(-1, 1, 1, 1)
    pictures = pictures.clamp(0, 255)
    pictures = _where(chance.happens(0.12, n), barred(pictures, chance), pictures)
    pictures = _where(chance.happens(0.12, n), covered(pictures, chance), pictures)
    qualities = chance.uniform(*QUALITIES, n).round()
    return _where(chance.happens(0.85, n), compress(pictures, qualities), pictures)


def recoloured(groups: Sequence[torch.Tensor], share: float, chance: Chance) -> list[torch.Tensor]:
    """Change the colours of some pictures: channels mixed, another gamma.

    Args:
        groups: of pictures; those with the same number in each group are changed in the same way.
        share: of the pictures that are changed.
    """
    n, device = len(groups[0]), groups[0].device
    changed = chance.happens(share, n)
    identity = torch.eye(3, device=device)
    exchanged = chance.happens(0.6, n).view(n, 1, 1)
    mixing = torch.where(exchanged, identity[chance.orders(n, 3)], identity)
    mixing = mixing + chance.normal(0.15, n, 3, 3)
    mixing = mixing / mixing.sum(2, keepdim=True).clamp(min=0.3)  # grey stays grey, nearly always
    gamma = chance.normal(0.25, n).exp().view(n, 1, 1, 1)

    def recolour(pictures: torch.Tensor) -> torch.Tensor:
        mixed = torch.einsum("nij,njhw->nihw", mixing, pictures).clamp(0, 255)
        return _where(changed, 255 * (mixed / 255) ** gamma, pictures)

    return [recolour(pictures) for pictures in groups]


def mirrored(pictures: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """Exchange left and right of some pictures."""
    return _where(which, pictures.flip(3), pictures)


def coarsened(pictures: torch.Tensor, sides: torch.Tensor) -> torch.Tensor:
    """Make pictures as unsharp as they are if they had fewer pixels a side.

    Args:
        sides: pixels of each. The nearest of `SMALL_SIDES` is taken; a picture that would have more
            than those stays as it is.
    """
    size = pictures.shape[-1]
    choices = torch.tensor([*SMALL_SIDES, size], device=pictures.device)
    nearest = torch.bucketize(sides, (choices[1:] + choices[:-1]) / 2)
    coarse = pictures.clone()
    for number, side in enumerate(SMALL_SIDES):
        which = nearest == number
        if not which.any():
            continue
        small = functional.interpolate(
            pictures[which], size=(side, side), mode="bilinear", antialias=True
        )
        coarse[which] = functional.interpolate(small, size=(size, size), mode="bicubic")
    return coarse.clamp(0, 255)


def brightened(pictures: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    return (pictures * factors.view(-1, 1, 1, 1)).clamp(0, 255)


def saturated(pictures: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Change how colourful pictures are: a factor of 0 makes grey."""
    return _away_from(grey(pictures), pictures, factors)


def contrasted(pictures: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Change the contrast of pictures: a factor of 0 makes their mean grey."""
    return _away_from(grey(pictures).mean((2, 3), keepdim=True), pictures, factors)


def grey(pictures: torch.Tensor) -> torch.Tensor:
    """Return the brightness of pictures, `[n, 1, size, size]`."""
    weights = torch.tensor(GREY, device=pictures.device).view(1, 3, 1, 1)
    return (pictures * weights).sum(1, keepdim=True)


def blurred(pictures: torch.Tensor, deviations: torch.Tensor) -> torch.Tensor:
    """Blur pictures by a Gaussian; beyond their borders is nothing, which has no weight.

    Args:
        deviations: standard deviations, pixels.
    """
    places = torch.arange(pictures.shape[-1], device=pictures.device)
    distances = (places[:, None] - places) / deviations.view(-1, 1, 1)
    weights = torch.exp(-(distances**2) / 2)
    weights = (weights / weights.sum(2, keepdim=True))[:, None]
    return weights @ pictures @ weights.mT


def barred(pictures: torch.Tensor, chance: Chance) -> torch.Tensor:
    """Lay bars of one colour over two opposite sides, as a screenshot or a caption has them."""
    n, size = len(pictures), pictures.shape[-1]
    places = _places(size, pictures.device)
    begin, end = chance.uniform(0, BAR, n, 1), 1 - chance.uniform(0, BAR, n, 1)
    bars = (places < begin) | (places > end)
    upright = chance.happens(0.5, n).view(n, 1, 1)
    bars = torch.where(upright, bars[:, None, :], bars[:, :, None])
    # Half of them black; the others are light rather than dark.
    colours = torch.where(chance.happens(0.5, n), 0, 255 * chance.uniform(0, 1, n) ** 0.3)
    return torch.where(bars[:, None], colours.view(n, 1, 1, 1), pictures)


def covered(pictures: torch.Tensor, chance: Chance) -> torch.Tensor:
    """Lay a rectangle of one colour over each picture."""
    n, size = len(pictures), pictures.shape[-1]
    places = _places(size, pictures.device)
    centres = chance.uniform(0, 1, n, 2, 1)
    half_width, half_height = chance.uniform(0.05, 0.2, n, 1), chance.uniform(0.03, 0.15, n, 1)
    columns = (places - centres[:, 0]).abs() < half_width
    rows = (places - centres[:, 1]).abs() < half_height
    rectangle = (rows[:, :, None] & columns[:, None, :])[:, None]
    return torch.where(rectangle, chance.uniform(0, 255, n, 3, 1, 1), pictures)


def _places(size: int, device: torch.device) -> torch.Tensor:
    """Return where the pixels of a side are, from 0 to 1."""
    return (torch.arange(size, device=device) + 0.5) / size


def _away_from(origin: torch.Tensor, pictures: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    return (origin + (pictures - origin) * factors.view(-1, 1, 1, 1)).clamp(0, 255)


def _where(which: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the pictures of `one` where `which` is true, else those of `other`."""
    return torch.where(which.view(-1, 1, 1, 1), one, other)
