"""Flows of velocity fields at time one, by scaling and squaring."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffeo.errors import ShapeError
from monai_diffeo.flow.deformation import Deformation
from monai_diffeo.flow.grid import centered_grid, check_field, half_frame, sampler_grid
from monai_diffeo.flow.kept import keep_tensors
from monai_diffeo.flow.warp import _float, resize_ddf

__all__ = ["affine_deformation", "exp", "exp_affine"]


def exp(v: Tensor, steps: int = 7, spacing: int = 1) -> Tensor:
    r"""Displacement of the flow of a stationary velocity field at time one.

    Solves :math:`\dot\phi_t = v(\phi_t), \phi_0 = \mathrm{id}` by scaling and squaring; the error halves with each extra
    step. Equals MONAI's ``DVF2DDF`` with border padding; the sampling grid is kept in place of rebuilt at every squaring.

    Args:
        v: velocity, shape ``(B, D, *S)``, voxels per unit time, components in axis order.
        steps: number of squarings, at least 0; ``exp(-v)`` approximates the inverse better the larger it is.
        spacing: integrate on every ``spacing``-th voxel, the corners among them, and interpolate between: cheaper where
            velocities are smooth. 1 integrates on all voxels.

    Returns:
        Displacement, shape ``(B, D, *S)``, voxels.

    Raises:
        ShapeError: if ``v.shape[1] != v.ndim - 2``.
        ValueError: if ``steps`` is negative or ``spacing`` less than 1.

    Reference: Arsigny et al. (2006), MICCAI, https://doi.org/10.1007/11866565_113

    Example:
        >>> v = torch.ones(1, 2, 8, 8)              # constant velocity is a translation
        >>> torch.allclose(exp(v), v)
        True
    """
    check_field("exp()", "v", v)
    _check_settings("exp()", steps, spacing)
    v = _float(v)
    if spacing > 1:
        return resize_ddf(exp(resize_ddf(v, _points(v.shape[2:], spacing)), steps), tuple(v.shape[2:]))
    with torch.autocast(v.device.type, enabled=False):
        size = half_frame(v.shape[2:], v).flip(0).view(-1, *[1] * (v.ndim - 2))
        base = sampler_grid(v.shape[2:], v.device, v.dtype)
        u = v.flip(1).div_(size * 2**steps)  # in units of half a frame and reversed axis order, as grid_sample wants it
        for _ in range(steps):
            where = base + u.movedim(1, -1)
            u = F.grid_sample(u, where, mode="bilinear", padding_mode="border", align_corners=True).add_(u)
        return u.flip(1).mul_(size.flip(0))


def affine_deformation(generator: Tensor, spatial_size: Sequence[int]) -> Deformation:
    """Flow at time one of an affine velocity alone, by the matrix exponential.

    ``generator`` ``(B, D, D + 1)`` is as for :func:`exp_affine`; ``spatial_size`` is that of the residual, which is zero.
    """
    matrix = _matrix_exp(generator)[:, :-1].to(generator.dtype)
    return Deformation(matrix, generator.new_zeros(generator.shape[0], generator.shape[1], *spatial_size))


def exp_affine(generator: Tensor, v: Tensor, steps: int = 7, spacing: int = 1) -> Deformation:
    r"""Flow at time one of the velocity :math:`G (x, 1) + v(x)`, its affine part by the matrix exponential.

    Scaling and squaring on maps of the form :math:`M x + u(x)`, which compose exactly in :math:`M`:
    :math:`(M, u) \circ (M, u) = (M M,\; M u(x) + u(M x + u(x)))`. An affine velocity alone is integrated exactly, at the
    frame too, where a sampled field has to guess what comes in from outside.

    Args:
        generator: element of the affine Lie algebra, shape ``(B, D, D + 1)``, per unit time, acting on voxel coordinates
            measured from the centre of the frame; the last column is a translation in voxels.
        v: velocity, shape ``(B, D, *S)``, voxels per unit time; should go to zero at the frame.
        steps, spacing: as for :func:`exp`; the affine part stays exact.

    Returns:
        The deformation; its inverse is ``exp_affine(-generator, -v)``.

    Raises:
        ShapeError: if ``v`` is no velocity field or ``generator`` does not fit it.
        ValueError: as :func:`exp`.

    Reference: Arsigny et al. (2006); Arsigny et al. (2009), polyaffine transformations,
    https://doi.org/10.1007/s10851-008-0135-9
    """
    check_field("exp_affine()", "v", v)
    dims = v.shape[1]
    if generator.shape != (v.shape[0], dims, dims + 1):
        raise ShapeError("exp_affine()", "generator", f"({v.shape[0]}, {dims}, {dims + 1}) as 'v' has it", generator.shape)
    _check_settings("exp_affine()", steps, spacing)
    v, generator = _float(v), _float(generator)
    if spacing > 1:
        points = _points(v.shape[2:], spacing)
        coarse = Deformation(generator, v).refined(points)  # the units of velocities change as those of maps do
        return exp_affine(coarse.matrix, coarse.residual, steps).refined(v.shape[2:])
    with torch.autocast(v.device.type, enabled=False):
        # in units of half a frame and reversed axis order, as grid_sample wants it; matrices in double precision, whose
        # rounding doubles at every squaring and grows with the distance from the centre
        units, back, grid = _in_halves(tuple(v.shape[2:]), v.device, v.dtype)
        powers = [units @ _matrix_exp(generator, steps) @ back]
        for _ in range(steps):
            powers.append(powers[-1] @ powers[-1])
        column = half_frame(v.shape[2:], v).view(-1, *[1] * dims)
        u, grid = v.flip(1).div_(column.flip(0) * 2**steps), grid.expand(v.shape[0], -1, -1)
        for whole in torch.stack(powers)[:-1, :, :-1].to(v.dtype).unbind():
            where = torch.baddbmm(u.flatten(2), whole, grid).view(u.shape).movedim(1, -1)
            beyond = F.grid_sample(u, where, mode="bilinear", padding_mode="border", align_corners=True)
            u = torch.baddbmm(beyond.flatten(2), whole[..., :-1], u.flatten(2)).view(u.shape)
        return Deformation((back @ powers[-1] @ units)[:, :-1].to(v.dtype), u.flip(1).mul_(column))


@keep_tensors
def _in_halves(size: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices from voxels to halves of the frame in reversed axis order, and back, double; the grid there above ones,
    ``(D + 1, N)``."""
    half = half_frame(size, torch.empty(0, device=device, dtype=dtype))
    one, exact = half.new_ones(1, 1).double(), torch.diag(half.double())
    grid = (centered_grid(size, device, dtype) / half.view(-1, *[1] * len(size))).flip(0).flatten(1)
    units, back = (torch.block_diag(matrix, one) for matrix in (exact.inverse().flip(0), exact.flip(1)))
    return units, back, torch.cat([grid, torch.ones_like(grid[:1])])


def _matrix_exp(generator: Tensor, steps: int = 0) -> Tensor:
    """Of ``(B, D, D + 1)`` over ``2**steps``, with a row of zeros, in double precision; ``(B, D + 1, D + 1)``.

    Exporters have no such operation, and on CUDA it waits for the device: they see its series, scaled and squared once more,
    which is exact to rounding.
    """
    square = F.pad(generator, (0, 0, 0, 1)).double() / 2**steps
    if not (square.is_cuda or torch.compiler.is_compiling()):
        return torch.linalg.matrix_exp(square)
    unit = torch.eye(square.shape[-1], dtype=square.dtype, device=square.device)
    result = unit.expand_as(square)
    for n in range(10, 0, -1):
        result = unit + square @ result / (64 * n)
    for _ in range(6):
        result = result @ result
    return result


def _points(spatial_size: Sequence[int], spacing: int) -> tuple[int, ...]:
    """How many points along each axis take the place of voxels."""
    return tuple(max((n - 1) // spacing + 1, min(n, 2)) for n in spatial_size)


def _check_settings(who: str, steps: int, spacing: int) -> None:
    if steps < 0:
        raise ValueError(f"{who}: 'steps' must be at least 0, got {steps}. Use 5 while fitting, 7 or more at the end.")
    if spacing < 1:
        raise ValueError(f"{who}: 'spacing' must be at least 1, got {spacing}. 1 integrates on all voxels.")
