"""From grey values of 16 or 32 bits to 8, by the values that are there."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

SAMPLE = 1_000_000  # values that are looked at
LOW, HIGH = 0.1, 99.9  # percentiles: what lies beyond is clipped, so one hot pixel doesn't decide

Scale = Callable[[np.ndarray], np.ndarray]


def scale_of(strips: Iterable[np.ndarray], count: int) -> Scale:
    """Return what scales the values of a picture to uint8, after a look at them in strips.

    Cameras and scanners save 10, 12 or 14 bits in files of 16, and such a file does not say so. The
    rule, with `high` as the 99.9th percentile and `low` as the 0.1th:

    - Whole numbers that are not negative have n bits, the fewest of 8 to 31 with `high` < 2**n.
      They are scaled by 255 / (2**n - 1). So 16-bit values that fill their range stay as they
      are, divided by 257.
    - Floating-point values between 0 and 1 are scaled by 255.
    - Others, and negative values, are scaled so that `low` becomes 0 and `high` 255.

    What is above or below is clipped. What is not a number becomes black.

    Args:
        strips: the picture in parts, each `[rows, width]`.
        count: how many values they are together.
    """
    step = max(1, int((count / SAMPLE) ** 0.5))
    sample = np.concatenate([strip[::step, ::step].ravel() for strip in strips])
    whole = sample.dtype.kind in "iu"
    if not whole:
        sample = sample[np.isfinite(sample)]
    low, high = np.percentile(sample, (LOW, HIGH)) if sample.size else (0.0, 1.0)
    if whole and low >= 0:
        bits = max(8, int(high).bit_length())
        if bits <= 16:
            return _by_table(bits)
        low, high = 0.0, 2.0**bits - 1
    elif not whole and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    return _between(low, high)


def _by_table(bits: int) -> Scale:
    top = 2**bits - 1
    table = (np.arange(top + 1, dtype=np.uint32) * 255 // top).astype(np.uint8)

    def scale(values: np.ndarray) -> np.ndarray:
        # NumPy picks from a table fastest by its own integers.
        return table[np.clip(values, 0, top).astype(np.intp)]

    return scale


def _between(low: float, high: float) -> Scale:
    factor = np.float32(255 / (high - low)) if high > low else np.float32(0)

    def scale(values: np.ndarray) -> np.ndarray:
        # Subtracted first: large values close together keep their differences.
        scaled = (values - np.float32(low)).astype(np.float32) * factor
        return np.nan_to_num(scaled, copy=False, nan=0).clip(0, 255).astype(np.uint8)

    return scale
