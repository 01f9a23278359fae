"""Windows of many photos at once: where queries and chunks lie, and how they are cut out.

Windows are float32 `[n, 4]`: x1, y1, x2, y2 in pixels of their photos, one for each photo.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from training.chance import Chance

LEAST_SIDE = 24  # of a query, pixels, unless the photo is smaller
TRIES = 12  # at a tile that overlaps its query


def draw_windows(
    sizes: torch.Tensor, sides: tuple[float, float], oblong: float, chance: Chance
) -> torch.Tensor:
    """Draw a window anywhere in each photo; small ones are as likely as large ones (log-uniform).

    Args:
        sizes: width and height of each photo, pixels.
        sides: smallest and largest side, as shares of the photo's.
        oblong: standard deviation of the logarithm by which width and height differ from that.
    """
    n = len(sizes)
    share = chance.log_uniform(*sides, n)
    factor = chance.normal(oblong, n).exp()
    extents = sizes * torch.stack([share * factor, share / factor], dim=1)
    return _place(extents.clamp(min=LEAST_SIDE).minimum(sizes), sizes, chance)


def draw_anywhere(sizes: torch.Tensor, sides: tuple[float, float], chance: Chance) -> torch.Tensor:
    """Draw a window of a photo's shape anywhere in each photo."""
    return _place(sizes * chance.uniform(*sides, len(sizes), 1), sizes, chance)


def jittered(
    windows: torch.Tensor, sizes: torch.Tensor, jitter: float, chance: Chance
) -> torch.Tensor:
    """Move each side of each window by up to a share of the window's extent."""
    extents = (windows[:, 2:] - windows[:, :2]).repeat(1, 2)
    moved = windows + extents * chance.uniform(-jitter, jitter, len(windows), 4)
    return clipped(moved, sizes)


def draw_tiles(
    windows: torch.Tensor, sizes: torch.Tensor, least_overlap: float, chance: Chance
) -> torch.Tensor:
    """Draw windows that lie as the best tile may lie: moved, scaled, but overlapping.

    Of several tries the first is taken that overlaps enough; if none does, the window itself.
    """
    n = len(windows)
    corner, end = windows[:, None, :2], windows[:, None, 2:]
    scales = chance.normal(0.35, n, TRIES, 1) + chance.normal(0.2, n, TRIES, 2)
    extents = (end - corner) * scales.exp()
    centres = (corner + end) / 2 + extents * chance.uniform(-0.35, 0.35, n, TRIES, 2)
    tiles = torch.cat([centres - extents / 2, centres + extents / 2], dim=2)
    tiles = clipped(tiles, sizes[:, None])
    candidates = torch.cat([tiles, windows[:, None]], dim=1)
    fits = overlaps(candidates, windows[:, None]) >= least_overlap
    first = fits.to(torch.uint8).argmax(dim=1)
    return candidates[torch.arange(n, device=windows.device), first]


def clipped(windows: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Clip windows to their photos; at least one pixel wide and high remains."""
    corner = windows[..., :2].clamp(min=0).minimum(sizes - 1)
    end = windows[..., 2:].minimum(sizes).maximum(corner + 1)
    return torch.cat([corner, end], dim=-1)


def overlaps(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the intersection over union of windows `[..., 4]`."""
    shared = (
        (one[..., 2:].minimum(other[..., 2:]) - one[..., :2].maximum(other[..., :2]))
        .clamp(min=0)
        .prod(dim=-1)
    )
    areas = [(windows[..., 2:] - windows[..., :2]).prod(dim=-1) for windows in (one, other)]
    return shared / (areas[0] + areas[1] - shared)


def cut(
    canvases: torch.Tensor,
    windows: torch.Tensor,
    size: int,
    degrees: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cut a window out of each canvas and squash it to a square.

    Args:
        canvases: levels 0 to 255, float32 `[n, 3, side, side]`.
        degrees: by which each window is turned about its centre, clockwise.

    Returns:
        Levels 0 to 255, float32 `[n, 3, size, size]`.
    """
    n, device, side = len(windows), canvases.device, canvases.shape[-1]
    # Two samples a side for each pixel, so that little is skipped when a window is made smaller.
    places = (torch.arange(2 * size, device=device) + 0.5) / size - 1
    y, x = torch.meshgrid(places, places, indexing="ij")
    half = (windows[:, 2:] - windows[:, :2]) / 2
    x, y = x * half[:, 0, None, None], y * half[:, 1, None, None]
    if degrees is not None:
        cosine, sine = (f(degrees.deg2rad())[:, None, None] for f in (torch.cos, torch.sin))
        x, y = cosine * x - sine * y, sine * x + cosine * y
    centres = (windows[:, 2:] + windows[:, :2]) / 2
    grid = torch.stack([x, y], dim=3) + centres.view(n, 1, 1, 2)
    samples = functional.grid_sample(
        canvases,
        grid / side * 2 - 1,
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    return functional.avg_pool2d(samples, 2)


def _place(extents: torch.Tensor, sizes: torch.Tensor, chance: Chance) -> torch.Tensor:
    """Return windows of these extents anywhere in their photos."""
    corners = (sizes - extents) * chance.uniform(0, 1, len(sizes), 2)
    return torch.cat([corners, corners + extents], dim=1)
