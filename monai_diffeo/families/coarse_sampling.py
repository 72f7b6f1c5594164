"""Families on fewer points."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffeo.families.base import Family, half_frame
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
        ValueError: if ``factor`` is less than 1.
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
        scale = half_frame(spatial_size, found.residual) / half_frame(found.residual.shape[2:], found.residual)
        mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[self.spatial_dims]
        residual = F.interpolate(found.residual, tuple(spatial_size), mode=mode, align_corners=True)
        columns = torch.cat([1 / scale, scale.new_ones(1)])  # a matrix acts on voxels, whose size may differ between the axes
        return Deformation(found.matrix * scale[:, None] * columns, residual * scale.view(-1, *[1] * len(scale)))
