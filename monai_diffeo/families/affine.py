"""Affine maps: by their matrix, or as flows by the matrix exponential."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from monai_diffeo.families.base import Family, VelocityFamily, half_frame
from monai_diffeo.flow import Deformation, affine_deformation
from monai_diffeo.flow.warp import _float

__all__ = ["AffineMatrix", "DiffeomorphicAffine"]


def _in_voxels(theta: Tensor, spatial_size: Sequence[int]) -> Tensor:
    """Rows of relative units as matrices ``(B, D, D + 1)`` on voxel coordinates from the centre."""
    dims, half = len(spatial_size), half_frame(spatial_size, theta)
    return theta.view(-1, dims, dims + 1) * half[:, None] / torch.cat([half, half.new_ones(1)])


def _constant_jacobian(matrix: Tensor, spatial_size: Sequence[int]) -> Tensor:
    linear = matrix[..., :-1]
    return linear.view(*linear.shape, *[1] * len(spatial_size)).expand(*linear.shape, *spatial_size)


class AffineMatrix(Family):
    """``phi(x) = (I + A) x + t``, the map that most spatial transformers use; a matrix without inverse is possible.

    ``theta``: rows of ``(A, t)``, ``D (D + 1)`` numbers; ``t`` in halves of the frame, ``A`` such that it acts on coordinates
    in halves of the frame.

    Args:
        spatial_dims: 2 or 3.

    Reference: Jaderberg et al. (2015), https://arxiv.org/abs/1506.02025
    """

    def __init__(self, spatial_dims: int = 2) -> None:
        super().__init__()
        self.spatial_dims, self.num_parameters = spatial_dims, spatial_dims * (spatial_dims + 1)

    def forward(self, theta: Tensor, spatial_size: Sequence[int], steps: int | None = None) -> Deformation:
        theta = _float(theta)
        matrix = _in_voxels(theta, spatial_size) + torch.eye(self.spatial_dims, self.spatial_dims + 1).to(theta)
        return Deformation(matrix, theta.new_zeros(theta.shape[0], self.spatial_dims, *spatial_size))

    def inverse(self, theta: Tensor, spatial_size: Sequence[int], steps: int | None = None) -> Deformation:
        """The inverse matrix; infinite or NaN for a map that has none."""
        forward = self(theta, spatial_size)
        with torch.autocast(theta.device.type, enabled=False):
            linear = torch.linalg.inv_ex(forward.matrix[..., :-1]).inverse
            return Deformation(torch.cat([linear, -linear @ forward.matrix[..., -1:]], -1), forward.residual)

    def jacobian(self, theta: Tensor, spatial_size: Sequence[int]) -> Tensor:
        return _constant_jacobian(self(theta, spatial_size).matrix, spatial_size)


class DiffeomorphicAffine(VelocityFamily):
    """Flows of affine velocities ``v(x) = A x + t``: affine maps with positive determinant, whatever the parameters.

    ``theta``: rows of ``(A, t)``, in the units of :class:`AffineMatrix`, per unit time. The inverse is the flow of ``-theta``.

    Args:
        spatial_dims: 2 or 3.

    Reference: Detlefsen et al. (2018), Deep Diffeomorphic Transformer Networks, equation 4.
    """

    def __init__(self, spatial_dims: int = 2) -> None:
        super().__init__(steps=0)
        self.spatial_dims, self.num_parameters = spatial_dims, spatial_dims * (spatial_dims + 1)

    def velocity(self, theta: Tensor, spatial_size: Sequence[int]) -> tuple[Tensor, Tensor]:
        return _in_voxels(theta, spatial_size), theta.new_zeros(theta.shape[0], self.spatial_dims, *spatial_size)

    def forward(self, theta: Tensor, spatial_size: Sequence[int], steps: int | None = None) -> Deformation:
        """The flows of ``theta`` (B, P), in closed form, whatever ``steps``."""
        return affine_deformation(self._float_velocity(theta, spatial_size)[0], spatial_size)

    def inverse(self, theta: Tensor, spatial_size: Sequence[int], steps: int | None = None) -> Deformation:
        """The flows of ``-theta``."""
        return self(-theta, spatial_size)

    def jacobian(self, theta: Tensor, spatial_size: Sequence[int]) -> Tensor:
        return _constant_jacobian(self(theta, spatial_size).matrix, spatial_size)
