"""Flows whose answer is known on paper: each has a velocity ``v`` and its displacement at time one, ``ddf_exact``."""

from __future__ import annotations

from dataclasses import dataclass

import scipy.linalg
import torch
from torch import Tensor


def coordinates(spatial_size, dtype=torch.float64) -> Tensor:
    """Voxel coordinates from the centre of the frame, ``(D, *S)``; written anew, to test the package's grid too."""
    axes = [torch.arange(n, dtype=dtype) - (n - 1) / 2 for n in spatial_size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def interior(field: Tensor, margin: int) -> Tensor:
    """``(B, C, *S)`` without ``margin`` voxels at each side."""
    return field[(..., *[slice(margin, n - margin) for n in field.shape[2:]])]


def linear(matrix: Tensor, points: Tensor) -> Tensor:
    return torch.tensordot(matrix.to(points.dtype), points, dims=1)


@dataclass(frozen=True)
class Translation:
    """v = t everywhere, phi(x) = x + t."""

    shift: tuple[float, ...]
    spatial_size: tuple[int, ...]

    @property
    def v(self) -> Tensor:
        t = torch.tensor(self.shift, dtype=torch.float64).view(1, -1, *[1] * len(self.shift))
        return t.expand(1, -1, *self.spatial_size).clone()

    ddf_exact = v


@dataclass(frozen=True)
class Affine:
    """v = A x about the centre, phi(x) = expm(A) x."""

    matrix: tuple[tuple[float, ...], ...]
    spatial_size: tuple[int, ...]

    @property
    def a(self) -> Tensor:
        return torch.tensor(self.matrix, dtype=torch.float64)

    @property
    def v(self) -> Tensor:
        return linear(self.a, coordinates(self.spatial_size))[None]

    @property
    def ddf_exact(self) -> Tensor:
        grid = coordinates(self.spatial_size)
        return (linear(torch.from_numpy(scipy.linalg.expm(self.a.numpy())), grid) - grid)[None]


AFFINE = Affine(((0.05, -0.1), (0.1, -0.03)), (128, 128))


def smooth_image(spatial_size, channels: int = 1, batch: int = 1, dtype=torch.float32, seed: int = 0) -> Tensor:
    """A few long waves with random phases: smooth enough that interpolating twice costs little."""
    draw = torch.Generator().manual_seed(seed)
    grid = coordinates(spatial_size)
    out = torch.zeros(batch, channels, *spatial_size, dtype=torch.float64)
    for b in range(batch):
        for c in range(channels):
            for _ in range(3):
                wave = (torch.rand(len(spatial_size), generator=draw) * 2 - 1).double() * 0.15
                out[b, c] += torch.sin(linear(wave[None], grid)[0] + 6 * torch.rand(1, generator=draw).item())
    return out.to(dtype)
