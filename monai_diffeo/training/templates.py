"""What one training step of a template transformer computes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from monai.losses import DiceCELoss
from torch import Tensor

from monai_diffeo.data.intensity import random_intensity
from monai_diffeo.flow import simplex_determinants, warp
from monai_diffeo.networks import TemplateTransformer, tame_log_odds
from monai_diffeo.training.steps import _augmentation

__all__ = ["TemplateStep"]


class TemplateStep:
    """Dice plus cross entropy of the warped prior, one channel a shape, and a price for maps that come near to folding.

    Args:
        strength: None for films as they are; else the TPS protocol at strengths drawn from [0, ``strength``], half of them at
            ``strength`` itself, as for the augmented U-Net.
        intensity: strength of the intensity augmentation.
        folding: weight of the price; 0 for the methods as published.
        margin: determinant below which a triangle of the map costs, linearly.
        tame: scale of :func:`tame_log_odds`; None trains on the log-odds themselves.
        seed: of all random numbers.
    """

    def __init__(
        self, strength: float | None = None, intensity: float = 0.0, folding: float = 20.0, margin: float = 0.3, tame: float | None = 4.0,
        seed: int = 0,
    ) -> None:
        self.strength, self.intensity, self.folding, self.margin, self.tame = strength, intensity, folding, margin, tame
        self.generator = torch.Generator().manual_seed(seed)
        self.loss = DiceCELoss(sigmoid=True)

    def __call__(self, network: TemplateTransformer, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        image, label = batch["image"], batch["label"]
        if self.intensity:
            image = random_intensity(image.cpu(), self.generator, self.intensity).to(image)
        if self.strength is not None:
            ddf = _augmentation(image, self.strength, self.generator)
            image = warp(image, ddf, padding_mode="zeros")
            label = (warp(label, ddf, padding_mode="zeros") > 0.5).to(label)
        ddf = network.integrate(network.velocities(image))
        log_odds = network.warp_prior(ddf, image.shape[2:])
        losses = {"segmentation": self.loss(log_odds if self.tame is None else tame_log_odds(log_odds, self.tame), label)}
        if self.folding:
            losses["folding"] = self.folding * (self.margin - simplex_determinants(ddf)).relu().mean()
        return losses
