"""Backbones of template transformers: from an image and the prior to velocities."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_diffeo.errors import ShapeError

__all__ = ["SegmentThenRegister", "add_uncertainty_bias", "blocks_to_channels", "uncertain_fraction"]


class SegmentThenRegister(nn.Module):
    """A backbone of several networks: the first segments the image, the others register the prior to that direct answer.

    Registering one smooth shape to another is the same task for every population of films. The registration networks may
    therefore be small and work on a coarser frame. Each one after the first sees the prior as deformed so far, and predicts
    the rest. The same network may stand there several times; it then learns to take one step from any start.

    Args:
        segmentation: from ``in_channels`` to K log-odds, on a frame of the same size or on a finer one.
        registration: one network, or several in order: from ``2 K unshuffle**D`` channels, the probabilities of the direct
            answer and the prior, to the velocities of one or several pieces. Normalisation layers would hide from them how
            much is left to deform.
        in_channels: channels of the image; the K of the prior follow in the input.
        unshuffle: the registration works on a frame smaller by this factor, and sees blocks of as many voxels along each axis
            as channels.
        uncertainty_bias: outside training, the prior is registered to :func:`add_uncertainty_bias` of the direct answer. It
            helps where networks tend to miss parts of a shape on films unlike those of the training.
    """

    def __init__(
        self,
        segmentation: nn.Module,
        registration: nn.Module | Sequence[nn.Module],
        in_channels: int = 1,
        unshuffle: int = 1,
        uncertainty_bias: float = 0.0,
    ) -> None:
        super().__init__()
        self.segmentation, self.in_channels = segmentation, in_channels
        self.unshuffle, self.uncertainty_bias = unshuffle, uncertainty_bias
        self.registration = nn.ModuleList([registration] if isinstance(registration, nn.Module) else registration)

    def forward(self, inputs: Tensor, moved: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Velocities ``(B, T * D, *S')`` and log-odds ``(B, K, *S)`` of images with the prior ``(B, in_channels + K, *S)``.

        Args:
            inputs: the image's channels, then the prior's.
            moved: from the velocities so far ``(B, t * D, *S')`` to the prior under their flows ``(B, K, *S)``; needed for
                several registration networks.
        """
        image, prior = inputs[:, : self.in_channels], inputs[:, self.in_channels :]
        log_odds = self.segmentation(image)
        if log_odds.shape[:2] != prior.shape[:2] or any(n % m for n, m in zip(log_odds.shape[2:], prior.shape[2:])):
            shape = f"{tuple(prior.shape)}, as the prior, or finer"
            raise ShapeError("SegmentThenRegister", "segmentation(image)", shape, log_odds.shape)
        answers: list[Tensor] = []
        found = torch.sigmoid(log_odds if self.training else add_uncertainty_bias(log_odds, self.uncertainty_bias))
        if found.shape != prior.shape:
            found = F.interpolate(found, prior.shape[2:], mode="area")
        for network in self.registration:
            if answers:
                if moved is None:
                    raise ValueError("SegmentThenRegister: several networks need 'moved'; use it in a TemplateTransformer.")
                prior = moved(torch.cat(answers, dim=1)).to(found.dtype)
            answers.append(network(blocks_to_channels(torch.cat([found, prior], dim=1), self.unshuffle)))
        return torch.cat(answers, dim=1), log_odds


def add_uncertainty_bias(log_odds: Tensor, uncertainty_bias: float) -> Tensor:
    """Raise the log-odds ``(B, K, *S)`` of each shape in proportion to its :func:`uncertain_fraction`, by the bias for 1.

    Uncertain voxels come to be inside. The edges of every shape are uncertain, more so of small ones, and let it grow a
    little. So choose the bias for the frame and the organ, on films of several origins.
    """
    return log_odds + uncertainty_bias * uncertain_fraction(torch.sigmoid(log_odds)) if uncertainty_bias else log_odds


def uncertain_fraction(probability: Tensor) -> Tensor:
    """The sum of 4 p (1 - p) over all voxels of each shape ``(B, K, *S)``, divided by the number of voxels with p > 0.5.

    Shape ``(B, K, *1)``, at most 0.5; 0 for a shape without a voxel of p > 0.5.
    """
    p = probability.flatten(2)
    p = p if p.dtype == torch.float64 else p.float()
    uncertain, found = (4 * p * (1 - p)).sum(2), (p > 0.5).sum(2)
    share = torch.where(found > 0, uncertain / found.clamp_min(1), 0.0).clamp_max(0.5)
    return share.to(probability).view(*share.shape, *[1] * (probability.ndim - 2))


def blocks_to_channels(image: Tensor, side: int) -> Tensor:
    """Blocks of ``side`` voxels along each axis as channels, ``(B, C * side**D, *(S / side))``."""
    if side == 1:
        return image
    if any(n % side for n in image.shape[2:]):
        raise ShapeError("TemplateTransformer", "image", f"(B, C, *S) with S divisible by unshuffle = {side}", image.shape)
    for axis in range(image.ndim - 2):
        image = torch.cat([image[(slice(None),) * (2 + axis) + (slice(k, None, side),)] for k in range(side)], dim=1)
    return image
