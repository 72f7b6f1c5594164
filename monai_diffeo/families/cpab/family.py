"""CPAB: flows of continuous piecewise-affine velocities, alone, after an affine map, and in coordinates of the prior."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from monai_diffeo.errors import NumericalError
from monai_diffeo.families.affine import AffineMatrix, DiffeomorphicAffine
from monai_diffeo.families.base import Family, VelocityFamily, half_frame
from monai_diffeo.families.cpab.basis import CPASpace, cpa_space
from monai_diffeo.families.cpab.flow import Start, cpa_displacement, cpa_flow, cpa_jacobian, cpa_velocity
from monai_diffeo.families.cpab.prior import CPAPrior
from monai_diffeo.families.cpab.tessellation import Tessellation, grid_tessellation
from monai_diffeo.flow import Deformation
from monai_diffeo.flow.grid import centered_grid
from monai_diffeo.flow.kept import keep_tensors
from monai_diffeo.flow.warp import _float

__all__ = ["CPAB", "AffineCPAB", "Whitened"]


class CPAB(VelocityFamily):
    """Flows of velocities that are continuous, and affine on each cell of a tessellation of the frame.

    Integrated in closed form cell by cell, to rounding; the inverse is the flow of ``-theta``, the Jacobian determinant is
    positive everywhere.

    Args:
        cells: boxes along each of the 1, 2 or 3 axes, cut into simplices by :func:`grid_tessellation`; or any
            :class:`Tessellation` of the frame [0, 1]^D, axes in the order of the image's.
        boundary: ``"free"``, ``"linear"`` (the papers' choice), ``"slide"`` or ``"fixed"``, see :func:`cpa_space`.
        volume_preserving: whether the flow keeps volumes.
        length_scale: of the smoothness prior, in frames.

    ``theta``: coefficients of an orthonormal basis, as in the papers; with axes and cells in another order theirs differ by a
    rotation. As tuples the fields have length one as the list of all their cells' matrices, on coordinates from 0 to 1.

    Reference: Freifeld et al. (2017), https://doi.org/10.1109/TPAMI.2016.2646685; Detlefsen et al. (2018), Deep Diffeomorphic
    Transformer Networks.

    Example:
        >>> family = CPAB((4, 4))
        >>> family.num_parameters
        58
        >>> family(family.identity(1), (32, 32)).ddf().abs().max().item()
        0.0
    """

    def __init__(
        self,
        cells: Sequence[int] | Tessellation = (4, 4),
        boundary: str = "linear",
        volume_preserving: bool = False,
        length_scale: float = 0.5,
    ) -> None:
        super().__init__()
        if not isinstance(cells, (Sequence, Tessellation)):
            raise TypeError(f"CPAB: 'cells' must be one number an axis or a Tessellation, got {cells!r}. In 2D write (4, 4).")
        tessellation = cells if isinstance(cells, Tessellation) else grid_tessellation(tuple(cells))
        self.space: CPASpace = cpa_space(tessellation, boundary, volume_preserving)
        self.spatial_dims, self.num_parameters = tessellation.spatial_dims, self.space.num_parameters
        self.length_scale = length_scale

    def velocity(self, theta: Tensor, spatial_size: Sequence[int]) -> tuple[Tensor, Tensor]:
        points, start = _frame(self.space.tessellation, tuple(spatial_size), theta.device, theta.dtype)
        field = cpa_velocity(self.space.tessellation, self.space.velocities(theta), points, start).transpose(1, 2)
        generator = theta.new_zeros(len(theta), self.spatial_dims, self.spatial_dims + 1)
        return generator, self._in_voxels(field, spatial_size)

    def forward(self, theta: Tensor, spatial_size: Sequence[int], steps: int | None = None) -> Deformation:
        """The flows of ``theta`` (B, P); in closed form, whatever ``steps``."""
        theta = _float(theta)
        with torch.autocast(theta.device.type, enabled=False):
            points, start = _frame(self.space.tessellation, tuple(spatial_size), theta.device, theta.dtype)
            moved = cpa_displacement(self.space.tessellation, self.space.velocities(theta), points, start)
            unit = torch.eye(self.spatial_dims, self.spatial_dims + 1).to(theta)
            return Deformation(unit.repeat(len(theta), 1, 1), self._in_voxels(moved, spatial_size))

    def inverse(self, theta: Tensor, spatial_size: Sequence[int], steps: int | None = None) -> Deformation:
        """The flows of ``-theta``."""
        return self(-theta, spatial_size)

    def jacobian(self, theta: Tensor, spatial_size: Sequence[int]) -> Tensor:
        """As for every family; the product of the exponentials of the cells on the way, without a gradient."""
        theta, half = _float(theta.detach()), half_frame(spatial_size, theta)
        points, start = _frame(self.space.tessellation, tuple(spatial_size), theta.device, theta.dtype)
        slopes = cpa_jacobian(self.space.tessellation, self.space.velocities(theta), points, start)
        return (slopes * half[:, None] / half).movedim(1, -1).unflatten(-1, tuple(spatial_size))

    def transform_points(self, theta: Tensor, points: Tensor) -> Tensor:
        """Where points ``(N, D)`` or ``(B, N, D)`` of the frame [0, 1]^D go, shape ``(B, N, D)``; differentiable in both."""
        theta = _float(theta)
        with torch.autocast(theta.device.type, enabled=False):
            return cpa_flow(self.space.tessellation, self.space.velocities(theta), points.to(theta.dtype))

    def prior(self, spread: float = 0.1) -> CPAPrior:
        """Prior of smooth fields, whose velocities have standard deviation ``spread`` in halves of the frame."""
        return _prior(self.space, self.length_scale, spread / 2)

    def sample(self, batch_size: int, spread: float | Tensor = 0.1, generator: torch.Generator | None = None) -> Tensor:
        """Random parameters ``(B, P)`` from the prior; ``spread`` as there, a number or shape ``(B,)``."""
        drawn = self.prior(1.0).sample(batch_size, generator)
        return self.scaled(drawn, torch.as_tensor(spread, dtype=drawn.dtype).expand(batch_size))

    @staticmethod
    def _in_voxels(field: Tensor, spatial_size: Sequence[int]) -> Tensor:
        return (field * (2 * half_frame(spatial_size, field))[:, None]).unflatten(2, tuple(spatial_size))


@lru_cache(maxsize=16)
def _prior(space: CPASpace, length_scale: float, std: float) -> CPAPrior:
    with torch.inference_mode(False), torch.no_grad():
        return CPAPrior(space, length_scale, std)


@keep_tensors
def _frame(tessellation: Tessellation, size: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Start]:
    """The voxels as points ``(N, D)`` of the frame [0, 1]^D, and their cells; found once."""
    grid = centered_grid(size, dtype=torch.float64).flatten(1).T
    points = grid / (2 * half_frame(size, grid)) + 0.5
    cell, coordinates = tessellation.locate(points)
    return points.to(device, dtype), Start(cell.to(device), coordinates.to(device, dtype))


class AffineCPAB(Family):
    """An affine map after a CPAB flow, ``phi(x) = M(c(x))``: an image is first moved by ``M``, then by ``c``.

    Args:
        cells, boundary, volume_preserving, length_scale: of :class:`CPAB`.
        diffeomorphic: take :class:`DiffeomorphicAffine` for M, else :class:`AffineMatrix`.

    ``theta``: the affine family's numbers, then those of :class:`CPAB`.
    """

    def __init__(
        self,
        cells: Sequence[int] | Tessellation = (4, 4),
        boundary: str = "linear",
        volume_preserving: bool = False,
        length_scale: float = 0.5,
        diffeomorphic: bool = True,
    ) -> None:
        super().__init__()
        self.cpab = CPAB(cells, boundary, volume_preserving, length_scale)
        self.spatial_dims = self.cpab.spatial_dims
        self.affine: Family = (DiffeomorphicAffine if diffeomorphic else AffineMatrix)(self.spatial_dims)
        self.num_parameters = self.affine.num_parameters + self.cpab.num_parameters

    def _split(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return _float(theta).split([self.affine.num_parameters, self.cpab.num_parameters], dim=1)

    def forward(self, theta: Tensor, spatial_size: Sequence[int], steps: int | None = None) -> Deformation:
        affine, cpab = self._split(theta)
        return self.affine(affine, spatial_size).after(self.cpab(cpab, spatial_size))

    def inverse(self, theta: Tensor, spatial_size: Sequence[int], steps: int | None = None) -> Deformation:
        """The inverse flow from where the inverse affine map leads, without sampling in between."""
        affine, cpab = self._split(theta)
        back = self.affine.inverse(affine, spatial_size)
        with torch.autocast(theta.device.type, enabled=False):
            frame = 2 * half_frame(spatial_size, back.matrix)
            points = back.ddf() + centered_grid(spatial_size, frame.device, frame.dtype)
            points = points.flatten(2).transpose(1, 2) / frame + 0.5
            moved = (self.cpab.transform_points(-cpab, points) - points) * frame
            return Deformation(back.matrix, moved.transpose(1, 2).unflatten(2, tuple(spatial_size)))

    def jacobian(self, theta: Tensor, spatial_size: Sequence[int]) -> Tensor:
        affine, cpab = self._split(theta)
        linear = self.affine(affine, spatial_size).matrix[..., :-1]
        return torch.einsum("bij,bjk...->bik...", linear, self.cpab.jacobian(cpab, spatial_size))

    def sample(self, batch_size: int, spread: float | Tensor = 0.1, generator: torch.Generator | None = None) -> Tensor:
        return torch.cat([part.sample(batch_size, spread, generator) for part in (self.affine, self.cpab)], dim=1)


class Whitened(Family):
    r"""CPAB whose ``theta`` counts in standard deviations of the smoothness prior; the same deformations.

    A gradient step on CPAB's own coefficients changes rough fields as much as smooth ones. Here it changes smooth fields most,
    as the prior has it: the coefficients are :math:`L\theta` with :math:`LL^T` the prior's covariance. This suits localisers.

    Args:
        family: the CPAB family.
        spread: of its prior, in halves of the frame.
        most: a number further than this many deviations from 0 is refused, because its points wind through thousands of cells;
            asking costs a GPU one synchronisation. None asks nothing, for a layer with a ``limit``.

    Raises:
        NumericalError: if ``theta`` is not finite or lies further away.
    """

    def __init__(self, family: CPAB, spread: float = 0.3, most: float | None = 100.0) -> None:
        super().__init__()
        self.family, self.most = family, most
        self.spatial_dims, self.num_parameters = family.spatial_dims, family.num_parameters
        with torch.inference_mode(False), torch.no_grad():
            covariance = torch.linalg.inv(family.prior(spread).precision)
            self.root: Tensor
            self.register_buffer("root", torch.linalg.cholesky(covariance), persistent=False)

    def coefficients(self, theta: Tensor) -> Tensor:
        """CPAB's own parameters, shape ``(B, P)``."""
        if self.most is not None and len(theta) and not (farthest := theta.detach().abs().max().item()) <= self.most:
            raise NumericalError(
                f"Whitened: theta lies {farthest:.3g} deviations from the identity, at most {self.most:g} are computed; "
                "lower the learning rate, or give the layer a limit."
            )
        theta = _float(theta)
        with torch.autocast(theta.device.type, enabled=False):
            return theta @ self.root.T.to(theta)

    def sample(self, batch_size: int, spread: float | Tensor = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Random parameters ``(B, P)``; ``spread`` in deviations of the prior, a number or shape ``(B,)``."""
        return super().sample(batch_size, spread, generator)

    def forward(self, theta: Tensor, spatial_size: Sequence[int], steps: int | None = None) -> Deformation:
        return self.family(self.coefficients(theta), spatial_size, steps)

    def inverse(self, theta: Tensor, spatial_size: Sequence[int], steps: int | None = None) -> Deformation:
        return self.family.inverse(self.coefficients(theta), spatial_size, steps)

    def jacobian(self, theta: Tensor, spatial_size: Sequence[int]) -> Tensor:
        return self.family.jacobian(self.coefficients(theta), spatial_size)
