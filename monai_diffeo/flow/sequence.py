"""Several displacements or velocities, one after another: a velocity that is constant in pieces of time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor

from monai_diffeo.errors import ShapeError
from monai_diffeo.flow.compose import compose
from monai_diffeo.flow.deformation import Deformation
from monai_diffeo.flow.exponential import exp, exp_affine
from monai_diffeo.flow.grid import centered_grid
from monai_diffeo.flow.warp import _float

__all__ = ["compose_sequence", "dense_velocity", "exp_affine_sequence", "exp_sequence", "inverse_affine_sequence"]


def reduce_sequence(items: Tensor, product: Callable[[Tensor, Tensor], Tensor], scheme: str = "tree") -> Tensor:
    """``item_1 * item_2 * ... item_T`` of ``items`` ``(B, T, ...)``, ``(B, ...)``, for an associative product of batches.

    ``"tree"`` multiplies neighbours, all pairs at once, until one is left; ``"chain"`` multiplies from the left.
    """
    if scheme not in ("tree", "chain"):
        raise ValueError(f"reduce_sequence(): 'scheme' must be 'tree' or 'chain', got {scheme!r}.")
    if scheme == "chain":
        return reduce(product, items.unbind(1))
    while items.shape[1] > 1:
        pairs = items.shape[1] // 2
        left, right = items[:, 0 : 2 * pairs : 2], items[:, 1 : 2 * pairs : 2]
        done = product(left.flatten(0, 1), right.flatten(0, 1)).unflatten(0, (-1, pairs))
        items = torch.cat([done, items[:, 2 * pairs :]], dim=1)
    return items[:, 0]


def compose_sequence(ddfs: Tensor, scheme: str = "tree") -> Tensor:
    """Displacement of ``(id + d_1) after (id + d_2) after ... (id + d_T)``.

    Args:
        ddfs: displacements, shape ``(B, T, D, *S)``, voxels.
        scheme: ``"tree"`` interpolates no displacement more than ``ceil(log2 T)`` times, ``"chain"`` up to ``T - 1`` times.

    Returns:
        Displacement, shape ``(B, D, *S)``, voxels.

    Raises:
        ShapeError: if ``ddfs`` has another shape.
    """
    check_sequence("compose_sequence()", "ddfs", ddfs)
    return reduce_sequence(_float(ddfs), compose, scheme)


def exp_sequence(fields: Tensor, steps: int = 7, scheme: str = "tree") -> Tensor:
    """Displacement of ``exp(v_1) after exp(v_2) after ... exp(v_T)``: a velocity that is constant in pieces of time.

    Its inverse is ``exp_sequence(-fields.flip(1))``. For velocities with an affine part see :func:`exp_affine_sequence`.

    Args:
        fields: velocities, shape ``(B, T, D, *S)``, voxels per unit time.
        steps: squarings of each exponential; all T are integrated side by side.
        scheme: as for :func:`compose_sequence`, and so are result and errors.
    """
    check_sequence("exp_sequence()", "fields", fields)
    return reduce_sequence(exp(fields.flatten(0, 1), steps).unflatten(0, fields.shape[:2]), compose, scheme)


def exp_affine_sequence(generators: Tensor, fields: Tensor, steps: int = 7) -> Deformation:
    """The flows of T velocities composed: ``exp(v_1) after exp(v_2) after ... exp(v_T)``.

    Warping an image along it equals warping along ``v_1`` first, the result along ``v_2``, and so on.

    Args:
        generators: affine parts, shape ``(B, T, D, D + 1)``, as :func:`exp_affine` takes them.
        fields: velocities, shape ``(B, T, D, *S)``, voxels per unit time.
        steps: squarings of each exponential.
    """
    return reduce(Deformation.after, (exp_affine(g, v, steps) for g, v in zip(generators.unbind(1), fields.unbind(1))))


def inverse_affine_sequence(generators: Tensor, fields: Tensor, steps: int = 7) -> Deformation:
    """The inverse of :func:`exp_affine_sequence` of the same arguments: the flows of ``-v_T, ..., -v_1``."""
    return exp_affine_sequence(-generators.flip(1), -fields.flip(1), steps)


def dense_velocity(generators: Tensor, fields: Tensor, spatial_size: Sequence[int]) -> Tensor:
    """The T velocities as sampled fields on the frame, shape ``(B, T, D, *spatial_size)``, voxels per unit time."""
    grid, shift = centered_grid(spatial_size, fields.device, fields.dtype), generators[..., -1]
    affine = torch.einsum("btij,j...->bti...", generators[..., :-1], grid) + shift.view(*shift.shape, *[1] * (grid.ndim - 1))
    inside = [slice((have - n) // 2, (have - n) // 2 + n) for have, n in zip(fields.shape[3:], spatial_size)]
    return affine + fields[(slice(None), slice(None), slice(None), *inside)]


def check_sequence(who: str, argument: str, fields: Tensor) -> None:
    """Raise :class:`ShapeError` unless ``fields`` has shape ``(B, T, D, *S)`` with ``D`` spatial axes, 2 or 3."""
    if fields.ndim not in (5, 6) or fields.shape[2] != fields.ndim - 3 or fields.shape[1] == 0:
        expected = "(B, T, D, *S) with T >= 1 and D = 2 or 3 = number of spatial axes"
        raise ShapeError(who, argument, expected, fields.shape, "A single field is a sequence of one: field[:, None].")
