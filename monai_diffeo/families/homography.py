"""Perspective maps of the plane."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from monai_diffeo.families.base import Family, half_frame
from monai_diffeo.flow import Deformation
from monai_diffeo.flow.grid import centered_grid
from monai_diffeo.flow.warp import _float

__all__ = ["Homography"]


class Homography(Family):
    r"""Perspective maps: :math:`\phi(x) = (A x + t) / w(x)` with :math:`w(x) = g \cdot x + 1`.

    Where :math:`w` vanishes the map runs to infinity, along a line that photographers call the horizon. Beyond the line a point
    would come back from behind; here :math:`w` is kept from falling below ``horizon``, so that everything beyond stays far
    outside the frame, without a jump and with a finite gradient. The frame sees nothing of this while
    :math:`|g_1| + |g_2| < 1 -` ``horizon``.

    Args:
        exponential: take the exponential of the matrix with trace zero that ``theta`` describes, in place of the matrix itself:
            its determinant is positive, and the inverse belongs to ``-theta``.
        horizon: least value of w.

    ``theta``: 8 numbers, the entries of the 3 x 3 matrix ``[[A, t], [g, 1]]`` by rows, less the identity, on coordinates in
    halves of the frame (with ``exponential``, of its logarithm, whose last entry makes the trace zero).
    """

    spatial_dims = 2
    num_parameters = 8

    def __init__(self, exponential: bool = False, horizon: float = 0.05) -> None:
        super().__init__()
        self.exponential, self.horizon = exponential, horizon

    def matrix(self, theta: Tensor) -> Tensor:
        """The 3 x 3 matrices on homogeneous coordinates in halves of the frame, axis order ``ij``, ``(B, 3, 3)``."""
        if self.exponential:
            entries = torch.cat([theta, -(theta[:, :1] + theta[:, 4:5])], 1).view(-1, 3, 3)
            return torch.linalg.matrix_exp(entries.double()).to(theta.dtype)
        return torch.cat([theta, torch.zeros_like(theta[:, :1])], 1).view(-1, 3, 3) + torch.eye(3).to(theta)

    def forward(self, theta: Tensor, spatial_size: Sequence[int], steps: int | None = None) -> Deformation:
        theta = _float(theta)
        with torch.autocast(theta.device.type, enabled=False):
            return self._deformation(self.matrix(theta), spatial_size)

    def inverse(self, theta: Tensor, spatial_size: Sequence[int], steps: int | None = None) -> Deformation:
        """The inverse matrix; infinite or NaN for a map that has none."""
        theta = _float(theta)
        with torch.autocast(theta.device.type, enabled=False):
            matrix = self.matrix(-theta) if self.exponential else torch.linalg.inv_ex(self.matrix(theta)).inverse
            return self._deformation(matrix, spatial_size)

    def jacobian(self, theta: Tensor, spatial_size: Sequence[int]) -> Tensor:
        theta = _float(theta)
        with torch.autocast(theta.device.type, enabled=False):
            matrix, half = self.matrix(theta), half_frame(spatial_size, theta)
            moved, w = self._project(matrix, spatial_size)
            shift = matrix[:, 2:, :2] * (w > self.horizon).to(w).unsqueeze(-1)  # (B, N, 2)
            slopes = matrix[:, None, :2, :2] - moved.unsqueeze(-1) * shift.unsqueeze(-2)
            slopes = slopes / w.clamp(min=self.horizon)[..., None, None]
            return (slopes * half[:, None] / half).movedim(1, -1).unflatten(-1, tuple(spatial_size))

    def _project(self, matrix: Tensor, spatial_size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images of the voxels ``(B, N, 2)`` in halves of the frame, and w ``(B, N)``."""
        half = half_frame(spatial_size, matrix)
        x = centered_grid(spatial_size, matrix.device, matrix.dtype).flatten(1) / half[:, None]
        raised = matrix[..., :2] @ x + matrix[..., 2:]
        return (raised[:, :2] / raised[:, 2:].clamp(min=self.horizon)).transpose(1, 2), raised[:, 2]

    def _deformation(self, matrix: Tensor, spatial_size: Sequence[int]) -> Deformation:
        """Tangent at the centre as affine part, so that the map goes on sensibly outside the frame; the rest as residual."""
        half = half_frame(spatial_size, matrix)
        at_center = matrix[:, 2:, 2:].clamp(min=self.horizon)
        shift = matrix[:, :2, 2:] / at_center
        linear = (matrix[:, :2, :2] - shift * matrix[:, 2:, :2]) / at_center
        moved, _ = self._project(matrix, spatial_size)
        x = centered_grid(spatial_size, matrix.device, matrix.dtype).flatten(1) / half[:, None]
        residual = (moved.transpose(1, 2) - linear @ x - shift) * half[:, None]
        affine = torch.cat([linear * half[:, None] / half, shift * half[:, None]], -1)
        return Deformation(affine, residual.unflatten(2, tuple(spatial_size)))
