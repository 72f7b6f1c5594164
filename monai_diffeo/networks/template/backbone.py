"""Backbones of template transformers: from an image and the prior to velocities."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_diffeo.errors import ShapeError

__all__ = ["SegmentThenRegister", "blocks_to_channels", "uncertain_fraction", "add_uncertainty_bias"]


class SegmentThenRegister(nn.Module):
    """A backbone of several networks: one segments the image directly, the others find the velocities that bring the prior to what it says.

    Bringing one smooth shape to another is the same task whatever the film, so that these need not learn films, and what makes the
    direct answer better makes the template's better. They may be small and work on a coarser frame. Each after the first sees the prior as
    those before it have moved it, and finds what is left to do.

    Args:
        segmentation: from ``in_channels`` to K log-odds on a frame of the same size, or on a finer one.
        registration: networks from ``2 K unshuffle**D`` channels, the direct answer's probabilities and the prior, to the velocities of one
            or several pieces, in order; or a single one. Rather without normalisation, for the size of what is missing is what they
            have to tell.
        in_channels: how many channels of what the template transformer shows are the image; the prior's K follow.
        unshuffle: they work on a frame smaller by this factor and see blocks of so many voxels along each axis as channels.
        uncertainty_bias: outside training, the prior is brought to what :func:`add_uncertainty_bias` makes of the direct answer: what is in doubt counts as inside. For
            networks that rather miss a part of a shape than add one on films unlike those of the training.
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
        self.segmentation, self.in_channels, self.unshuffle, self.uncertainty_bias = (
            segmentation,
            in_channels,
            unshuffle,
            uncertainty_bias,
        )
        self.registration = nn.ModuleList([registration] if isinstance(registration, nn.Module) else registration)

    def forward(self, inputs: Tensor, moved: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Velocities ``(B, T * D, *S')`` and log-odds ``(B, K, *S)`` of images with the prior ``(B, in_channels + K, *S)``.

        Args:
            inputs: see above.
            moved: from the first velocities ``(B, t * D, *S')`` to the prior as their flows move it ``(B, K, *S)``; each call, and the
                answer, begins with the velocities of the call before. A single registration network does not ask.
        """
        image, prior = inputs[:, : self.in_channels], inputs[:, self.in_channels :]
        log_odds = self.segmentation(image)
        if log_odds.shape[:2] != prior.shape[:2] or any(n % m for n, m in zip(log_odds.shape[2:], prior.shape[2:])):
            raise ShapeError(
                "SegmentThenRegister", "segmentation(image)", f"{tuple(prior.shape)}, as the prior, or finer", log_odds.shape
            )
        found, answers = torch.sigmoid(log_odds if self.training else add_uncertainty_bias(log_odds, self.uncertainty_bias)), []
        if found.shape != prior.shape:
            found = F.interpolate(found, prior.shape[2:], mode="area")
        for network in self.registration:
            if answers:
                if moved is None:
                    raise ValueError(
                        "SegmentThenRegister: several passes need 'moved'; use it as the backbone of a TemplateTransformer."
                    )
                prior = moved(torch.cat(answers, dim=1)).to(found.dtype)
            answers.append(network(blocks_to_channels(torch.cat([found, prior], dim=1), self.unshuffle)))
        return torch.cat(answers, dim=1), log_odds


def add_uncertainty_bias(log_odds: Tensor, uncertainty_bias: float) -> Tensor:
    """Log-odds of a direct answer that leans outward, each shape by its :func:`uncertain_fraction`.

    Args:
        log_odds: shape ``(B, K, *S)``.
        uncertainty_bias: log-odds that a shape gains for a doubt of 1. Edges alone are some doubt, the more so the smaller the shape in voxels, so that every
            shape grows a little: choose it for the frame and the organ, on films of several origins.

    Returns:
        Shape ``(B, K, *S)``.
    """
    return log_odds + uncertainty_bias * uncertain_fraction(torch.sigmoid(log_odds)) if uncertainty_bias else log_odds


def uncertain_fraction(probability: Tensor) -> Tensor:
    """How much of each shape that was found is in doubt: the sum of 4 p (1 - p), which is 1 where p = 0.5, over the number of voxels with p > 0.5.

    Args:
        probability: p, shape ``(B, K, *S)``.

    Returns:
        Shape ``(B, K, *1)``, at most 0.5; 0 for a shape that was not found at all.
    """
    p = probability.flatten(2)
    p = p if p.dtype == torch.float64 else p.float()
    unsure, found = (4 * p * (1 - p)).sum(2), (p > 0.5).sum(2)
    share = torch.where(found > 0, unsure / found.clamp_min(1), 0.0).clamp_max(0.5)
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
