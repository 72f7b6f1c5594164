"""What the rooms of random variation share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from monai_diffeo.errors import ShapeError
from monai_diffeo.flow.grid import centered_grid, half_frame

__all__ = ["check_films_and_masks", "uniform", "unit_grid"]


def uniform(low: float, high: float, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
    """Uniform random numbers between ``low`` and ``high``."""
    return torch.rand(*shape, generator=generator) * (high - low) + low


def unit_grid(spatial_size: Sequence[int]) -> Tensor:
    """Coordinates in [-0.5, 0.5] of every voxel, in scan order, shape ``(N, D)``."""
    grid = centered_grid(spatial_size).flatten(1)
    return (grid / (2 * half_frame(spatial_size, grid))[:, None]).T


def check_films_and_masks(who: str, films: Tensor, masks: Tensor) -> None:
    """A ShapeError unless films are ``(B, C, H, W)`` and masks ``(B, K, H, W)``."""
    if films.ndim != 4:
        raise ShapeError(who, "films", "(B, C, H, W)", films.shape, "Made for films, not for volumes.")
    if masks.ndim != 4 or len(masks) != len(films) or masks.shape[2:] != films.shape[2:]:
        raise ShapeError(who, "masks", f"({len(films)}, K, {films.shape[2]}, {films.shape[3]})", masks.shape)
