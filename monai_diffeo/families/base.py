"""What every family of deformations offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from monai_diffeo.errors import ShapeError
from monai_diffeo.flow import Deformation, exp_affine, jacobian
from monai_diffeo.flow.grid import half_frame
from monai_diffeo.flow.warp import _float

__all__ = ["Family", "VelocityFamily", "half_frame"]


class Family(nn.Module):
    """A differentiable map from parameters ``theta``, one row for each image, to a deformation and its inverse.

    ``theta`` is relative to the frame: the same row describes the same deformation of an image at any resolution.

    Attributes:
        spatial_dims: 2 or 3.
        num_parameters: length P of a row of ``theta``.
    """

    spatial_dims: int
    num_parameters: int

    def __call__(self, theta: Tensor, spatial_size: Sequence[int], *args: Any, **kwargs: Any) -> Deformation:
        """:meth:`forward`, and a ShapeError if ``theta`` or the frame is not of this family."""
        who, length, axes = type(self).__name__, getattr(self, "num_parameters", None), getattr(self, "spatial_dims", None)
        if length is not None and (theta.ndim != 2 or theta.shape[1] != length):
            remedy = f"{who} takes rows of num_parameters={length}; one row alone is theta[None]."
            raise ShapeError(who, "theta", f"(B, {length})", theta.shape, remedy)
        if axes is not None and len(spatial_size) != axes:
            remedy = "Give the spatial axes only, image.shape[2:]."
            raise ShapeError(who, "spatial_size", f"of {axes} axes", tuple(spatial_size), remedy)
        return super().__call__(theta, spatial_size, *args, **kwargs)

    def identity(self, batch_size: int, device: torch.device | str = "cpu", seed: int = 0) -> Tensor:
        """Parameters of the identity (or, where a family starts at random, within a hair of it), shape ``(B, P)``."""
        return torch.zeros(batch_size, self.num_parameters, device=device)

    def forward(self, theta: Tensor, spatial_size: Sequence[int], steps: int | None = None) -> Deformation:
        """The deformations of ``theta`` (B, P) on a frame of ``spatial_size``.

        ``steps`` is the number of squarings of each exponential, by default the family's own. Closed forms ignore it.
        """
        raise TypeError(f"{type(self).__name__} must define forward(theta, spatial_size).")

    def inverse(self, theta: Tensor, spatial_size: Sequence[int], steps: int | None = None) -> Deformation:
        """The inverse deformations of ``theta`` (B, P) on a frame of ``spatial_size``; ``steps`` as :meth:`forward`."""
        raise TypeError(f"{type(self).__name__} must define inverse(theta, spatial_size).")

    def jacobian(self, theta: Tensor, spatial_size: Sequence[int]) -> Tensor:
        """Derivatives of the deformations, shape ``(B, D, D, *S)``; entry ``[:, i, j]`` is that of component i along axis j.

        In closed form where a family has one, else by differences between voxels.
        """
        ddf = self(theta, spatial_size).ddf(spatial_size)
        unit = torch.eye(ddf.shape[1]).to(ddf)
        return jacobian(ddf) + unit.view(*unit.shape, *[1] * (ddf.ndim - 2))

    def scaled(self, theta: Tensor, factor: Tensor) -> Tensor:
        """Parameters of a deformation that moves less: nothing where ``factor`` (B,) is 0, the same where it is 1."""
        return theta * factor[:, None].to(theta)

    def sample(self, batch_size: int, spread: float | Tensor = 0.1, generator: torch.Generator | None = None) -> Tensor:
        """Random parameters ``(B, P)``; ``spread`` is their standard deviation, a number or shape ``(B,)``."""
        noise = torch.randn(batch_size, self.num_parameters, generator=generator)
        return self.scaled(noise, torch.as_tensor(spread, dtype=noise.dtype).expand(batch_size))


class VelocityFamily(Family):
    """A family of flows of stationary velocities, by ``steps`` squarings; the inverse is the flow of ``-v``.

    ``spacing`` is that of :func:`exp`.
    """

    def __init__(self, steps: int = 7, spacing: int = 1) -> None:
        super().__init__()
        self.steps, self.spacing = steps, spacing

    def velocity(self, theta: Tensor, spatial_size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Affine generator ``(B, D, D + 1)`` and field ``(B, D, *S')``, voxels per unit time, as :func:`exp_affine` takes
        them; the field may cover a margin around the frame."""
        raise TypeError(f"{type(self).__name__} must define velocity(theta, spatial_size).")

    def forward(self, theta: Tensor, spatial_size: Sequence[int], steps: int | None = None) -> Deformation:
        """The flows of ``theta`` (B, P) at time one; ``steps`` squarings, by default the family's own."""
        generator, field = self._float_velocity(theta, spatial_size)
        return exp_affine(generator, field, self.steps if steps is None else steps, self.spacing)

    def inverse(self, theta: Tensor, spatial_size: Sequence[int], steps: int | None = None) -> Deformation:
        """The flows of minus the velocities."""
        generator, field = self._float_velocity(theta, spatial_size)
        return exp_affine(-generator, -field, self.steps if steps is None else steps, self.spacing)

    def _float_velocity(self, theta: Tensor, spatial_size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The velocity in at least float32, whatever autocast the caller runs or the predictor answered in."""
        with torch.autocast(theta.device.type, enabled=False):
            return self.velocity(_float(theta), spatial_size)
