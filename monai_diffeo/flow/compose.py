"""Composition, inversion and how well an inverse inverts."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_diffeo.errors import ShapeError
from monai_diffeo.flow.exponential import exp
from monai_diffeo.flow.grid import check_field, voxel_grid
from monai_diffeo.flow.jacobian import jacobian
from monai_diffeo.flow.warp import _float, sample, warp

__all__ = ["compose", "inverse", "inverse_error", "invert"]


def compose(a: Tensor, b: Tensor) -> Tensor:
    """Displacement of ``(id + a)`` after ``(id + b)``: ``b(x) + a(x + b(x))``.

    ``warp(warp(image, a), b)`` equals ``warp(image, compose(a, b))`` up to interpolation.

    Args:
        a: outer displacement, shape ``(B, D, *S)``, voxels.
        b: inner displacement, same shape and unit, which are those of the result.

    Raises:
        ShapeError: if the shapes differ or are no displacements.

    Example:
        >>> one = torch.ones(1, 2, 5, 5)            # translations add
        >>> torch.allclose(compose(one, 2 * one), 3 * one)
        True
    """
    check_field("compose()", "a", a)
    if a.shape != b.shape:
        raise ShapeError("compose()", "b", f"{tuple(a.shape)} as 'a'", b.shape)
    return _float(b) + warp(_float(a), b)


def inverse(v: Tensor, steps: int = 7) -> Tensor:
    """Displacement of the inverse flow of a stationary velocity field, ``exp(-v)``; arguments as :func:`exp`."""
    return exp(-v, steps)


def invert(ddf: Tensor, iterations: int = 20) -> Tensor:
    """Numerical inverse of a fold-free displacement that is no flow of a known velocity, by damped Newton steps.

    A step is kept, voxel by voxel, only where it lowers the residual, so that the result is never worse than ``-ddf``
    was; ask :func:`inverse_error` how good it is. For stationary velocities :func:`inverse` is better.

    Args:
        ddf: displacement, shape ``(B, D, *S)``, voxels.
        iterations: Newton steps at most.

    Returns:
        Displacement ``w`` with ``w(x) + ddf(x + w(x)) = 0`` as nearly as sampled data allow, shape ``(B, D, *S)``, voxels.

    Raises:
        ShapeError: if ``ddf`` is no displacement.
    """
    check_field("invert()", "ddf", ddf)
    ddf = _float(ddf)
    dims, grid = ddf.shape[1], voxel_grid(ddf.shape[2:], ddf.device, ddf.dtype)
    slopes = jacobian(ddf).flatten(1, 2)
    estimate = -ddf
    residual = estimate + sample(ddf, grid + estimate)
    damping = torch.ones_like(residual[:, :1])
    for _ in range(iterations):
        matrix = sample(slopes, grid + estimate).unflatten(1, (dims, dims)).movedim((1, 2), (-2, -1))
        matrix = matrix + torch.eye(dims, dtype=ddf.dtype, device=ddf.device)
        step = torch.linalg.solve_ex(matrix, residual.movedim(1, -1).unsqueeze(-1)).result.squeeze(-1).movedim(-1, 1)
        proposal = estimate - damping * torch.nan_to_num(step).clamp(-max(ddf.shape[2:]), max(ddf.shape[2:]))
        left = proposal + sample(ddf, grid + proposal)
        better = left.square().sum(1, keepdim=True) < residual.square().sum(1, keepdim=True)
        estimate, residual = torch.where(better, proposal, estimate), torch.where(better, left, residual)
        damping = torch.where(better, (2 * damping).clamp(max=1), damping / 2)
        if bool((residual.abs() < 1e-4).all()):
            break
    return estimate


def inverse_error(ddf: Tensor, inverse_ddf: Tensor, interior: int = 0) -> Tensor:
    """How far ``ddf`` after ``inverse_ddf`` is from the identity, at every voxel.

    Args:
        ddf, inverse_ddf: shape ``(B, D, *S)``, voxels.
        interior: voxels to leave out at each side of the frame, where a map may ask for what lies outside.

    Returns:
        Distance, shape ``(B, *S')``, voxels; take ``mean`` or ``amax`` over the spatial axes.
    """
    error = torch.linalg.vector_norm(compose(ddf, inverse_ddf), dim=1)
    return error[(slice(None), *(slice(interior, n - interior) for n in error.shape[1:]))]
