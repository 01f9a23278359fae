"""Boxes, and how much of them is shared."""

from __future__ import annotations


def overlap(one: list[float], other: list[float]) -> float:
    """Return the intersection of two boxes over their union."""

    def area(box: list[float]) -> float:
        return max(0, box[2] - box[0]) * max(0, box[3] - box[1])

    both = [max(a, b) for a, b in zip(one[:2], other[:2], strict=True)]
    both += [min(a, b) for a, b in zip(one[2:], other[2:], strict=True)]
    return area(both) / (area(one) + area(other) - area(both))
