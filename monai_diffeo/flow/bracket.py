"""The Lie bracket of velocity fields."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_diffeo.errors import ShapeError
from monai_diffeo.flow.grid import check_field
from monai_diffeo.flow.jacobian import jacobian
from monai_diffeo.flow.warp import _float

__all__ = ["lie_bracket"]


def lie_bracket(v: Tensor, w: Tensor) -> Tensor:
    r"""How far the flows of two velocities are from commuting: :math:`[v, w] = (\mathrm{D}v)\,w - (\mathrm{D}w)\,v`.

    The sign is the one of the group: for :math:`v = Ax` and :math:`w = Bx` it is :math:`(AB - BA)x`, so that flows multiply as
    matrices do, ``compose(exp(v), exp(w)) = exp(v + w + [v, w] / 2 + ...)``. (The bracket of derivations, as most books on
    geometry have it, is minus this one.) Derivatives are central differences, one-sided at the frame, exact for affine fields.

    Args:
        v: velocity, shape ``(B, D, *S)``, voxels per unit time.
        w: velocity, same shape.

    Returns:
        Velocity, shape ``(B, D, *S)``.

    Raises:
        ShapeError: if the shapes differ or are no velocities.

    Example:
        >>> turn, shift = torch.zeros(1, 2, 5, 5), torch.zeros(1, 2, 5, 5)
        >>> turn[0, 0], turn[0, 1], shift[0, 0] = -torch.arange(5.0), torch.arange(5.0)[:, None], 1.0
        >>> lie_bracket(turn, shift)[0, :, 2, 2].tolist()       # a turned shift: turn applied to (1, 0)
        [0.0, 1.0]
    """
    check_field("lie_bracket()", "v", v)
    if v.shape != w.shape:
        raise ShapeError("lie_bracket()", "w", f"{tuple(v.shape)} as 'v'", w.shape)
    v, w = _float(v), _float(w)
    with torch.autocast(v.device.type, enabled=False):
        return torch.einsum("bij...,bj...->bi...", jacobian(v), w) - torch.einsum("bij...,bj...->bi...", jacobian(w), v)
