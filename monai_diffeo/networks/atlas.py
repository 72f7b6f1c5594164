"""An image kept as weights are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from monai_diffeo.networks.predictor import resample_image

__all__ = ["ImageAtlas"]


class ImageAtlas(nn.Module):
    """The mean of images ``(C, *S)``, as a buffer: it is saved, loaded and moved to a device like weights; zeros at first.

    Args:
        image_size: S.
        in_channels: C.
    """

    def __init__(self, image_size: Sequence[int], in_channels: int = 1) -> None:
        super().__init__()
        self.image_size = tuple(image_size)
        self.image: Tensor
        self.register_buffer("image", torch.zeros(1, in_channels, *self.image_size))

    def measure(self, images: Iterable[Tensor]) -> ImageAtlas:
        """Take the mean of images ``(C, *any size)``, resampled."""
        self.image.copy_(torch.cat([resample_image(image[None], self.image_size) for image in images]).mean(0, keepdim=True))
        return self

    def forward(self, count: int = 1) -> Tensor:
        """The atlas, ``count`` times: ``(count, C, *S)``."""
        return self.image.expand(count, *self.image.shape[1:])
