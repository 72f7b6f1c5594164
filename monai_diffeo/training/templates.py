"""What one training step of a template transformer computes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from torch import Tensor

from monai_diffeo.augmentation import varied_films
from monai_diffeo.families.base import half_frame
from monai_diffeo.flow import cell_determinants
from monai_diffeo.networks import TemplateTransformer, compress_logits
from monai_diffeo.training.boundary import boundary_distance

__all__ = ["TemplateStep"]


class TemplateStep:
    """Dice plus cross entropy of the warped prior, with penalties for distant outlines and for maps that nearly fold.

    The loss is MONAI's ``DiceCELoss(sigmoid=True)``, whose cross entropy of several shapes is that of a softmax over them.

    Args:
        strength, intensity, framing_share, opacities: as for :func:`~monai_diffeo.augmentation.varied_films`.
        folding: weight of the penalty on folds; 0 for the methods as published.
        margin: coefficients of :func:`cell_determinants` below it cost their distance from it.
        compress: scale of :func:`compress_logits`; None trains on the log-odds themselves.
        seed: of all random numbers.
        direct: weight of the same loss on the backbone's direct answer, where there is one, on its own lattice.
        outline: weight of the mean :func:`boundary_distance` of the moved shapes, half of the longest side = 1.
        power: of that distance.
        outline_points: number on each shape; on large frames or in space, enough for about one point every two voxels.
    """

    def __init__(
        self,
        strength: float | None = None,
        intensity: float = 0.0,
        folding: float = 20.0,
        margin: float = 0.3,
        compress: float | None = 4.0,
        seed: int = 0,
        framing_share: float = 0.0,
        direct: float = 1.0,
        outline: float = 0.0,
        power: float = 8.0,
        outline_points: int = 128,
        opacities: float = 0.0,
    ) -> None:
        self.variation = strength, intensity, framing_share, opacities
        self.folding, self.margin, self.compress, self.direct = folding, margin, compress, direct
        self.outline, self.power, self.outline_points = outline, power, outline_points
        self.generator = torch.Generator().manual_seed(seed)
        self.loss = DiceCELoss(sigmoid=True)

    def __call__(self, network: TemplateTransformer, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        image, label = varied_films(batch["image"], batch["label"], self.generator, *self.variation)
        velocity, direct = network.read(image)
        ddf = network.integrate(velocity)
        log_odds = network.warp_prior(ddf, image.shape[2:])
        bounded = log_odds if self.compress is None else compress_logits(log_odds, self.compress)
        losses = {"segmentation": self.loss(bounded, label)}
        if direct is not None and self.direct:
            smaller = F.interpolate(label, direct.shape[2:], mode="area")
            losses["direct"] = self.direct * self.loss(direct, (smaller > 0.5).to(label))
        if self.outline:
            size = image.shape[2:]
            distance = boundary_distance(network.outline(velocity, size, self.outline_points), label, self.power).mean()
            losses["outline"] = self.outline * distance / half_frame(size, distance).max()
        if self.folding:
            losses["folding"] = self.folding * (self.margin - cell_determinants(ddf)).relu().mean()
        return losses
