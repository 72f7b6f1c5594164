"""Thin-plate spline through control points."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_diffeo.errors import NumericalError

__all__ = ["thin_plate_slopes", "thin_plate_spline"]


def _kernel(squared: Tensor, dims: int) -> Tensor:
    """r^2 log r in the plane, r in space."""
    return squared * torch.log(squared.clamp(min=1e-20)) / 2 if dims == 2 else squared.clamp(min=1e-20).sqrt()


def _checked(who: str, control: Tensor, targets: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors as they are, or in double precision where control points are nearly the same or flat; an error where they
    are."""
    exact, close, flat = control.detach().double(), 1.0, 0.0
    if len(exact) > exact.shape[1]:
        sizes = torch.linalg.svdvals(exact - exact.mean(0))
        close, flat = (torch.pdist(exact).min() / sizes[0]).item(), (sizes[-1] / sizes[0]).item()
    for rule, found in (("no two may be the same", close), ("not all may lie on one line or plane", flat)):
        if not found > 1e-6:
            came = f"{len(control)} points that do, within {found:.1g} of their extent"
            remedy = f"Move or leave out points; keep {exact.shape[1] + 1} or more."
            raise NumericalError(f"{who}: of 'control' {rule}, got {came}. {remedy}")
        if found < 0.01:
            control, targets, points = control.double(), targets.double(), points.double()
    return control, targets, points


def _weights(control: Tensor, targets: Tensor) -> Tensor:
    """Weights of the kernels, the constant and the coordinates, shape ``(B, K + 1 + D, E)``."""
    k, dims = control.shape
    affine = torch.cat([torch.ones_like(control[:, :1]), control], dim=1)
    top = torch.cat([_kernel(torch.cdist(control, control).square(), dims), affine], dim=1)
    bottom = torch.cat([affine.T, control.new_zeros(dims + 1, dims + 1)], dim=1)
    known = torch.cat([targets, targets.new_zeros(len(targets), dims + 1, targets.shape[2])], dim=1)
    return torch.linalg.solve(torch.cat([top, bottom]), known)


def thin_plate_spline(control: Tensor, targets: Tensor, points: Tensor) -> Tensor:
    r"""The smoothest map of the plane or of space that sends control points to targets, evaluated at points.

    :math:`f(p) = a + B p + \sum_k w_k\, U(r_k)`, with :math:`r_k` the distance of ``p`` from control point k, and
    :math:`U(r) = r^2 \log r` in the plane, :math:`r` in space.

    Args:
        control: shape ``(K, D)``, D = 2 or 3, any unit; all different, and not all on one line or plane.
        targets: shape ``(B, K, E)``, any unit; E = D for a map of the plane or of space into itself.
        points: shape ``(N, D)`` or ``(B, N, D)``, unit of the control points.

    Returns:
        Shape ``(B, N, E)``.

    Raises:
        NumericalError: if two control points are the same, or all lie on one line or plane.

    Reference: Bookstein (1989), https://doi.org/10.1109/34.24792
    """
    dtype = targets.dtype
    control, targets, points = _checked("thin_plate_spline()", control, targets, points)
    squared = torch.cdist(points, control).square()
    features = torch.cat([_kernel(squared, control.shape[1]), torch.ones_like(points[..., :1]), points], -1)
    return (features @ _weights(control, targets)).to(dtype)


def thin_plate_slopes(control: Tensor, targets: Tensor, points: Tensor) -> Tensor:
    """Derivatives of :func:`thin_plate_spline` along the axes, in closed form; same arguments.

    Shape ``(B, N, E, D)``; entry ``[..., i, j]`` is the derivative of component i along axis j.
    """
    (k, dims), dtype = control.shape, targets.dtype
    control, targets, points = _checked("thin_plate_slopes()", control, targets, points)
    weights = _weights(control, targets)
    apart = points.unsqueeze(-2) - control
    squared = apart.square().sum(-1, keepdim=True).clamp(min=1e-20)
    slope = torch.log(squared) + 1 if dims == 2 else squared.rsqrt()  # the kernel's derivative by r, divided by r
    kernel = slope * apart  # (..., N, K, D)
    curved = kernel.transpose(-1, -2) @ weights[:, None, :k]
    return (curved + weights[:, None, k + 1 :]).transpose(-1, -2).to(dtype)
