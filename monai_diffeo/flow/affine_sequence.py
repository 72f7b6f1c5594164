"""Several stationary velocities, one after another: a velocity that is constant in pieces of time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from monai_diffeo.flow.deformation import Deformation
from monai_diffeo.flow.exponential import exp_affine
from monai_diffeo.flow.grid import centered_grid

__all__ = ["dense_velocity", "exp_affine_sequence", "inverse_affine_sequence"]


def exp_affine_sequence(generators: Tensor, fields: Tensor, steps: int = 7) -> Deformation:
    """The flows of T velocities composed: ``exp(v_1) after exp(v_2) after ... exp(v_T)``.

    Warping an image along it equals warping along ``v_1`` first, the result along ``v_2``, and so on.

    Args:
        generators: affine parts, shape ``(B, T, D, D + 1)``, as :func:`exp_affine` takes them.
        fields: velocities, shape ``(B, T, D, *S)``, voxels per unit time.
        steps: squarings of each exponential.
    """
    flow = exp_affine(generators[:, 0], fields[:, 0], steps)
    for t in range(1, fields.shape[1]):
        flow = flow.after(exp_affine(generators[:, t], fields[:, t], steps))
    return flow


def inverse_affine_sequence(generators: Tensor, fields: Tensor, steps: int = 7) -> Deformation:
    """The inverse of :func:`exp_affine_sequence` of the same arguments: the flows of ``-v_T, ..., -v_1``."""
    return exp_affine_sequence(-generators.flip(1), -fields.flip(1), steps)


def dense_velocity(generators: Tensor, fields: Tensor, spatial_size: Sequence[int]) -> Tensor:
    """The T velocities as sampled fields on the frame, shape ``(B, T, D, *spatial_size)``, voxels per unit time."""
    grid = centered_grid(fields.shape[3:], fields.device, fields.dtype)
    shift = generators[..., -1]
    affine = torch.einsum("btij,j...->bti...", generators[..., :-1], grid) + shift.view(*shift.shape, *[1] * (grid.ndim - 1))
    margins = [(have - want) // 2 for have, want in zip(fields.shape[3:], spatial_size)]
    return (affine + fields)[(..., *[slice(m, m + n) for m, n in zip(margins, spatial_size)])]
