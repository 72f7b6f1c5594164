"""What a deformation itself costs."""

from __future__ import annotations

from torch import Tensor, nn

from monai_diffeo.flow import jacobian, jacobian_determinant

__all__ = ["DeformationRegularizer", "folding_penalty", "smoothness"]


def smoothness(v: Tensor) -> Tensor:
    """Mean squared gradient, shape ``(B,)``, of a velocity ``(B, D, *S)``, voxels per unit time. It has no unit and is the
    same in [-1, 1] coordinates."""
    return jacobian(v).square().sum((1, 2)).flatten(1).mean(1)


def folding_penalty(ddf: Tensor) -> Tensor:
    """Mean negative part of the Jacobian determinant, shape ``(B,)``, of a displacement ``(B, D, *S)``, voxels. It is 0 for a
    map that folds nowhere."""
    return (-jacobian_determinant(ddf)).clamp(min=0).flatten(1).mean(1)


class DeformationRegularizer(nn.Module):
    """Weighted cost of a deformation.

    Args:
        smooth: weight of :func:`smoothness` (1 as published).
        orientation: weight of :func:`folding_penalty` (the published weight is unknown).
    """

    def __init__(self, smooth: float = 1.0, orientation: float = 1.0) -> None:
        super().__init__()
        self.smooth, self.orientation = smooth, orientation

    def forward(self, v: Tensor, ddf: Tensor) -> Tensor:
        """Cost of each image's velocity and displacement, shape ``(B,)``."""
        return self.smooth * smoothness(v) + self.orientation * folding_penalty(ddf)
