"""Nested shapes on a plain ground: a toy world whose poses are known."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["nested_shapes"]


def nested_shapes(
    count: int, size: int = 64, generator: torch.Generator | None = None, spread: float = 0.04
) -> tuple[Tensor, Tensor]:
    """Images of a bright ellipse with a dark, rounded box and a bright disc inside it, in almost one pose, and where the box is.

    Args:
        count: number of images N.
        size: rows and columns.
        generator: source of all random numbers.
        spread: standard deviation of every centre and radius, as share of the frame; small: the set is narrow.

    Returns:
        Images ``(N, 1, size, size)`` in [0, 1] and masks of the box, 0 or 1, of the same shape.
    """
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    draw = torch.randn(count, 9, 1, 1, generator=generator) * 2 * spread

    def soft(inside: Tensor) -> Tensor:
        return torch.sigmoid(inside * size / 2)

    outer = soft(1 - (((x - draw[:, 0]) / (0.62 + draw[:, 1])) ** 2 + ((y - draw[:, 2]) / (0.8 + draw[:, 3])) ** 2).sqrt())
    distance = (
        ((x - draw[:, 4] - 0.12) / (0.28 + draw[:, 5] / 2)) ** 4 + ((y - draw[:, 6] - 0.2) / (0.3 + draw[:, 7] / 2)) ** 4
    ) ** 0.25
    box = soft(1 - distance)
    disc = soft(1 - (((x - draw[:, 0] + 0.15) / 0.2) ** 2 + ((y - draw[:, 2] + 0.4) / (0.2 + draw[:, 8] / 4)) ** 2).sqrt())
    images = 0.15 + 0.45 * outer - 0.3 * box * outer + 0.35 * disc * outer
    noise = 0.02 * torch.randn(count, size, size, generator=generator)
    return (images + noise).clamp(0, 1)[:, None], (box * outer > 0.5).float()[:, None]
