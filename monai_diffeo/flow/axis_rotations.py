"""Rotations that map the axes of an array onto themselves: 4 quarter turns in 2D, 24 rotations in 3D, and mirroring."""

from __future__ import annotations

import itertools
from functools import lru_cache

import torch
from torch import Tensor

from monai_diffeo.errors import ShapeError

__all__ = ["axis_rotations", "inverse_rotation", "mirror", "mirror_axis", "rotate_axes"]


@lru_cache(maxsize=4)
def _matrices(spatial_dims: int) -> tuple[Tensor, ...]:
    if spatial_dims == 2:
        quarter = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        return tuple(torch.linalg.matrix_power(quarter, k) for k in range(4))
    if spatial_dims != 3:
        raise ValueError(f"axis_rotations(): 'spatial_dims' must be 2 or 3, got {spatial_dims}.")
    signed = (
        torch.eye(3)[list(axes)] * torch.tensor(signs)[:, None]
        for axes in itertools.permutations(range(3))
        for signs in itertools.product((1.0, -1.0), repeat=3)
    )
    return tuple(matrix for matrix in signed if torch.linalg.det(matrix) > 0)


def axis_rotations(spatial_dims: int) -> Tensor:
    """All rotations that map axes to axes, as pull-back matrices of coordinates from the centre, shape ``(R, D, D)``.

    ``rotate_axes(image, k)`` shows at ``y`` what the image has at ``axis_rotations(D)[k] @ y``. The identity comes first. In
    2D number k is k quarter turns counter-clockwise, as ``torch.rot90``; in 3D there are 24.
    """
    return torch.stack(_matrices(spatial_dims))


@lru_cache(maxsize=4)
def inverse_rotation(spatial_dims: int) -> tuple[int, ...]:
    """For each rotation the number of the one that undoes it."""
    matrices = _matrices(spatial_dims)
    return tuple(next(i for i, other in enumerate(matrices) if torch.equal(other, matrix.T)) for matrix in matrices)


def rotate_axes(image: Tensor, index: int) -> Tensor:
    """Images ``(B, C, *S)``, or fields, rotated by rotation ``index`` of :func:`axis_rotations`; exact, ``*S`` is permuted.

    Raises:
        ShapeError: unless there are 2 or 3 spatial axes.
    """
    dims = image.ndim - 2
    if dims not in (2, 3):
        raise ShapeError("rotate_axes()", "image", "(B, C, H, W) or (B, C, H, W, D)", image.shape)
    if index == 0:
        return image
    matrix = _matrices(dims)[index]
    target = matrix.abs().argmax(1).tolist()  # axis d of the image becomes axis target[d]
    order = sorted(range(dims), key=target.__getitem__)
    flips = [2 + target[d] for d in range(dims) if matrix[d].sum() < 0]
    return image.permute(0, 1, *(2 + d for d in order)).flip(flips).contiguous()


def mirror_axis(spatial_dims: int) -> int:
    """The axis that :func:`mirror` reverses, which runs from left to right: the last of a picture, the first of a volume."""
    return spatial_dims - 1 if spatial_dims == 2 else 0


def mirror(image: Tensor) -> Tensor:
    """Images ``(B, C, *S)`` with left and right exchanged, see :func:`mirror_axis`."""
    return image.flip(2 + mirror_axis(image.ndim - 2))
