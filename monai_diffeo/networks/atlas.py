"""An image kept as weights are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from monai_diffeo.networks.predictor import check_image, resample_image

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
        """Take the mean of images ``(C, *any size)``, resampled.

        Raises:
            ShapeError: for an image of other axes or channels.
            ValueError: without images.
        """
        rows = [self._resampled(image[None]) for image in images]
        if not rows:
            raise ValueError("ImageAtlas.measure(): there must be one image or more, got none. Give training images.")
        self.image.copy_(torch.cat(rows).mean(0, keepdim=True))
        return self

    def _resampled(self, image: Tensor) -> Tensor:
        check_image(self, image, len(self.image_size), self.image.shape[1])
        return resample_image(image.float(), self.image_size)

    def forward(self, count: int = 1) -> Tensor:
        """The atlas, ``count`` times: ``(count, C, *S)``."""
        return self.image.expand(count, *self.image.shape[1:])
