"""What shape a mask of two paired organs has, in a few numbers."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from monai_diffeo.metrics import largest_components

__all__ = ["SHAPE_NUMBERS", "shape_numbers"]

SHAPE_NUMBERS = (
    "area", "area_ratio", "roughness", "first_row", "first_column", "first_height", "first_width", "first_slope",
    "second_row", "second_column", "second_height", "second_width", "second_slope",
)  # fmt: skip
"""Names of the numbers of :func:`shape_numbers`."""

_PART = 0.02  # of the largest part: what is smaller is no second part


def shape_numbers(mask: Tensor) -> tuple[Tensor, Tensor]:
    """The two largest parts of masks ``(B, H, W)``, the one further left first, and what is outside of them.

    Lengths are shares of the frame. A mask of one part is cut at its middle column.

    Args:
        mask: true inside.

    Returns:
        The numbers of :data:`SHAPE_NUMBERS` ``(B, 13)``, NaN for an empty mask, and the share of each mask that lies outside of
        its two largest parts ``(B,)``, 1 for an empty one.
    """
    rows, rests = zip(*(_numbers(one.cpu().numpy() > 0) for one in mask))
    return torch.tensor(rows, dtype=torch.float64), torch.tensor(rests, dtype=torch.float64)


def _numbers(mask: np.ndarray) -> tuple[list[float], float]:
    if not mask.any():
        return [math.nan] * len(SHAPE_NUMBERS), 1.0
    labels = largest_components(mask, 2)
    one, two = (labels == 1, labels == 2)
    rest = 1 - float((one | two).sum() / mask.sum())
    if two.sum() < _PART * one.sum():
        left = np.arange(mask.shape[1]) <= np.nonzero(one)[1].mean()
        one, two = one & left, one & ~left
    inside, parts = one | two, sorted((_moments(part) for part in (one, two) if part.any()), key=lambda part: part[2])
    if len(parts) < 2:  # a line
        return [math.nan] * len(SHAPE_NUMBERS), 1.0
    edge = sum(int(np.diff(inside, axis=axis).sum()) for axis in (0, 1)) / math.sqrt(inside.sum())
    areas = sorted(part[0] for part in parts)
    return [math.sqrt(sum(areas)), areas[0] / areas[1], edge, *parts[0][1:], *parts[1][1:]], rest


def _moments(part: np.ndarray) -> tuple[float, ...]:
    """Area, centre, spreads and correlation of the two axes of a part."""
    y, x = (axis / max(n - 1, 1) for axis, n in zip(np.nonzero(part), part.shape))
    height, width = float(y.std()), float(x.std())
    slope = float(((y - y.mean()) * (x - x.mean())).mean()) / max(height * width, 1e-9)
    return float(part.mean()), float(y.mean()), float(x.mean()), height, width, slope
