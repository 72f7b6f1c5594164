"""Families on fewer points."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from monai_diffeo.families.base import Family
from monai_diffeo.flow import Deformation

__all__ = ["CoarseSampling"]


class CoarseSampling(Family):
    """A family computed on every ``factor``-th voxel only, and interpolated between: cheaper where fields are smooth.

    Affine parts stay exact. What lies between the points is linear along each axis, so that a map which is nowhere folded on
    its points may in principle fold between them; ``factor = 1`` is the family itself.

    Args:
        family: any; ``theta`` as it has it.
        factor: how many voxels from one point to the next, about: the corners of the frame stay corners.

    Raises:
        ValueError: if ``factor`` is less than 1; later, if the family's fields have a margin around the frame, as those of
            :class:`ControlGrid`, which has a ``spacing`` of its own.
    """

    def __init__(self, family: Family, factor: int = 2) -> None:
        super().__init__()
        if factor < 1:
            raise ValueError(f"CoarseSampling: 'factor' must be at least 1, got {factor}.")
        self.family, self.factor = family, factor
        self.spatial_dims, self.num_parameters = family.spatial_dims, family.num_parameters

    def identity(self, batch_size: int, device: torch.device | str = "cpu", seed: int = 0) -> Tensor:
        return self.family.identity(batch_size, device, seed)

    def scaled(self, theta: Tensor, factor: Tensor) -> Tensor:
        return self.family.scaled(theta, factor)

    def sample(self, batch_size: int, spread: float | Tensor = 0.1, generator: torch.Generator | None = None) -> Tensor:
        return self.family.sample(batch_size, spread, generator)

    def forward(self, theta: Tensor, spatial_size: Sequence[int], steps: int | None = None) -> Deformation:
        return self._between(self.family(theta, self._points(spatial_size), steps), spatial_size)

    def inverse(self, theta: Tensor, spatial_size: Sequence[int], steps: int | None = None) -> Deformation:
        return self._between(self.family.inverse(theta, self._points(spatial_size), steps), spatial_size)

    def _points(self, spatial_size: Sequence[int]) -> tuple[int, ...]:
        return tuple((n - 1) // self.factor + 1 for n in spatial_size)

    def _between(self, found: Deformation, spatial_size: Sequence[int]) -> Deformation:
        if (have := tuple(found.residual.shape[2:])) != (points := self._points(spatial_size)):
            who, remedy = type(self.family).__name__, "Take the family's own 'spacing'."  # a margin has other points
            raise ValueError(f"CoarseSampling: the residual of {who} must cover the frame {points} alone, got {have}. {remedy}")
        return found.refined(spatial_size)
