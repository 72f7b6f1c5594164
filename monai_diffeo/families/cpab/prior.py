"""Which piecewise-affine fields are likely: smooth ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from monai_diffeo.families.cpab.basis import CPASpace

__all__ = ["CPAPrior"]


class CPAPrior:
    r"""Gaussian on the coefficients of piecewise-affine fields, under which velocities at vertices far apart differ.

    Velocities at the frame's vertices are a Gaussian process with covariance
    :math:`\sigma^2 \exp(-\lVert x - y \rVert^2 / 2 \ell^2)` for each component, given that the field lies in its space (that it
    vanishes at the border, say). The papers put the same kernel on the cells' matrices; on velocities its width has a unit.

    Args:
        space: of the fields.
        length_scale: :math:`\ell`, in frames.
        std: :math:`\sigma`, standard deviation of a velocity that nothing constrains, in frames per unit time.

    Raises:
        ValueError: if ``length_scale`` or ``std`` is not positive.
    """

    def __init__(self, space: CPASpace, length_scale: float = 0.5, std: float = 0.1) -> None:
        if not (length_scale > 0 and std > 0):
            raise ValueError(f"CPAPrior: 'length_scale' and 'std' must be larger than 0, got {length_scale} and {std}.")
        count = space.tessellation.frame_vertices
        vertices = space.tessellation.vertices[:count]
        covariance = torch.exp(-torch.cdist(vertices, vertices).square() / (2 * length_scale**2))
        covariance = covariance + 1e-6 * torch.eye(count, dtype=torch.float64)
        nodal = space.nodal[:count].transpose(0, 1)  # (D, V, P)
        root = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), nodal, upper=False) / std
        self.precision = torch.einsum("dvp,dvq->pq", root, root)
        self._cholesky = torch.linalg.cholesky(self.precision)

    def sample(self, batch_size: int, generator: torch.Generator | None = None) -> Tensor:
        """Random coefficients ``(B, P)``."""
        noise = torch.randn(batch_size, len(self.precision), generator=generator).double()
        return torch.linalg.solve_triangular(self._cholesky.T, noise.T, upper=True).T.float()

    def energy(self, theta: Tensor) -> Tensor:
        """Half the squared Mahalanobis length of each row of ``theta`` (B, P), shape ``(B,)``: minus the log density."""
        return (theta @ self._cholesky.to(theta)).square().sum(1) / 2

    def log_density(self, theta: Tensor) -> Tensor:
        """Logarithm of the density at each row of ``theta`` (B, P), shape ``(B,)``."""
        constant = self._cholesky.diagonal().log().sum().item() - len(self.precision) * math.log(2 * math.pi) / 2
        return constant - self.energy(theta)
