"""Velocities that change with time, in pieces."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from monai_diffeo.families.base import Family, VelocityFamily
from monai_diffeo.flow import Deformation, bch_sequence, dense_velocity, exp_affine_sequence, inverse_affine_sequence

__all__ = ["PiecewiseStationary"]


class PiecewiseStationary(Family):
    """T velocities of one family, one after another; the inverse runs through them backwards.

    Args:
        family: of each piece.
        pieces: T.
        order: None composes the flows of the pieces exactly; 1 to 4 sums their velocities by the Baker-Campbell-Hausdorff
            series to this order and takes one exponential, as "Diffeomorphic Template Transformers" does with ``pieces=4,
            order=2``. The series is good for small pieces only: see ``docs/results/bch.md``.

    ``theta``: the rows of the pieces, one after another; the first piece acts last on points, first on images.
    """

    def __init__(self, family: VelocityFamily, pieces: int = 4, order: int | None = None) -> None:
        super().__init__()
        if pieces < 1:
            raise ValueError(f"PiecewiseStationary: 'pieces' must be at least 1, got {pieces}.")
        self.family, self.pieces, self.order, self.steps = family, pieces, order, family.steps
        self.spatial_dims, self.num_parameters = family.spatial_dims, pieces * family.num_parameters

    def identity(self, batch_size: int, device: torch.device | str = "cpu", seed: int = 0) -> Tensor:
        return torch.cat([self.family.identity(batch_size, device, seed + t) for t in range(self.pieces)], dim=1)

    def scaled(self, theta: Tensor, factor: Tensor) -> Tensor:
        return self.family.scaled(self._rows(theta), factor.repeat_interleave(self.pieces)).reshape(theta.shape)

    def sample(self, batch_size: int, spread: float | Tensor = 0.1, generator: torch.Generator | None = None) -> Tensor:
        spread = torch.as_tensor(spread).expand(batch_size).repeat_interleave(self.pieces)
        return self.family.sample(batch_size * self.pieces, spread, generator).reshape(batch_size, self.num_parameters)

    def _rows(self, theta: Tensor) -> Tensor:
        """One row a piece, ``(B * T, P / T)``."""
        return theta.reshape(-1, self.family.num_parameters)

    def velocities(self, theta: Tensor, spatial_size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Affine generators ``(B, T, D, D + 1)`` and fields ``(B, T, D, *S')``, as :func:`exp_affine_sequence` takes them."""
        generators, fields = self.family._float_velocity(self._rows(theta), spatial_size)
        return generators.unflatten(0, (-1, self.pieces)), fields.unflatten(0, (-1, self.pieces))

    def forward(self, theta: Tensor, spatial_size: Sequence[int], steps: int | None = None) -> Deformation:
        return exp_affine_sequence(*self._summed(theta, spatial_size), self.steps if steps is None else steps)

    def inverse(self, theta: Tensor, spatial_size: Sequence[int], steps: int | None = None) -> Deformation:
        return inverse_affine_sequence(*self._summed(theta, spatial_size), self.steps if steps is None else steps)

    def _summed(self, theta: Tensor, spatial_size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """:meth:`velocities`, or with an ``order`` the one of the series."""
        generators, fields = self.velocities(theta, spatial_size)
        if self.order is None:
            return generators, fields
        with torch.autocast(fields.device.type, enabled=False):
            return _bch_velocity(generators, fields, self.order)


def _bch_velocity(generators: Tensor, fields: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """The series on velocities whose affine parts go through it as matrices, and so stay exact outside the frame."""
    size = fields.shape[3:]
    whole = bch_sequence(dense_velocity(generators, fields, size), order)
    only_affine = bch_sequence(dense_velocity(generators, torch.zeros_like(fields), size), order)
    return _affine_generator(only_affine)[:, None], (whole - only_affine)[:, None]


def _affine_generator(field: Tensor) -> Tensor:
    """Generator ``(B, D, D + 1)`` of a field that is affine on the grid, from its differences between opposite corners."""
    middle, columns = field.flatten(2).mean(2), []
    for axis in range(2, field.ndim):
        first, last = field.select(axis, 0), field.select(axis, -1)
        columns.append((last - first).flatten(2).mean(2) / max(field.shape[axis] - 1, 1))
    return torch.stack([*columns, middle], dim=-1)
