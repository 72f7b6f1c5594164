"""Thin-plate splines through a grid of control points."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from monai_diffeo.families.base import Family, half_frame
from monai_diffeo.flow import Deformation, invert, jacobian, thin_plate_slopes, thin_plate_spline
from monai_diffeo.flow.grid import centered_grid
from monai_diffeo.flow.kept import keep_tensors
from monai_diffeo.flow.warp import _float, sample

__all__ = ["ThinPlateSpline"]


class ThinPlateSpline(Family):
    r"""``phi(x) = x + u(x)``, with u the thin-plate spline through displacements on a regular grid of control points.

    Nothing keeps it from folding. The inverse is found by Newton's method on the sampled map, and is no inverse where the map
    folds; its gradient with respect to ``theta`` is exact up to sampling, by the implicit function theorem.

    Args:
        spatial_dims: 2 or 3.
        controls: control points along each axis, at least 2, from border to border; 4 makes the 16 points of the papers.
        margin: width added at each side for the inverse, as share of the frame, for points that come from outside.

    ``theta``: displacements of the control points in halves of the frame, ``D controls^D`` numbers, a component after the
    other.

    Reference: Bookstein (1989), https://doi.org/10.1109/34.24792; Jaderberg et al. (2015), https://arxiv.org/abs/1506.02025
    """

    def __init__(self, spatial_dims: int = 2, controls: int = 4, margin: float = 0.25) -> None:
        super().__init__()
        if controls < 2:
            raise ValueError(f"ThinPlateSpline: 'controls' must be at least 2, got {controls}.")
        self.spatial_dims, self.controls, self.margin = spatial_dims, controls, margin
        self.num_parameters = spatial_dims * controls**spatial_dims

    def displacement(self, theta: Tensor, spatial_size: Sequence[int], margin: int | Sequence[int] = 0) -> Tensor:
        """Displacement on the frame widened by ``margin`` voxels at each side, ``(B, D, *S')``, voxels; linear in ``theta``."""
        margins = tuple(margin) if isinstance(margin, Sequence) else (margin,) * self.spatial_dims
        weights = _response(self.controls, tuple(spatial_size), margins, theta.device, theta.dtype)
        wide = [n + 2 * m for n, m in zip(spatial_size, margins)]
        moved = theta.view(len(theta), self.spatial_dims, weights.shape[1]) @ weights.T
        return (moved * half_frame(spatial_size, theta)[:, None]).unflatten(2, wide)

    def forward(self, theta: Tensor, spatial_size: Sequence[int], steps: int | None = None) -> Deformation:
        theta = _float(theta)
        with torch.autocast(theta.device.type, enabled=False):
            return self._plus(self.displacement(theta, spatial_size))

    def inverse(self, theta: Tensor, spatial_size: Sequence[int], steps: int | None = None) -> Deformation:
        theta = _float(theta)
        with torch.autocast(theta.device.type, enabled=False):
            ddf = self.displacement(theta, spatial_size, [round(self.margin * n) for n in spatial_size])
            with torch.no_grad():
                found = invert(ddf)
                size = found.shape[2:]
                center = half_frame(size, found).view(-1, *[1] * len(size))
                where = centered_grid(size, found.device, found.dtype) + center + found
                slopes = sample(jacobian(ddf).flatten(1, 2), where).unflatten(1, (len(size),) * 2).movedim((1, 2), (-2, -1))
                slopes = slopes + torch.eye(len(size)).to(slopes)
            # one more step, of no length, which carries the gradient
            left = (sample(ddf, where) - sample(ddf.detach(), where)).movedim(1, -1).unsqueeze(-1)
            step = torch.linalg.solve_ex(slopes, left).result.squeeze(-1).movedim(-1, 1)
            return self._plus(found - step)

    def jacobian(self, theta: Tensor, spatial_size: Sequence[int]) -> Tensor:
        theta = _float(theta)
        with torch.autocast(theta.device.type, enabled=False):
            control, half = _control_points(self.controls, self.spatial_dims).to(theta), half_frame(spatial_size, theta)
            x = centered_grid(spatial_size, theta.device, theta.dtype).flatten(1) / half[:, None]
            slopes = thin_plate_slopes(control, theta.view(len(theta), *control.T.shape).transpose(1, 2), x.T)
            slopes = slopes * half[:, None] / half + torch.eye(self.spatial_dims).to(theta)
            return slopes.movedim(1, -1).unflatten(-1, tuple(spatial_size))

    @staticmethod
    def _plus(ddf: Tensor) -> Deformation:
        """The identity plus a displacement."""
        return Deformation(torch.eye(ddf.shape[1], ddf.shape[1] + 1).to(ddf).repeat(len(ddf), 1, 1), ddf)


def _control_points(controls: int, dims: int) -> Tensor:
    axis = torch.linspace(-1, 1, controls, dtype=torch.float64)
    return torch.cartesian_prod(*[axis] * dims)


@keep_tensors
def _response(count: int, size: tuple[int, ...], margins: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """How far each voxel follows each control point, shape ``(N, K)``."""
    grid = centered_grid([n + 2 * m for n, m in zip(size, margins)], dtype=torch.float64).flatten(1)
    points = (grid / half_frame(size, grid)[:, None]).T
    control = _control_points(count, len(size))
    return thin_plate_spline(control, torch.eye(len(control)).to(control)[None], points)[0].to(device, dtype)
