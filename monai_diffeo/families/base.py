"""What every family of deformations offers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from monai_diffeo.flow import Deformation, exp_affine
from monai_diffeo.flow.warp import _float

__all__ = ["Family", "VelocityFamily"]


class Family(nn.Module):
    """A differentiable map from parameters ``theta``, one row for each image, to a deformation and its inverse.

    ``theta`` is relative to the frame: the same row describes the same deformation of an image at any resolution.

    Attributes:
        spatial_dims: 2 or 3.
        num_parameters: length P of a row of ``theta``.
    """

    spatial_dims: int
    num_parameters: int

    def identity(self, batch_size: int, device: torch.device | str = "cpu", seed: int = 0) -> Tensor:
        """Parameters of the identity (or, where a family starts at random, within a hair of it), shape ``(B, P)``."""
        return torch.zeros(batch_size, self.num_parameters, device=device)

    def forward(self, theta: Tensor, spatial_size: Sequence[int]) -> Deformation:
        """The deformations of ``theta`` (B, P) on a frame of ``spatial_size``."""
        raise TypeError(f"{type(self).__name__} must define forward(theta, spatial_size).")

    def inverse(self, theta: Tensor, spatial_size: Sequence[int]) -> Deformation:
        """The inverse deformations of ``theta`` (B, P) on a frame of ``spatial_size``."""
        raise TypeError(f"{type(self).__name__} must define inverse(theta, spatial_size).")


class VelocityFamily(Family):
    """A family whose members are flows of stationary velocities, so that the inverse is the flow of ``-v``.

    Args:
        steps: squarings of the exponential.
    """

    def __init__(self, steps: int = 7) -> None:
        super().__init__()
        self.steps = steps

    def velocity(self, theta: Tensor, spatial_size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Affine generator ``(B, D, D + 1)`` and field ``(B, D, *S')``, voxels per unit time, as :func:`exp_affine` takes
        them; the field may cover a margin around the frame."""
        raise TypeError(f"{type(self).__name__} must define velocity(theta, spatial_size).")

    def forward(self, theta: Tensor, spatial_size: Sequence[int]) -> Deformation:
        generator, field = self._float_velocity(theta, spatial_size)
        return exp_affine(generator, field, self.steps)

    def inverse(self, theta: Tensor, spatial_size: Sequence[int]) -> Deformation:
        generator, field = self._float_velocity(theta, spatial_size)
        return exp_affine(-generator, -field, self.steps)

    def _float_velocity(self, theta: Tensor, spatial_size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The velocity in at least float32, whatever autocast the caller runs or the predictor answered in."""
        with torch.autocast(theta.device.type, enabled=False):
            return self.velocity(_float(theta), spatial_size)
