"""Backbones of template transformers: from an image and the prior to velocities."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from monai_diffeo.errors import ShapeError

__all__ = ["SegmentThenRegister", "blocks_to_channels"]


class SegmentThenRegister(nn.Module):
    """A backbone of two networks: one segments the image directly, the other finds the velocities that bring the prior to what the first says.

    Bringing one smooth shape to another is the same task whatever the film, so that the second need not learn films, and what makes the
    direct answer better makes the template's better. The second may be small and work on a coarser frame.

    Args:
        segmentation: from ``in_channels`` to K log-odds on a frame of the same size.
        registration: from ``2 K unshuffle**D`` channels, the direct answer's probabilities and the prior, to velocities.
        in_channels: how many channels of what the template transformer shows are the image; the prior's K follow.
        unshuffle: the second works on a frame smaller by this factor and sees blocks of so many voxels along each axis as channels.
    """

    def __init__(self, segmentation: nn.Module, registration: nn.Module, in_channels: int = 1, unshuffle: int = 1) -> None:
        super().__init__()
        self.segmentation, self.registration, self.in_channels, self.unshuffle = segmentation, registration, in_channels, unshuffle

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Velocities ``(B, T * D, *S')`` and log-odds ``(B, K, *S)`` of images with the prior ``(B, in_channels + K, *S)``."""
        image, prior = inputs[:, : self.in_channels], inputs[:, self.in_channels :]
        log_odds = self.segmentation(image)
        if log_odds.shape != prior.shape:
            raise ShapeError("SegmentThenRegister", "segmentation(image)", f"{tuple(prior.shape)}, as the prior", log_odds.shape)
        both = torch.cat([torch.sigmoid(log_odds), prior], dim=1)
        return self.registration(blocks_to_channels(both, self.unshuffle)), log_odds


def blocks_to_channels(image: Tensor, side: int) -> Tensor:
    """Blocks of ``side`` voxels along each axis as channels, ``(B, C * side**D, *(S / side))``."""
    if side == 1:
        return image
    if any(n % side for n in image.shape[2:]):
        raise ShapeError("TemplateTransformer", "image", f"(B, C, *S) with S divisible by unshuffle = {side}", image.shape)
    for axis in range(image.ndim - 2):
        image = torch.cat([image[(slice(None),) * (2 + axis) + (slice(k, None, side),)] for k in range(side)], dim=1)
    return image
