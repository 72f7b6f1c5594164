"""A network that tells images like those of the training from other images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from monai.networks.nets import Classifier
from torch import Tensor, nn

from monai_diffeo.networks.predictor import check_image, resample_image, standardize_image

__all__ = ["OutlierDetector"]


class OutlierDetector(nn.Module):
    """Log-odds that an image is none of the kind of the training images; it learns from made outliers.

    Args:
        image_size: to which images are resampled, one number an axis.
        in_channels: channels of the image.
        channels: width after each halving.

    Reference: Hendrycks et al. (2019), deep anomaly detection with outlier exposure, https://arxiv.org/abs/1812.04606
    """

    def __init__(
        self, image_size: Sequence[int] = (64, 64), in_channels: int = 1, channels: Sequence[int] = (16, 32, 64, 64)
    ) -> None:
        super().__init__()
        self.image_size, self.in_channels = tuple(image_size), in_channels
        units: dict[str, Any] = {"num_res_units": 2, "act": "SWISH", "norm": ("GROUP", {"num_groups": math.gcd(8, *channels)})}
        self.classifier = Classifier((in_channels, *image_size), 1, channels, [2] * len(channels), **units)

    def forward(self, image: Tensor) -> Tensor:
        """Log-odds ``(B,)`` of images ``(B, C, *S)``; :class:`ShapeError` for other axes or channels."""
        check_image(self, image, len(self.image_size), self.in_channels)
        return self.classifier(standardize_image(resample_image(image.float(), self.image_size)))[:, 0]
