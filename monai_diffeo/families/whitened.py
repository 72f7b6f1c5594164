"""CPAB in the coordinates of its smoothness prior."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from monai_diffeo.errors import NumericalError
from monai_diffeo.families.base import Family
from monai_diffeo.families.cpab.family import CPAB
from monai_diffeo.flow import Deformation
from monai_diffeo.flow.warp import _float

__all__ = ["Whitened"]


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
        self.family, self.spatial_dims, self.num_parameters, self.most = (
            family,
            family.spatial_dims,
            family.num_parameters,
            most,
        )
        with torch.inference_mode(False), torch.no_grad():
            covariance = torch.linalg.inv(family.prior(spread).precision)
            self.register_buffer("root", torch.linalg.cholesky(covariance), persistent=False)

    def coefficients(self, theta: Tensor) -> Tensor:
        """CPAB's own parameters, shape ``(B, P)``."""
        if self.most is not None:
            farthest = theta.detach().abs().max().item()
            if not farthest <= self.most:
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
