"""Velocities known as formulas, and their flows, integrated point by point: exact, for they owe nothing to a lattice."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from monai_diffeo.flow.grid import voxel_grid


@dataclass(frozen=True)
class Formula:
    """A velocity known as a formula at points ``(D, *S)``, which can be added, subtracted, multiplied and divided by
    numbers."""

    at: Callable[[Tensor], Tensor]

    def __call__(self, points: Tensor) -> Tensor:
        return self.at(points)

    def __add__(self, other: Formula) -> Formula:
        return Formula(lambda x: self(x) + other(x))

    def __sub__(self, other: Formula) -> Formula:
        return Formula(lambda x: self(x) - other(x))

    def __mul__(self, factor: float) -> Formula:
        return Formula(lambda x: self(x) * factor)

    def __truediv__(self, divisor: float) -> Formula:
        return Formula(lambda x: self(x) / divisor)


class SmoothVelocity(Formula):
    """A few sine waves under a window that vanishes smoothly at the frame; voxels per unit time."""

    @staticmethod
    def random(spatial_size: Sequence[int], generator: torch.Generator, shortest: float = 32.0) -> Formula:
        """Six waves of at least ``shortest`` voxels an axis; largest length 1 on the lattice."""
        dims, settings = len(spatial_size), {"generator": generator, "dtype": torch.float64}
        direction = torch.randn(dims, 6, dims, **settings)
        length = shortest * (1 + 2 * torch.rand(dims, 6, 1, **settings))
        waves = direction / direction.norm(dim=-1, keepdim=True) * 2 * math.pi / length
        phases = torch.rand(dims, 6, **settings) * 2 * math.pi
        weights = torch.randn(dims, 6, **settings)

        def at(points: Tensor) -> Tensor:
            inside, window = torch.tensordot(waves, points, dims=([2], [0])), torch.ones_like(points[0])
            tail = (dims, 6, *[1] * (points.ndim - 1))
            sines = (inside + phases.view(tail)).sin() * weights.view(tail)
            for axis, n in enumerate(spatial_size):
                window = window * (math.pi * (points[axis] / (n - 1)).clamp(0, 1)).sin().square()
            return sines.sum(1) * window

        return Formula(at) * (1 / at(voxel_grid(spatial_size, dtype=torch.float64)).norm(dim=0).max().item())


def exact_bracket(v: Formula, w: Formula) -> Formula:
    """:func:`lie_bracket` of formulas, whose derivatives are exact, by forward differentiation; brackets of brackets nest
    it."""
    return Formula(lambda x: torch.func.jvp(v, (x,), (w(x),))[1] - torch.func.jvp(w, (x,), (v(x),))[1])


def exact_flow(velocities: Sequence[Callable[[Tensor], Tensor]], points: Tensor, steps: int = 32) -> Tensor:
    """Displacement of ``exp(v_1) after exp(v_2) after ...`` at points ``(D, *S)``, by the classical Runge-Kutta method."""
    x, h = points, 1 / steps
    for v in reversed(velocities):
        for _ in range(steps):
            a = v(x)
            b = v(x + h / 2 * a)
            c = v(x + h / 2 * b)
            x = x + h / 6 * (a + 2 * b + 2 * c + v(x + h * c))
    return x - points


def slope(sizes: Sequence[float], errors: Sequence[float]) -> float:
    """Power with which errors grow with the size, by least squares in logarithms."""
    x, y = torch.tensor(sizes).double().log(), torch.tensor(errors).double().log()
    return (((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()).item()
