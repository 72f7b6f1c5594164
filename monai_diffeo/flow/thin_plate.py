"""Thin-plate spline through control points."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["thin_plate_spline"]


def _kernel(squared: Tensor) -> Tensor:
    return squared * torch.log(squared.clamp(min=1e-20)) / 2  # r^2 log r


def thin_plate_spline(control: Tensor, targets: Tensor, points: Tensor) -> Tensor:
    r"""The smoothest plane map that sends control points to targets, evaluated at points.

    :math:`f(p) = a + B p + \sum_k w_k\, r_k^2 \log r_k`, with :math:`r_k` the distance of ``p`` from control point k.

    Args:
        control: shape ``(K, 2)``, not all on one line, any unit.
        targets: shape ``(B, K, 2)``, same unit.
        points: shape ``(N, 2)`` or ``(B, N, 2)``, same unit.

    Returns:
        Shape ``(B, N, 2)``.

    Reference: Bookstein (1989), https://doi.org/10.1109/34.24792
    """
    k = control.shape[0]
    ones = torch.ones(k, 1, dtype=control.dtype, device=control.device)
    affine = torch.cat([ones, control], dim=1)
    top = torch.cat([_kernel(torch.cdist(control, control).square()), affine], dim=1)
    bottom = torch.cat([affine.T, torch.zeros(3, 3, dtype=control.dtype, device=control.device)], dim=1)
    known = torch.cat([targets, torch.zeros_like(targets[:, :3])], dim=1)
    weights = torch.linalg.solve(torch.cat([top, bottom]), known)
    features = torch.cat([_kernel(torch.cdist(points, control).square()), torch.ones_like(points[..., :1]), points], -1)
    return features @ weights
