"""Energies that networks have learned from training images."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from monai_diffeo.energies.base import Energy
from monai_diffeo.families import VelocityFamily
from monai_diffeo.flow import dense_velocity
from monai_diffeo.networks import DeformationPredictor, EnergyCritic, EnergyVAE, standardize_image
from monai_diffeo.networks.predictor import resample_image

__all__ = ["CriticEnergy", "ResidualDeformationEnergy", "VAEEnergy"]


class VAEEnergy(Energy):
    """Squared error of the reconstruction plus ``beta`` times the divergence, the latent vector at its mean.

    Args:
        vae: trained network, of which a frozen copy is kept.
        beta: weight of the divergence.
        standardize: give the network films of mean 0 and spread 1, so that grey values do not count as deformation; False
            as published.
    """

    computes_double = True

    def __init__(self, vae: EnergyVAE, beta: float = 1.0, standardize: bool = True) -> None:
        super().__init__()
        self.vae, self.beta, self.standardize = copy.deepcopy(vae), beta, standardize
        self.freeze()

    def forward(self, image: Tensor) -> Tensor:
        image = resample_image(image, self.vae.image_size)
        image = standardize_image(image) if self.standardize else image
        rebuilt, mean, log_variance = self.vae(image)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        return (rebuilt - image).square().flatten(1).sum(1) + self.beta * divergence


class CriticEnergy(Energy):
    """Score of a Wasserstein critic, larger for deformed images; arguments as :class:`VAEEnergy`."""

    computes_double = True

    def __init__(self, critic: EnergyCritic, standardize: bool = True) -> None:
        super().__init__()
        self.critic, self.standardize = copy.deepcopy(critic), standardize
        self.freeze()

    def forward(self, image: Tensor) -> Tensor:
        return self.critic(standardize_image(image) if self.standardize else image)


class ResidualDeformationEnergy(Energy):
    """How far a predictor would still move the image: root mean square velocity, as share of half the frame.

    Args:
        predictor: trained :class:`DeformationPredictor`, of which a frozen copy is kept.
        family: the family whose parameters it gives; shared with the caller, since a family has nothing to train.
    """

    computes_double = True

    def __init__(self, predictor: nn.Module, family: VelocityFamily) -> None:
        super().__init__()
        self.predictor, self.family = copy.deepcopy(predictor), family
        self.freeze()

    def _is_known(self) -> bool:
        return type(self.predictor) is DeformationPredictor and super()._is_known()

    def forward(self, image: Tensor) -> Tensor:
        size = (33,) * self.family.spatial_dims  # theta is relative to the frame: a coarse grid says the same
        generator, field = self.family.velocity(self.predictor(image), size)
        v = dense_velocity(generator[:, None], field[:, None], size)[:, 0]
        return v.square().sum(1).flatten(1).mean(1).clamp(min=1e-12).sqrt() / 16
