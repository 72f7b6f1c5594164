"""Local volume change and folding of a displacement."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_diffeo.flow.grid import check_field

__all__ = ["folding_fraction", "jacobian", "jacobian_determinant"]


def jacobian(ddf: Tensor) -> Tensor:
    """Derivatives of a displacement, all at the same voxel: central differences, one-sided at the frame.

    Args:
        ddf: shape ``(B, D, *S)``, voxels, at least two voxels along every axis.

    Returns:
        Shape ``(B, D, D, *S)``; entry ``[:, i, j]`` is the derivative of component i along axis j.

    Raises:
        ShapeError: if ``ddf`` is no displacement.
    """
    check_field("jacobian()", "ddf", ddf)
    return torch.stack(torch.gradient(ddf, dim=list(range(2, ddf.ndim))), dim=2)


def jacobian_determinant(ddf: Tensor) -> Tensor:
    """Determinant of ``I + grad ddf`` at every voxel; 1 where volume is kept, at most 0 where the map folds.

    Args:
        ddf: shape ``(B, D, *S)``, voxels.

    Returns:
        Shape ``(B, *S)``.

    Raises:
        ShapeError: if ``ddf`` is no displacement.

    Example:
        >>> jacobian_determinant(torch.zeros(1, 2, 4, 4)).unique().tolist()
        [1.0]
    """
    g = jacobian(ddf)
    if ddf.shape[1] == 2:
        return (1 + g[:, 0, 0]) * (1 + g[:, 1, 1]) - g[:, 0, 1] * g[:, 1, 0]
    a, b, c = ((1 + g[:, 0, 0]), g[:, 0, 1], g[:, 0, 2])
    d, e, f = (g[:, 1, 0], (1 + g[:, 1, 1]), g[:, 1, 2])
    p, q, r = (g[:, 2, 0], g[:, 2, 1], (1 + g[:, 2, 2]))
    return a * (e * r - f * q) - b * (d * r - f * p) + c * (d * q - e * p)


def folding_fraction(ddf: Tensor) -> Tensor:
    """Share of folded voxels of each image, shape ``(B,)``: Jacobian determinant at most 0, or not finite."""
    determinant = jacobian_determinant(ddf)
    return (~((determinant > 0) & determinant.isfinite())).flatten(1).float().mean(1)
