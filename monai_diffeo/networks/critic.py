"""The Wasserstein critic that tells training images from deformed ones."""

from __future__ import annotations

import torch
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from monai_diffeo.networks.predictor import check_image

__all__ = ["EnergyCritic"]


class EnergyCritic(nn.Module):
    """Critic of the paper: 5x5 convolutions on the features and, at every layer again, on the image.

    Layer k computes ``relu(A_k(image) + B_k(features))``; the score is the mean over voxels of the last layer.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        channels: number of features.
        layers: number of convolutions on the image; there is one fewer on the features.
        kernel_size: width of all kernels.
        stride: of all convolutions on the image, 1 as published; 2 makes the critic four times faster, eight times in space.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        channels: int = 16,
        layers: int = 6,
        kernel_size: int = 5,
        stride: int = 1,
    ) -> None:
        super().__init__()
        conv, self.spatial_dims, self.in_channels = Conv["conv", spatial_dims], spatial_dims, in_channels
        pad, rest = kernel_size // 2, range(layers - 1)
        self.from_image = nn.ModuleList(conv(in_channels, channels, kernel_size, stride, pad) for _ in range(layers))
        self.from_features = nn.ModuleList(conv(channels, channels, kernel_size, padding=pad) for _ in rest)
        self.score = conv(channels, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Score of each image, shape ``(B,)``; trained to be larger for deformed images than for training images.

        Raises :class:`ShapeError` for other axes or channels.
        """
        check_image(self, image, self.spatial_dims, self.in_channels)
        features = torch.relu(self.from_image[0](image))
        for from_image, from_features in zip(self.from_image[1:], self.from_features):
            features = torch.relu(from_image(image) + from_features(features))
        return self.score(features).flatten(1).mean(1)
