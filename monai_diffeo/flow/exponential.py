"""Flows of velocity fields at time one, by scaling and squaring."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffeo.errors import ShapeError
from monai_diffeo.flow.deformation import Deformation
from monai_diffeo.flow.grid import check_field, half_frame, voxel_grid
from monai_diffeo.flow.warp import _float

__all__ = ["affine_deformation", "exp", "exp_affine"]


def exp(v: Tensor, steps: int = 7) -> Tensor:
    r"""Displacement of the flow of a stationary velocity field at time one.

    Solves :math:`\dot\phi_t = v(\phi_t), \phi_0 = \mathrm{id}` by scaling and squaring; the error halves with each extra
    step. Equals MONAI's ``DVF2DDF`` with border padding; the sampling grid is kept in place of rebuilt at every squaring.

    Args:
        v: velocity, shape ``(B, D, *S)``, voxels per unit time, components in axis order.
        steps: number of squarings, at least 0; ``exp(-v)`` approximates the inverse better the larger it is.

    Returns:
        Displacement, shape ``(B, D, *S)``, voxels.

    Raises:
        ShapeError: if ``v.shape[1] != v.ndim - 2``.
        ValueError: if ``steps`` is negative.

    Reference: Arsigny et al. (2006), MICCAI, https://doi.org/10.1007/11866565_113

    Example:
        >>> v = torch.ones(1, 2, 8, 8)              # constant velocity is a translation
        >>> torch.allclose(exp(v), v)
        True
    """
    check_field("exp()", "v", v)
    if steps < 0:
        raise ValueError(f"exp(): 'steps' must be at least 0, got {steps}. Use 5 while fitting, 7 or more at the end.")
    v = _float(v)
    with torch.autocast(v.device.type, enabled=False):
        size = half_frame(v.shape[2:], v).view(-1, *[1] * (v.ndim - 2))
        base = (voxel_grid(v.shape[2:], v.device, v.dtype) / size - 1).flip(0).movedim(0, -1)
        u = (v / size).flip(1) / 2**steps  # in units of half a frame and reversed axis order, as grid_sample wants it
        for _ in range(steps):
            u = u + F.grid_sample(u, base + u.movedim(1, -1), mode="bilinear", padding_mode="border", align_corners=True)
        return u.flip(1) * size


def affine_deformation(generator: Tensor, spatial_size: Sequence[int]) -> Deformation:
    """Flow at time one of an affine velocity alone, by the matrix exponential.

    ``generator`` ``(B, D, D + 1)`` is as for :func:`exp_affine`; ``spatial_size`` is that of the residual, which is zero.
    """
    matrix = torch.linalg.matrix_exp(F.pad(generator, (0, 0, 0, 1)).double())[:, :-1].to(generator.dtype)
    return Deformation(matrix, generator.new_zeros(generator.shape[0], generator.shape[1], *spatial_size))


def exp_affine(generator: Tensor, v: Tensor, steps: int = 7) -> Deformation:
    r"""Flow at time one of the velocity :math:`G (x, 1) + v(x)`, its affine part by the matrix exponential.

    Scaling and squaring on maps of the form :math:`M x + u(x)`, which compose exactly in :math:`M`:
    :math:`(M, u) \circ (M, u) = (M M,\; M u(x) + u(M x + u(x)))`. An affine velocity alone is integrated exactly, at the
    frame too, where a sampled field has to guess what comes in from outside.

    Args:
        generator: element of the affine Lie algebra, shape ``(B, D, D + 1)``, per unit time, acting on voxel coordinates
            measured from the centre of the frame; the last column is a translation in voxels.
        v: velocity, shape ``(B, D, *S)``, voxels per unit time; should go to zero at the frame.
        steps: as for :func:`exp`.

    Returns:
        The deformation; its inverse is ``exp_affine(-generator, -v)``.

    Raises:
        ShapeError: if ``v`` is no velocity field or ``generator`` does not fit it.
        ValueError: if ``steps`` is negative.

    Reference: Arsigny et al. (2006); Arsigny et al. (2009), polyaffine transformations,
    https://doi.org/10.1007/s10851-008-0135-9
    """
    check_field("exp_affine()", "v", v)
    dims = v.shape[1]
    if generator.shape != (v.shape[0], dims, dims + 1):
        raise ShapeError("exp_affine()", "generator", f"({v.shape[0]}, {dims}, {dims + 1}) as 'v' has it", generator.shape)
    if steps < 0:
        raise ValueError(f"exp_affine(): 'steps' must be at least 0, got {steps}. Use 5 while fitting, 7 or more at the end.")
    v, generator = _float(v), _float(generator)
    with torch.autocast(v.device.type, enabled=False):
        # double precision: rounding in the matrix doubles at every squaring and grows with the distance from the centre
        matrix = torch.linalg.matrix_exp(F.pad(generator, (0, 0, 0, 1)).double() / 2**steps)
        flow = Deformation(matrix[:, :-1].to(v.dtype), v / 2**steps)
        for _ in range(steps):
            matrix = matrix @ matrix
            flow = Deformation(matrix[:, :-1].to(v.dtype), flow.after(flow).residual)
        return flow
