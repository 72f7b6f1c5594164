"""Affine Lie algebra plus cubic B-splines on a control grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from monai_diffeo.families.affine import _in_voxels
from monai_diffeo.families.base import VelocityFamily, half_frame
from monai_diffeo.flow.kept import keep_tensors

__all__ = ["ControlGrid"]


@keep_tensors
def _spline_basis(size: int, controls: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Cubic B-splines, shape ``(size, controls)``; each support lies inside the domain, so value, slope and curvature are
    zero at both ends. A single sample lies in the middle."""
    if size == 1:
        return _spline_basis(3, controls, device, dtype)[1:2]
    spacing = (size - 1) / (controls + 3)
    centers = (torch.arange(controls, device=device, dtype=dtype) + 2) * spacing
    t = (torch.arange(size, device=device, dtype=dtype)[:, None] - centers).abs() / spacing
    return torch.where(t < 1, 2 / 3 - t**2 + t**3 / 2, (2 - t).clamp(min=0) ** 3 / 6)


class ControlGrid(VelocityFamily):
    r"""Velocities :math:`G x + \sum_j c_j B_j(x)`: an affine generator and cubic B-splines on a regular grid.

    The splines live on a frame widened by ``margin`` on each side and vanish smoothly at its border; paths may leave the
    image and come back, and the inverse stays exact to interpolation.

    Args:
        spatial_dims: 2 or 3.
        controls: control points along each axis.
        affine: whether ``theta`` begins with an affine generator of ``D (D + 1)`` numbers.
        margin: width added at each side, as share of the frame.
        steps: squarings of the exponential.
        spacing: the exponential is computed on every ``spacing``-th voxel, see :func:`exp`; coarser than half the distance of
            two control points it no longer sees them.

    ``theta``: relative units, 1 = half the frame along the axis; ``[generator.flatten(), controls.flatten()]``.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        controls: int = 10,
        affine: bool = True,
        margin: float = 0.125,
        steps: int = 7,
        spacing: int = 1,
    ) -> None:
        super().__init__(steps, spacing)
        self.spatial_dims, self.controls, self.affine, self.margin = spatial_dims, controls, affine, margin
        self.num_affine = spatial_dims * (spatial_dims + 1) if affine else 0
        self.num_parameters = self.num_affine + spatial_dims * controls**spatial_dims

    def velocity(self, theta: Tensor, spatial_size: Sequence[int]) -> tuple[Tensor, Tensor]:
        dims, half = self.spatial_dims, half_frame(spatial_size, theta)
        generator = theta.new_zeros(theta.shape[0], dims, dims + 1)
        if self.affine:
            generator = _in_voxels(theta[:, : self.num_affine], spatial_size)
        field = theta[:, self.num_affine :].reshape(-1, dims, *[self.controls] * dims)
        for n in spatial_size:  # each product moves the next control axis to the end as a voxel axis
            basis = _spline_basis(n + 2 * round(self.margin * n), self.controls, theta.device, theta.dtype)
            field = torch.tensordot(field, basis, dims=([2], [1]))
        return generator, field * half.view(-1, *[1] * dims)
